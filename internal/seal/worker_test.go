package seal

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/confine"
)

// TestMain is also the worker that the tests start.
func TestMain(m *testing.M) {
	tasks := map[string]confine.Task{Task: Work, lookTask: Receive(look), ListTask: List}
	if len(os.Args) != 2 || tasks[os.Args[1]] == nil {
		os.Exit(m.Run())
	}
	if err := confine.Serve(context.Background(), tasks[os.Args[1]]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// worker is this test's executable as a worker.
func worker(t testing.TB) confine.Program {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return confine.Program{Path: self}
}

// TestWithAndWithoutAWorker: a process of its own makes the same bytes, and
// refuses with the same words.
func TestWithAndWithoutAWorker(t *testing.T) {
	store := folder(t.TempDir())
	try := func(opt Options, manifest kiln.Digest) (kiln.Digest, built, error) {
		opt.Dir, opt.Store, opt.Limits = t.TempDir(), store, DefaultLimits()
		out, err := os.Create(filepath.Join(opt.Dir, "image"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = out.Close() }()
		b, err := build(t.Context(), opt, manifest, []string{"/data"}, out)
		if err != nil {
			return "", b, err
		}
		sum, _, err := hashFile(t.Context(), out)
		if err != nil {
			t.Fatal(err)
		}
		return sum, b, nil
	}
	layers := [][]byte{
		layer(t, folderAt("etc"), file("etc/a", "one"), hardlink("etc/b", "etc/a"), file("c", "three").attr("trusted.x", "1")),
		layer(t, file("etc/.wh.a", ""), file("d", "four").owner(7, 8)),
		layer(t, file("e", "five"), symlink("f", "/e")), // a plain one
	}
	good := store.image(t, layers...)
	here, b, err := try(Options{}, good)
	there, bw, werr := try(Options{Worker: worker(t)}, good)
	if err := errors.Join(err, werr); err != nil {
		t.Fatal(err)
	}
	if here != there || fmt.Sprint(b.outcome) != fmt.Sprint(bw.outcome) || len(b.Dropped.First) != 1 || len(b.Added) == 0 {
		t.Errorf("here %s %v, there %s %v", here, b.outcome, there, bw.outcome)
	}

	bad := store.image(t, layer(t, file("../x", "")))
	_, _, err = try(Options{}, bad)
	_, _, werr = try(Options{Worker: worker(t)}, bad)
	var k, kw *kiln.Error
	if !errors.As(err, &k) || !errors.As(werr, &kw) || k.Message != kw.Message || k.Hint != kw.Hint || k.Code != kw.Code || k.Code != kiln.CodeInvalid {
		t.Errorf("here %v, there %v", err, werr)
	}
}

func TestAnAwayWorkerIsSaid(t *testing.T) {
	store := folder(t.TempDir())
	opt := Options{Dir: t.TempDir(), Store: store, Limits: DefaultLimits(), Worker: confine.Program{Path: "/bin/false"}}
	out, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	_, err = build(t.Context(), opt, store.image(t, layer(t, file("a", ""))), nil, out)
	if k := (*kiln.Error)(nil); !errors.As(err, &k) || k.Code != kiln.CodeFailed {
		t.Errorf("ended without an answer: %v", err)
	}
}
