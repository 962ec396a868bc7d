package store

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kilnproject/kiln"
)

// TestMain runs the test binary as a worker that is going to be killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv("KILN_STORE_WORKER"); dir != "" {
		if err := work(dir, os.Getenv("KILN_STORE_KEEP")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// work writes images and collects them, for ever, saying when it begins.
func work(dir, keep string) error {
	s, err := Open(dir)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(os.Stdout, "ready"); err != nil {
		return err
	}
	ctx := context.Background()
	t := &testing.B{}
	for i := 0; ; i++ {
		name := fmt.Sprintf("garbage-%d", i%7)
		image := putImage(t, s, name, fmt.Sprint(name, rand.Int()))
		if _, err := s.PutReferrer(ctx, image, Referrer{ArtifactType: typeSignature}); err != nil {
			return err
		}
		b := s.NewBatch()
		for j := range 5 {
			if _, _, err := b.Put(ctx, strings.NewReader(fmt.Sprint("blob", i, j)), ""); err != nil {
				return err
			}
		}
		if err := b.publish(); err != nil { // without the flush, which a kill does not test
			return err
		}
		if _, err := s.Collect(ctx, Keep{Roots: []kiln.Digest{kiln.Digest(keep)}, Grace: time.Nanosecond}); err != nil {
			return err
		}
	}
}

// TestKilledCollections kills a process that writes and collects, at points
// of chance, and looks each time whether all that was kept is whole.
func TestKilledCollections(t *testing.T) {
	if testing.Short() {
		t.Skip("long")
	}
	s := open(t)
	image := putImage(t, s, "web", "layer")
	bundle, err := s.PutBundle(t.Context(), kiln.Bundle{
		Files:  putTree(t, s, map[string]string{"kiln.hcl": "x", "a/b": "y"}),
		Images: []kiln.BundleImage{{Name: "web", Platform: "linux/amd64", Manifest: image, Debs: []kiln.Digest{put(t, s, "deb")}}},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	inventory := putReferrer(t, s, image, typeInventory, "sbom")
	kept, err := reachable(s, bundle, inventory)
	if err != nil {
		t.Fatal(err)
	}
	for round := range 120 {
		age(t, s, time.Minute)
		kill(t, s.Dir(), bundle, time.Duration(rand.IntN(40000))*time.Microsecond)
		if _, err := s.Index(t.Context()); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		for _, d := range kept {
			if _, err := s.document(d); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
		}
		if _, err := s.Bundle(t.Context(), bundle); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if got := referrers(t, s, image, ""); len(got) != 1 || got[0] != inventory {
			t.Fatalf("round %d: referrers %v", round, got)
		}
	}
	checkIndexedBlobs(t, s)
	age(t, s, 2*abandoned)
	for _, dir := range []string{"tmp"} {
		ageFiles(t, filepath.Join(s.dir, dir), 2*abandoned)
	}
	if _, err := s.Collect(t.Context(), Keep{Roots: []kiln.Digest{bundle}}); err != nil {
		t.Fatal(err)
	}
	left, err := s.blobs(t.Context())
	if err != nil || len(left) != len(kept) {
		t.Errorf("after the last collection %d blobs are left, want %d, %v", len(left), len(kept), err)
	}
	if refs, err := s.references(t.Context()); err != nil || len(refs) != 1 {
		t.Errorf("references are left: %v, %v", refs, err)
	}
	if temp, _ := os.ReadDir(filepath.Join(s.dir, "tmp")); len(temp) != 0 {
		t.Errorf("%d temporary files are left", len(temp))
	}
}

// kill starts a worker and kills it that long after it is ready.
func kill(t *testing.T, dir string, keep kiln.Digest, after time.Duration) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "KILN_STORE_WORKER="+dir, "KILN_STORE_KEEP="+string(keep))
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 16)); err != nil {
		t.Fatalf("worker: %v %s", err, said.String())
	}
	<-time.After(after)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	// It was killed: the error says just that, unless it had ended before.
	if err := cmd.Wait(); err != nil && !strings.Contains(err.Error(), "killed") {
		t.Fatalf("worker: %v %s", err, said.String())
	}
}

// reachable lists what a collection that keeps the roots must not touch.
func reachable(s *Store, roots ...kiln.Digest) ([]kiln.Digest, error) {
	m := s.newMarks()
	for _, d := range roots {
		if err := m.root(d); err != nil {
			return nil, err
		}
	}
	all := make([]kiln.Digest, 0, len(m.set))
	for d := range m.set {
		all = append(all, d)
	}
	return all, nil
}

// checkIndexedBlobs demands that whatever index.json names is there.
func checkIndexedBlobs(t *testing.T, s *Store) {
	t.Helper()
	index, err := s.Index(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range index.Manifests {
		if !s.Has(kiln.Digest(e.Digest)) {
			t.Errorf("index.json names %s, which is not there", e.Digest)
		}
	}
}

func ageFiles(t *testing.T, dir string, by time.Duration) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	then := time.Now().Add(-by)
	for _, e := range entries {
		if err := os.Chtimes(filepath.Join(dir, e.Name()), then, then); err != nil {
			t.Fatal(err)
		}
	}
}
