package store

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
)

// TestSkopeoReads copies an image out of the store with another tool.
func TestSkopeoReads(t *testing.T) {
	skopeo, err := exec.LookPath("skopeo")
	if err != nil {
		t.Skip("skopeo is not installed")
	}
	s := open(t)
	manifest := putImage(t, s, "web", "layer")
	out, err := exec.CommandContext(t.Context(), skopeo, "inspect", "oci:"+s.Dir()+":web").CombinedOutput()
	if err != nil || !strings.Contains(string(out), string(manifest)) {
		t.Errorf("skopeo inspect: %v\n%s", err, out)
	}
	bundle, err := s.PutBundle(t.Context(), kiln.Bundle{Files: putTree(t, s, map[string]string{"kiln.hcl": "x"})},
		map[string]string{ocispec.AnnotationRefName: "bundle"})
	if err != nil {
		t.Fatal(err)
	}
	out, err = exec.CommandContext(t.Context(), skopeo, "inspect", "--raw", "oci:"+s.Dir()+":bundle").CombinedOutput()
	if err != nil || kiln.DigestOf(out) != bundle {
		t.Errorf("skopeo inspect of a bundle: %v\n%s", err, out)
	}
	to := t.TempDir()
	out, err = exec.CommandContext(t.Context(), skopeo, "--insecure-policy", "copy", "oci:"+s.Dir()+":bundle", "oci:"+to+":bundle").CombinedOutput()
	if err != nil {
		t.Fatalf("skopeo copy of a bundle: %v\n%s", err, out)
	}
	other, err := Open(to)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Bundle(t.Context(), bundle); err != nil {
		t.Errorf("the copy of the bundle: %v", err)
	}
}

// TestContainerdShares works on the same blobs by containerd's content store.
func TestContainerdShares(t *testing.T) {
	s := open(t)
	theirs, err := local.NewStore(s.Dir())
	if err != nil {
		t.Fatal(err)
	}
	d := put(t, s, "ours")
	ra, err := theirs.ReaderAt(t.Context(), ocispec.Descriptor{Digest: digest.Digest(d)})
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, ra.Size())
	if _, err := ra.ReadAt(b, 0); err != nil || string(b) != "ours" {
		t.Errorf("they read %q, %v", b, err)
	}
	if err := ra.Close(); err != nil {
		t.Fatal(err)
	}
	want := digest.FromString("theirs")
	err = content.WriteBlob(t.Context(), theirs, "ref", strings.NewReader("theirs"), ocispec.Descriptor{Digest: want, Size: 6})
	if err != nil {
		t.Fatal(err)
	}
	f, err := s.Open(kiln.Digest(want))
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(f); err != nil || string(b) != "theirs" {
		t.Errorf("we read %q, %v", b, err)
	}
	_ = f.Close()

	w, err := theirs.Writer(t.Context(), content.WithRef("half"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Close() }()
	if _, err := io.WriteString(w, "half a blob"); err != nil {
		t.Fatal(err)
	}
	u, err := s.Usage(t.Context())
	if err != nil || u.Unfinished < 11 {
		t.Errorf("usage: %+v, %v", u, err)
	}
	if _, err := s.Collect(t.Context(), Keep{}); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(t.Context(), 0, digest.FromString("half a blob")); err != nil {
		t.Errorf("a collection broke a write of theirs: %v", err)
	}
}

func TestCollectSweepsDeadIngests(t *testing.T) {
	s := open(t)
	dir := filepath.Join(s.dir, "ingest", "0123")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "data"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Collect(t.Context(), Keep{}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); err != nil {
		t.Errorf("a new one was swept: %v", err)
	}
	then := time.Now().Add(-2 * abandoned)
	for _, p := range []string{filepath.Join(dir, "data"), dir} {
		if err := os.Chtimes(p, then, then); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Collect(t.Context(), Keep{}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("a dead one was not swept")
	}
}

// TestIndexIsNotLost has several stores over one folder tag at once.
func TestIndexIsNotLost(t *testing.T) {
	s := open(t)
	var all sync.WaitGroup
	for i := range 4 {
		other, err := Open(s.Dir())
		if err != nil {
			t.Fatal(err)
		}
		all.Go(func() {
			for j := range 10 {
				name := fmt.Sprintf("image-%d-%d", i, j)
				putImage(t, other, name, name)
			}
		})
	}
	all.Wait()
	index, err := s.Index(t.Context())
	if err != nil || len(index.Manifests) != 40 {
		t.Errorf("%d entries of 40, %v", len(index.Manifests), err)
	}
}

func TestReferrersAreKept(t *testing.T) {
	s := open(t)
	image := putImage(t, s, "web", "1")
	desc, err := s.Resolve(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	config, err := s.putBytes(t.Context(), ocispec.MediaTypeEmptyJSON, []byte("{}"))
	if err != nil {
		t.Fatal(err)
	}
	sign := func(subject ocispec.Descriptor, name string) ocispec.Descriptor {
		m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, ArtifactType: "application/x", Config: config, Subject: &subject}
		m.SchemaVersion = 2
		d, err := s.putJSON(t.Context(), ocispec.MediaTypeImageManifest, m)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Tag(t.Context(), d, name, nil); err != nil {
			t.Fatal(err)
		}
		return d
	}
	signature := sign(desc, "signature")
	of := sign(signature, "signature-of-signature")
	age(t, s, 2*DefaultGrace)
	if _, err := s.Collect(t.Context(), Keep{Roots: []kiln.Digest{image}}); err != nil {
		t.Fatal(err)
	}
	if !s.Has(kiln.Digest(of.Digest)) {
		t.Error("what refers to a kept image is gone")
	}
	age(t, s, 2*DefaultGrace)
	if freed, err := s.Collect(t.Context(), Keep{}); err != nil || freed.Left != 0 {
		t.Errorf("without it: %+v, %v", freed, err)
	}
}

func TestReserve(t *testing.T) {
	r := NewReserve(filepath.Join(t.TempDir(), "reserve"), 1<<20)
	if r.Held() {
		t.Error("held before Hold")
	}
	for range 2 {
		if err := r.Hold(); err != nil {
			t.Fatal(err)
		}
	}
	if !r.Held() {
		t.Error("not held after Hold")
	}
	for range 2 {
		if err := r.Release(); err != nil {
			t.Fatal(err)
		}
	}
	if r.Held() {
		t.Error("held after Release")
	}
	if err := NewReserve(filepath.Join(t.TempDir(), "reserve"), 1<<50).Hold(); err == nil {
		t.Error("a petabyte was reserved")
	}
}

func BenchmarkBatch(b *testing.B) {
	s := open(b)
	for n := 0; b.Loop(); n++ {
		batch := s.NewBatch()
		for i := range 1000 {
			if _, _, err := batch.Put(b.Context(), strings.NewReader(fmt.Sprint(n, "/", i)), ""); err != nil {
				b.Fatal(err)
			}
		}
		if err := batch.Commit(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
