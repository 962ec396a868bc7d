package seal

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
)

// setImmutable sets or clears chattr's i.
func setImmutable(t *testing.T, path string, on bool) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		t.Skipf("file system without flags: %v", err)
	}
	flags &^= immutableFlag
	if on {
		flags |= immutableFlag
	}
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags); err != nil {
		t.Fatal(err)
	}
}

func mountOf(t *testing.T, dir string) uint64 {
	t.Helper()
	var at unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, dir, 0, unix.STATX_MNT_ID_UNIQUE, &at); err != nil {
		t.Fatal(err)
	}
	return at.Mnt_id
}

func TestRestartAdoptsTheMount(t *testing.T) {
	needRoot(t)
	dir, store := t.TempDir(), folder(t.TempDir())
	manifest := store.image(t, layer(t, file("a", "a")))
	one, err := newSealer(t, dir, store).Root(t.Context(), manifest, nil)
	if err != nil {
		t.Fatal(err)
	}
	before := mountOf(t, one.Dir)
	two, err := newSealer(t, dir, store).Root(t.Context(), manifest, nil)
	if err != nil || two.Dir != one.Dir || two.Seal != one.Seal || mountOf(t, two.Dir) != before {
		t.Errorf("mounted again: %+v, %+v, %v", one, two, err)
	}
}

func TestChangedFileIsSealedAgain(t *testing.T) {
	needRoot(t)
	dir, store := t.TempDir(), folder(t.TempDir())
	manifest := store.image(t, layer(t, file("a", "content that is looked for")))
	s := newSealer(t, dir, store)
	one, err := s.Root(t.Context(), manifest, nil)
	if err != nil {
		t.Fatal(err)
	}
	path := s.imagePath(one.Key)
	if err := os.WriteFile(path, nil, 0o600); err == nil && one.Protection != ProtectionNone {
		t.Error("a protected file was opened for writing")
	}
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	setImmutable(t, path, false)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte("evil"), 4096)
	err = errors.Join(err, f.Close(), os.Chtimes(path, before.ModTime(), before.ModTime()))
	if err != nil {
		t.Fatal(err)
	}
	for name, sealer := range map[string]*Sealer{"same daemon": s, "after a restart": newSealer(t, dir, store)} {
		two, err := sealer.Root(t.Context(), manifest, nil)
		if err != nil || two.Seal != one.Seal {
			t.Fatalf("%s: %+v, %v", name, two, err)
		}
		if b, err := os.ReadFile(filepath.Join(two.Dir, "a")); err != nil || string(b) != "content that is looked for" {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
}

func TestUnmountAllLetsGoOfTheFiles(t *testing.T) {
	needRoot(t)
	dir, store := t.TempDir(), folder(t.TempDir())
	manifest := store.image(t, layer(t, file("a", "content that is looked for")))
	s := newSealer(t, dir, store)
	one, err := s.Root(t.Context(), manifest, nil)
	if err != nil {
		t.Fatal(err)
	}
	if one.Protection == ProtectionNone {
		t.Skip("this file system cannot protect files")
	}
	if err := s.UnmountAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	path := s.imagePath(one.Key)
	spare := path + ".spare"
	if err := errors.Join(os.Rename(path, spare), os.Rename(spare, path)); err != nil {
		t.Errorf("the file is still held: %v", err)
	}
	for name, sealer := range map[string]*Sealer{"same daemon": s, "after a restart": newSealer(t, dir, store)} {
		two, err := sealer.Root(t.Context(), manifest, nil)
		if err != nil || two.Seal != one.Seal || two.Protection != one.Protection {
			t.Errorf("%s: %+v, %v", name, two, err)
		}
	}
	if err := os.WriteFile(path, nil, 0o600); err == nil {
		t.Error("the file is not protected again")
	}
	// Changed while it was not protected, it is not believed.
	if err := s.UnmountAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if f, err := os.OpenFile(path, os.O_RDWR, 0); err == nil { // fs-verity stays
		_, err = f.WriteAt([]byte("evil"), 4096)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	three, err := s.Root(t.Context(), manifest, nil)
	if err != nil || three.Seal != one.Seal {
		t.Fatalf("%+v, %v", three, err)
	}
	if b, err := os.ReadFile(filepath.Join(three.Dir, "a")); err != nil || string(b) != "content that is looked for" {
		t.Errorf("%q, %v", b, err)
	}
	if err := s.UnmountAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Errorf("the file cannot be removed: %v", err)
	}
}

func TestForeignMountIsReplaced(t *testing.T) {
	needRoot(t)
	dir, store := t.TempDir(), folder(t.TempDir())
	manifest := store.image(t, layer(t, file("a", "a")))
	s := newSealer(t, dir, store)
	root, err := s.Root(t.Context(), manifest, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", root.Dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Root(t.Context(), manifest, nil); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(root.Dir, "a")); err != nil || string(b) != "a" {
		t.Errorf("%q, %v", b, err)
	}
	if err := s.Unmount(t.Context(), root.Key); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root.Dir, "a")); err == nil {
		t.Error("still mounted after Unmount")
	}
	if _, err := s.Root(t.Context(), manifest, nil); err != nil {
		t.Error(err)
	}
}

