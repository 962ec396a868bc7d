package bake_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/bake"
	"github.com/kilnproject/kiln/internal/bake/debian/strip"
	"github.com/kilnproject/kiln/internal/confine"
	"github.com/kilnproject/kiln/internal/store"
)

// needRoot skips tests that run containers unless they were asked for.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 || os.Getenv("KILN_TEST_ROOT") != "1" {
		t.Skip("needs root and KILN_TEST_ROOT=1: it runs containers")
	}
}

const platform = "linux/" + runtime.GOARCH

// shop is a store and a baker over it.
type shop struct {
	t     *testing.T
	store *store.Store
	baker *bake.Baker
	log   *journal
}

// journal collects progress.
type journal struct {
	mu    sync.Mutex
	lines []kiln.Progress
}

func (j *journal) add(p kiln.Progress) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, p)
}

func (j *journal) text() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	var b strings.Builder
	for _, p := range j.lines {
		b.WriteString(p.Subject + " | " + p.Step + " | " + p.Message + p.Error + "\n")
	}
	return b.String()
}

func newShop(t *testing.T, change ...func(*bake.Options)) *shop {
	t.Helper()
	return openShop(t, t.TempDir(), change...)
}

func openShop(t *testing.T, dir string, change ...func(*bake.Options)) *shop {
	t.Helper()
	s, err := store.Open(filepath.Join(dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	o := bake.Options{Dir: filepath.Join(dir, "bake"), Store: s, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Worker: confine.Program{Path: os.Args[0]}}
	for _, f := range change {
		f(&o)
	}
	b, err := bake.New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return &shop{t: t, store: s, baker: b, log: &journal{}}
}

// tree puts files into the store. A name ending in "@" is a symbolic link.
func (s *shop) tree(files map[string]string) kiln.Tree {
	s.t.Helper()
	dirs := map[string]bool{}
	var tree kiln.Tree
	for name, content := range files {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			dirs[dir] = true
		}
		if link, ok := strings.CutSuffix(name, "@"); ok {
			tree.Entries = append(tree.Entries, kiln.TreeEntry{Path: link, Mode: fs.ModeSymlink | 0o777, Link: content})
			continue
		}
		d, n, err := s.store.Put(s.t.Context(), strings.NewReader(content), "")
		if err != nil {
			s.t.Fatal(err)
		}
		mode := fs.FileMode(0o644)
		if strings.HasSuffix(name, ".sh") {
			mode = 0o755
		}
		tree.Entries = append(tree.Entries, kiln.TreeEntry{Path: name, Mode: mode, Size: n, Digest: d})
	}
	for dir := range dirs {
		tree.Entries = append(tree.Entries, kiln.TreeEntry{Path: dir, Mode: fs.ModeDir | 0o755})
	}
	slices.SortFunc(tree.Entries, func(a, b kiln.TreeEntry) int { return strings.Compare(a.Path, b.Path) })
	return tree
}

func (s *shop) bake(req kiln.BakeRequest) (kiln.BakeResult, error) {
	s.t.Helper()
	req.Progress = s.log.add
	ctx, cancel := context.WithTimeout(s.t.Context(), 3*time.Minute)
	defer cancel()
	return s.baker.Bake(ctx, req)
}

func (s *shop) mustBake(req kiln.BakeRequest) kiln.BakeResult {
	s.t.Helper()
	res, err := s.bake(req)
	if err != nil {
		var known *kiln.Error
		if errors.As(err, &known) {
			s.t.Logf("evidence:\n%s\nhint: %s", strings.Join(known.Evidence, "\n"), known.Hint)
		}
		s.t.Fatalf("bake: %v\n%s", err, s.log.text())
	}
	return res
}

// golden is a small Debian base, made once for all tests of a run.
var golden struct {
	once  sync.Once
	lock  kiln.Lock
	baked kiln.Baked
}

func goldenImage(name string) kiln.Image {
	return kiln.Image{Name: name, Platform: platform, Debian: &kiln.Debian{Suite: "bookworm", Apt: true, Packages: []string{"ca-certificates"}}}
}

// seeded is a shop of its own whose store holds the golden base and whose
// BuildKit has no cache.
func seeded(t *testing.T, change ...func(*bake.Options)) *shop {
	t.Helper()
	dir := t.TempDir()
	link(t, goldenDir(t), dir)
	return openShop(t, dir, change...)
}

// link gives dir the images and records of another shop's folder.
func link(t *testing.T, from, dir string) {
	t.Helper()
	for _, part := range []string{"store/blobs/sha256", "bake/inputs", "bake/last"} {
		if err := os.MkdirAll(filepath.Join(dir, part), 0o700); err != nil {
			t.Fatal(err)
		}
		names, err := os.ReadDir(filepath.Join(from, part))
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			if err := os.Link(filepath.Join(from, part, n.Name()), filepath.Join(dir, part, n.Name())); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// request asks for one Dockerfile image "web" on the golden base.
func (s *shop) request(files map[string]string) kiln.BakeRequest {
	s.t.Helper()
	return kiln.BakeRequest{
		Images: []kiln.Image{goldenImage("base"), dockerfile(map[string]string{"base": "base"})},
		Lock:   golden.lock,
		Locked: true,
		Tree:   s.tree(files),
	}
}

// goldenDir makes the base in a folder that outlives the test.
func goldenDir(t *testing.T) string {
	t.Helper()
	golden.once.Do(func() {
		s := openShop(t, sharedDir)
		res := s.mustBake(kiln.BakeRequest{Images: []kiln.Image{goldenImage("base")}})
		golden.lock, golden.baked = res.Lock, res.Images["base"]
		t.Logf("golden base in %v, %d bytes, %d packages", golden.baked.Took, golden.baked.Size, len(golden.baked.Debs))
		if err := s.baker.Close(); err != nil {
			t.Fatal(err)
		}
	})
	if golden.baked.Manifest == "" {
		t.Fatal("the golden base could not be made")
	}
	return sharedDir
}

// sharedDir holds the golden base of this run.
var sharedDir string

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == strip.Task { // the worker that the tests start
		if err := confine.Serve(context.Background(), strip.Work); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Getenv("KILN_TEST_BAKE_CHILD") != "" {
		os.Exit(m.Run()) // to be killed: it must not leave a folder
	}
	var err error
	if sharedDir, err = os.MkdirTemp("", "kiln-bake-test-"); err != nil {
		panic(err)
	}
	code := m.Run()
	if err := os.RemoveAll(sharedDir); err != nil {
		code = 1
	}
	os.Exit(code)
}

// dockerfile is the image web, baked from the folder of its name.
func dockerfile(contexts map[string]string) kiln.Image {
	const name = "web"
	return kiln.Image{Name: name, Platform: platform, Dockerfile: &kiln.Dockerfile{Context: name, File: "Dockerfile", Contexts: contexts}}
}
