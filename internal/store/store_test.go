package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
)

func open(t testing.TB) *Store {
	t.Helper()
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// putBytes stores content and describes it.
func (s *Store) putBytes(ctx context.Context, mediaType string, b []byte) (ocispec.Descriptor, error) {
	_, _, err := s.Put(ctx, bytes.NewReader(b), "")
	return describe(mediaType, b), err
}

func (s *Store) putJSON(ctx context.Context, mediaType string, v any) (ocispec.Descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return s.putBytes(ctx, mediaType, b)
}

func put(t testing.TB, s *Store, content string) kiln.Digest {
	t.Helper()
	d, _, err := s.Put(t.Context(), strings.NewReader(content), "")
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// putImage stores a tagged image of one layer and returns its manifest.
func putImage(t testing.TB, s *Store, name, content string) kiln.Digest {
	t.Helper()
	ctx := context.Background()
	layer, err := s.putBytes(ctx, ocispec.MediaTypeImageLayer, []byte(content))
	if err != nil {
		t.Fatal(err)
	}
	config, err := s.putJSON(ctx, ocispec.MediaTypeImageConfig, ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{layer.Digest}},
	})
	if err != nil {
		t.Fatal(err)
	}
	desc, err := s.putJSON(ctx, ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: config, Layers: []ocispec.Descriptor{layer},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Tag(ctx, desc, name, nil); err != nil {
		t.Fatal(err)
	}
	return kiln.Digest(desc.Digest)
}

// putTree stores files and returns their tree.
func putTree(t testing.TB, s *Store, files map[string]string) kiln.Tree {
	t.Helper()
	m := fstest.MapFS{}
	for name, content := range files {
		m[name] = &fstest.MapFile{Data: []byte(content), Mode: 0o644}
	}
	var tree kiln.Tree
	err := fs.WalkDir(m, ".", func(p string, d fs.DirEntry, _ error) error {
		switch {
		case p == ".":
		case d.IsDir():
			tree.Entries = append(tree.Entries, kiln.TreeEntry{Path: p, Mode: fs.ModeDir | 0o755})
		default:
			tree.Entries = append(tree.Entries, kiln.TreeEntry{
				Path: p, Mode: 0o644, Size: int64(len(files[p])), Digest: put(t, s, files[p]),
			})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	sortTree(tree)
	return tree
}

func TestPutVerifies(t *testing.T) {
	s := open(t)
	want := kiln.DigestOf([]byte("hello"))
	if _, _, err := s.Put(t.Context(), strings.NewReader("hullo"), want); !errors.Is(err, kiln.ErrInvalid) {
		t.Errorf("put of other content: %v", err)
	}
	if s.Has(want) || s.Has(kiln.DigestOf([]byte("hullo"))) {
		t.Error("refused content is in the store")
	}
	if _, _, err := s.PutMax(t.Context(), strings.NewReader("hello"), want, 4); !errors.Is(err, kiln.ErrInvalid) {
		t.Errorf("put above the limit: %v", err)
	}
	if _, _, err := s.Put(t.Context(), strings.NewReader("hello"), "sha256:../../etc/passwd"); !errors.Is(err, kiln.ErrInvalid) {
		t.Errorf("put under a bad name: %v", err)
	}
	if got, n, err := s.Put(t.Context(), strings.NewReader("hello"), want); got != want || n != 5 || err != nil {
		t.Errorf("put: %v %v %v", got, n, err)
	}
	left, _ := os.ReadDir(filepath.Join(s.dir, "tmp"))
	if len(left) != 0 {
		t.Errorf("temporary files are left: %v", left)
	}
	if _, err := s.Open(kiln.DigestOf(nil)); !errors.Is(err, kiln.ErrNotFound) {
		t.Errorf("open of what is not there: %v", err)
	}
}

func TestPutHealsDamage(t *testing.T) {
	s := open(t)
	d := put(t, s, "hello")
	path, _ := s.blobPath(d)
	if err := errors.Join(os.Chmod(path, 0o644), os.WriteFile(path, []byte("damaged"), 0o644)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.document(d); !errors.Is(err, kiln.ErrInvalid) {
		t.Errorf("damage was not seen: %v", err)
	}
	if err := s.Verify(t.Context(), d); !errors.Is(err, kiln.ErrNotFound) || s.Has(d) {
		t.Errorf("damage was not removed: %v", err)
	}
	put(t, s, "hello")
	if err := s.Verify(t.Context(), d); err != nil {
		t.Error(err)
	}
	if b, err := s.document(d); err != nil || string(b) != "hello" {
		t.Errorf("after the second put: %q, %v", b, err)
	}
}

func TestBatch(t *testing.T) {
	s := open(t)
	b := s.NewBatch()
	d, _, err := b.Put(t.Context(), strings.NewReader("one"), "")
	if err != nil {
		t.Fatal(err)
	}
	if s.Has(d) {
		t.Error("visible before the commit")
	}
	if err := b.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.Discard()
	if missing := s.Missing([]kiln.Digest{d, kiln.DigestOf(nil), kiln.DigestOf(nil)}); len(missing) != 1 {
		t.Errorf("missing: %v", missing)
	}
	b = s.NewBatch()
	if _, _, err := b.Put(t.Context(), strings.NewReader("two"), ""); err != nil {
		t.Fatal(err)
	}
	b.Discard()
	if left, _ := os.ReadDir(filepath.Join(s.dir, "tmp")); len(left) != 0 {
		t.Errorf("left after discard: %v", left)
	}
}

func TestTag(t *testing.T) {
	s := open(t)
	one, two := putImage(t, s, "web", "1"), putImage(t, s, "web", "2")
	if one == two {
		t.Fatal("images are the same")
	}
	d, err := s.Resolve(t.Context(), "web")
	if err != nil || kiln.Digest(d.Digest) != two {
		t.Errorf("resolve: %v %v", d.Digest, err)
	}
	index, err := s.Index(t.Context())
	if err != nil || len(index.Manifests) != 1 {
		t.Errorf("index: %v %v", index, err)
	}
	for _, name := range []string{"../x", "a b", "-a", "a\n", strings.Repeat("a", 300)} {
		if err := s.Tag(t.Context(), d, name, nil); !errors.Is(err, kiln.ErrInvalid) {
			t.Errorf("tag %q: %v", name, err)
		}
	}
	if err := s.Untag(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Resolve(t.Context(), "web"); !errors.Is(err, kiln.ErrNotFound) {
		t.Errorf("resolve after untag: %v", err)
	}
	config, err := s.Config(t.Context(), two)
	if err != nil || config.OS != "linux" {
		t.Errorf("config: %v %v", config, err)
	}
}

func TestADamagedBundleIsPutAgain(t *testing.T) {
	s := open(t)
	b := kiln.Bundle{
		Files:  putTree(t, s, map[string]string{"kiln.hcl": "x"}),
		Images: []kiln.BundleImage{{Name: "web", Platform: "linux/amd64", Manifest: putImage(t, s, "web", "1")}},
	}
	d, err := s.PutBundle(t.Context(), b, nil)
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.Manifest(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []kiln.Digest{d, kiln.Digest(m.Config.Digest), kiln.Digest(m.Layers[0].Digest)} {
		path, err := s.blobPath(part)
		if err == nil {
			err = errors.Join(os.Chmod(path, 0o644), os.WriteFile(path, []byte("another"), 0o644))
		}
		if err != nil {
			t.Fatal(err)
		}
		if again, err := s.PutBundle(t.Context(), b, nil); err != nil || again != d {
			t.Errorf("%s, %v", again, err)
		}
		if err := s.Intact(t.Context(), d); err != nil {
			t.Error(err)
		}
	}
}

func TestIntact(t *testing.T) {
	s := open(t)
	image := putImage(t, s, "web", "layer")
	if err := s.Intact(t.Context(), image); err != nil {
		t.Fatal(err)
	}
	m, err := s.Manifest(t.Context(), image)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []kiln.Digest{kiln.Digest(m.Layers[0].Digest), kiln.Digest(m.Config.Digest), image} {
		path, err := s.blobPath(d)
		if err == nil {
			err = errors.Join(os.Chmod(path, 0o644), os.WriteFile(path, []byte("another"), 0o644))
		}
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // damaged, then gone
			if err := s.Intact(t.Context(), image); !errors.Is(err, kiln.ErrNotFound) || !strings.Contains(err.Error(), string(d)) {
				t.Errorf("%s: %v", d, err)
			}
		}
	}
}

func TestAConfigThatIsNoneIsSaid(t *testing.T) {
	s := open(t)
	config, err := s.putBytes(t.Context(), ocispec.MediaTypeImageConfig, []byte("nonsense"))
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := s.putJSON(t.Context(), ocispec.MediaTypeImageManifest, ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, Config: config})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Config(t.Context(), kiln.Digest(manifest.Digest))
	if k := (*kiln.Error)(nil); !errors.As(err, &k) || k.Code != kiln.CodeInvalid || k.Hint == "" {
		t.Errorf("%v", err)
	}
}

func TestBundle(t *testing.T) {
	s := open(t)
	b := kiln.Bundle{
		Files:  putTree(t, s, map[string]string{"kiln.hcl": "x", "sub/a.txt": "y"}),
		Images: []kiln.BundleImage{{Name: "web", Platform: "linux/amd64", Manifest: putImage(t, s, "web", "1")}},
	}
	one, err := s.PutBundle(t.Context(), b, map[string]string{"org.opencontainers.image.revision": "1111"})
	if err != nil {
		t.Fatal(err)
	}
	if before, err := s.BundleDigest(b); err != nil || before != one {
		t.Errorf("the digest was foretold as %s, %v, and is %s", before, err, one)
	}
	two, err := s.PutBundle(t.Context(), b, map[string]string{"org.opencontainers.image.revision": "2222"})
	if err != nil || one != two {
		t.Errorf("the commit changed the bundle: %s, %s, %v", one, two, err)
	}
	got, err := s.Bundle(t.Context(), one)
	if err != nil || kiln.DigestJSON(got) != kiln.DigestJSON(b) {
		t.Errorf("read back: %v, %v", got, err)
	}
	if _, err := s.Bundle(t.Context(), b.Images[0].Manifest); !errors.Is(err, kiln.ErrInvalid) {
		t.Errorf("an image as a bundle: %v", err)
	}
	raw, _ := s.document(one)
	if bytes.Contains(raw, []byte("1111")) {
		t.Error("the commit is in the manifest")
	}
	lost := kiln.Bundle{Images: []kiln.BundleImage{{Name: "lost", Platform: "linux/amd64", Manifest: putImage(t, s, "lost", "2")}}}
	if path, err := s.blobPath(kiln.DigestOf([]byte("2"))); err != nil || os.Remove(path) != nil {
		t.Fatal(err)
	}
	if _, err := s.PutBundle(t.Context(), lost, nil); !errors.Is(err, kiln.ErrNotFound) {
		t.Errorf("bundle of an image without its layer: %v", err)
	}
	b.Images[0].Manifest = kiln.DigestOf([]byte("nothing"))
	if _, err := s.PutBundle(t.Context(), b, nil); !errors.Is(err, kiln.ErrNotFound) {
		t.Errorf("bundle of a missing image: %v", err)
	}
}

func TestBundleStrict(t *testing.T) {
	for _, raw := range []string{
		`{"images":null,"files":{"entries":null}}`,
		`{"files":{"entries":null},"images":null,"more":1}`,
		`{"files":{"entries":[{"path":"../x","mode":2147483648}]},"images":null}`,
		`{"files":{"entries":null},"images":null} `,
	} {
		if _, err := decodeBundle("", []byte(raw)); err == nil {
			t.Errorf("%s was accepted", raw)
		}
	}
}

func TestCollect(t *testing.T) {
	s := open(t)
	kept, other := putImage(t, s, "kept", "1"), putImage(t, s, "other", "2")
	plain, pinned := put(t, s, "plain"), put(t, s, "pinned")
	deb := put(t, s, "deb")
	bundle, err := s.PutBundle(t.Context(), kiln.Bundle{
		Files:  putTree(t, s, map[string]string{"kiln.hcl": "x"}),
		Images: []kiln.BundleImage{{Name: "kept", Platform: "linux/amd64", Manifest: kept, Debs: []kiln.Digest{deb}}},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	age(t, s, 2*time.Hour)
	fresh := put(t, s, "fresh")
	unpin := s.Pin(pinned)
	keep := Keep{Roots: []kiln.Digest{bundle, kiln.DigestOf([]byte("absent"))}}
	freed, err := s.Collect(t.Context(), keep)
	if err != nil {
		t.Fatal(err)
	}
	if freed.Blobs != 4 || len(freed.Missing) != 1 {
		t.Errorf("freed: %+v", freed)
	}
	for d, want := range map[kiln.Digest]bool{kept: true, deb: true, fresh: true, pinned: true, other: false, plain: false} {
		if s.Has(d) != want {
			t.Errorf("%s is there: %v, want %v", d, !want, want)
		}
	}
	if _, err := s.Bundle(t.Context(), bundle); err != nil {
		t.Error(err)
	}
	if _, err := s.Resolve(t.Context(), "other"); !errors.Is(err, kiln.ErrNotFound) {
		t.Errorf("index still names what went: %v", err)
	}
	unpin()
	age(t, s, 2*time.Hour)
	if freed, err := s.Collect(t.Context(), keep); err != nil || freed.Blobs != 2 {
		t.Errorf("after unpin: %+v %v", freed, err)
	}
}

func TestCollectBudget(t *testing.T) {
	s := open(t)
	image := putImage(t, s, "cached", "layer")
	old, recent := put(t, s, strings.Repeat("o", 1000)), put(t, s, strings.Repeat("r", 1000))
	age(t, s, 2*time.Hour)
	path, _ := s.blobPath(old)
	then := time.Now().Add(-3 * time.Hour)
	if err := os.Chtimes(path, then, then); err != nil {
		t.Fatal(err)
	}
	u, err := s.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	freed, err := s.Collect(t.Context(), Keep{MaxBytes: u.Bytes})
	if err != nil || freed.Blobs != 0 {
		t.Errorf("within the budget: %+v %v", freed, err)
	}
	freed, err = s.Collect(t.Context(), Keep{MaxBytes: u.Bytes - 10})
	if err != nil || freed.Blobs != 1 || freed.Left != u.Bytes-1000 {
		t.Errorf("a little above: %+v %v", freed, err)
	}
	info, _ := os.Stat(path)
	if info != nil {
		t.Error("the longest unused is still there")
	}
	freed, err = s.Collect(t.Context(), Keep{MaxBytes: u.Bytes - 2000})
	if err != nil || freed.Blobs != 1 {
		t.Errorf("images go last: %+v %v", freed, err)
	}
	if _, err := s.Manifest(t.Context(), image); err != nil {
		t.Error(err)
	}
	_ = recent
}

func TestHoldDefersCollect(t *testing.T) {
	s := open(t)
	other, err := Open(s.Dir()) // as another process would
	if err != nil {
		t.Fatal(err)
	}
	release, err := other.Hold(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	d := put(t, s, "x")
	age(t, s, 2*time.Hour)
	if freed, err := s.Collect(t.Context(), Keep{}); err != nil || !freed.Deferred {
		t.Errorf("collect under a hold: %+v %v", freed, err)
	}
	release()
	if freed, err := s.Collect(t.Context(), Keep{}); err != nil || freed.Blobs != 1 || s.Has(d) {
		t.Errorf("collect after it: %+v %v", freed, err)
	}
}

// age makes all blobs look as if last used that long ago.
func age(t testing.TB, s *Store, by time.Duration) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(s.dir, "blobs", "sha256"))
	if err != nil {
		t.Fatal(err)
	}
	then := time.Now().Add(-by)
	for _, e := range entries {
		if err := os.Chtimes(filepath.Join(s.dir, "blobs", "sha256", e.Name()), then, then); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCollectBesideWriters collects without grace while others write under a
// Hold: what they wrote and tagged is there when they let go.
func TestCollectBesideWriters(t *testing.T) {
	s := open(t)
	ctx, stop := context.WithCancel(t.Context())
	var collector, writers sync.WaitGroup
	collector.Go(func() {
		for ctx.Err() == nil {
			if _, err := s.Collect(ctx, Keep{Grace: time.Nanosecond}); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		}
	})
	for i := range 3 {
		writers.Go(func() {
			for j := range 20 {
				release, err := s.Hold(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				d := putImage(t, s, fmt.Sprintf("image-%d", i), fmt.Sprint(j%4))
				if _, err := s.Config(t.Context(), d); err != nil {
					t.Error(err)
				}
				release()
			}
		})
	}
	writers.Wait()
	stop()
	collector.Wait()
}