func TestCollectKeeps(t *testing.T) {
	needRoot(t)
	dir, store := t.TempDir(), folder(t.TempDir())
	s := newSealer(t, dir, store)
	var roots []Root
	for _, name := range []string{"one", "two"} {
		root, err := s.Root(t.Context(), store.image(t, layer(t, file(name, name))), nil)
		if err != nil {
			t.Fatal(err)
		}
		roots = append(roots, root)
	}
	open, err := os.Open(filepath.Join(roots[1].Dir, "two")) // as an instance would
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = open.Close() }()
	freed, err := s.Collect(t.Context(), []Key{roots[0].Key})
	if err != nil || freed <= 0 || freed > roots[1].Size {
		t.Errorf("freed %d of %d, %v", freed, roots[1].Size, err)
	}
	if _, err := os.Stat(filepath.Join(roots[0].Dir, "one")); err != nil {
		t.Error(err)
	}
	if b := make([]byte, 3); true {
		if _, err := open.ReadAt(b, 0); err != nil || string(b) != "two" {
			t.Errorf("what is open on a collected seal: %q, %v", b, err)
		}
	}
	for _, p := range []string{s.imagePath(roots[1].Key), s.recordPath(roots[1].Key), s.mountRecordPath(roots[1].Key), s.mountDir(roots[1].Key)} {
		if _, err := os.Lstat(p); err == nil {
			t.Errorf("%s is left", p)
		}
	}
	if used, err := s.Usage(); err != nil || used < roots[0].Size {
		t.Errorf("usage %d, %v", used, err)
	}
}

// TestUsageIsWhatTheDiskHolds: zeros of an image are holes of its seal.
func TestUsageIsWhatTheDiskHolds(t *testing.T) {
	s := newSealer(t, t.TempDir(), folder(t.TempDir()))
	if err := os.WriteFile(s.imagePath("hole"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(s.imagePath("hole"), 1<<40); err != nil {
		t.Fatal(err)
	}
	if used, err := s.Usage(); err != nil || used > 1<<20 {
		t.Errorf("usage %d, %v", used, err)
	}
}

func TestLeftoversAreSwept(t *testing.T) {
	needRoot(t)
	dir, store := t.TempDir(), folder(t.TempDir())
	s := newSealer(t, dir, store)
	root, err := s.Root(t.Context(), store.image(t, layer(t, file("a", "a"))), nil)
	if err != nil {
		t.Fatal(err)
	}
	orphan := s.imagePath(Key(kiln.DigestOf(nil).Hex()))
	if err := errors.Join(os.WriteFile(orphan, []byte("x"), 0o600), os.WriteFile(filepath.Join(dir, "seal", ".seal-1"), []byte("x"), 0o600)); err != nil {
		t.Fatal(err)
	}
	setImmutable(t, orphan, true)
	newSealer(t, dir, store)
	entries, err := os.ReadDir(filepath.Join(dir, "seal"))
	if err != nil || len(entries) != 2 {
		t.Errorf("left: %v, %v", entries, err)
	}
	if _, err := os.Stat(s.imagePath(root.Key)); err != nil {
		t.Error(err)
	}
}

func TestLoopDevice(t *testing.T) {
	needRoot(t)
	store := folder(t.TempDir())
	_, path := buildOnce(t, store, store.image(t, layer(t, file("a", "a"))), nil)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	at := t.TempDir()
	if err := mountLoop(f, at); err != nil {
		t.Skipf("no loop devices: %v", err)
	}
	defer func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Error(err)
		}
	}()
	if b, err := os.ReadFile(filepath.Join(at, "a")); err != nil || string(b) != "a" {
		t.Errorf("%q, %v", b, err)
	}
}

// TestMountOnTmpfs seals on a file system whose files cannot be mounted.
func TestMountOnTmpfs(t *testing.T) {
	needRoot(t)
	dir, store := t.TempDir(), folder(t.TempDir())
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	root, err := newSealer(t, dir, store).Root(t.Context(), store.image(t, layer(t, file("a", "a"))), nil)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(root.Dir, "a")); err != nil || string(b) != "a" {
		t.Errorf("%q, %v", b, err)
	}
	source, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(string(source), "\n") {
		if strings.Contains(line, root.Dir) {
			t.Logf("%s; protection %s", line, root.Protection)
		}
	}
}

// TestCallersComeAndGo cancels one of two callers, and then the only one.
func TestCallersComeAndGo(t *testing.T) {
	needRoot(t)
	store := &gate{folder: folder(t.TempDir()), arrived: make(chan struct{}, 8), open: make(chan struct{})}
	manifest := store.image(t, layer(t, file("a", "a")))
	s := newSealer(t, t.TempDir(), store)
	ctx, leave := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() {
		if _, err := s.Root(ctx, manifest, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("the one who left: %v", err)
		}
	})
	<-store.arrived
	leave()
	all.Wait()
	all.Go(func() {
		if _, err := s.Root(t.Context(), manifest, nil); err != nil {
			t.Errorf("the one who came later: %v", err)
		}
	})
	<-store.arrived
	close(store.open)
	all.Wait()
}

// gate is a store whose manifests wait.
type imageConfig = ocispec.Image

type gate struct {
	folder
	arrived, open chan struct{}
}

func (g *gate) Config(ctx context.Context, d kiln.Digest) (c imageConfig, err error) {
	g.arrived <- struct{}{}
	select {
	case <-g.open:
		return g.folder.Config(ctx, d)
	case <-ctx.Done():
		return c, ctx.Err()
	}
}
