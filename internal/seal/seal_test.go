package seal

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
)

func newSealer(t testing.TB, dir string, store Store) *Sealer {
	t.Helper()
	s, err := New(Options{Dir: filepath.Join(dir, "seal"), MountDir: filepath.Join(dir, "mounts"), Store: store, Worker: worker(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, err := s.Collect(context.Background(), nil)
		keys, _ := s.keys()
		for _, key := range keys {
			err = errors.Join(err, s.discard(key))
		}
		if err := errors.Join(err, s.Close()); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestRoot(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	store := folder(t.TempDir())
	manifest := store.image(t,
		layer(t, folderAt("etc/"), file("etc/passwd", "root"), file("bin/true", strings.Repeat("x", 10_000)).perm(0o4755)),
		layer(t, hardlink("bin/alias", "bin/true"), file("etc/.wh.passwd", "")))
	s := newSealer(t, dir, store)

	var all sync.WaitGroup
	roots := make([]Root, 8)
	for i := range roots {
		all.Go(func() {
			root, err := s.Root(t.Context(), manifest, []string{"/var/cache/app", "/tmp"})
			if err != nil {
				t.Error(err)
			}
			roots[i] = root
		})
	}
	all.Wait()
	root := roots[0]
	for _, other := range roots {
		if other.Dir != root.Dir || other.Seal != root.Seal {
			t.Errorf("callers got different roots: %+v, %+v", root, other)
		}
	}
	if len(root.Config.Entrypoint) != 1 {
		t.Errorf("config: %+v", root.Config)
	}
	var a, b unix.Stat_t
	if err := errors.Join(unix.Stat(root.Dir+"/bin/true", &a), unix.Stat(root.Dir+"/bin/alias", &b)); err != nil {
		t.Fatal(err)
	}
	if a.Ino != b.Ino || a.Nlink != 2 || a.Size != 10_000 || a.Mode != unix.S_IFREG|0o4755 {
		t.Errorf("hard link: %+v, %+v", a, b)
	}
	for _, p := range []string{"var/cache/app", "proc", "sys", "dev", "tmp", "run", "etc/hosts", "etc/resolv.conf", "etc/hostname"} {
		if _, err := os.Lstat(filepath.Join(root.Dir, p)); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Lstat(root.Dir + "/etc/passwd"); err == nil {
		t.Error("a whiteout had no effect")
	}
	if err := os.WriteFile(root.Dir+"/x", nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write: %v", err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(root.Dir, &fs); err != nil || fs.Flags&unix.ST_NOSUID == 0 || fs.Flags&unix.ST_NODEV == 0 {
		t.Errorf("mount flags %x, %v", fs.Flags, err)
	}
	t.Logf("protection %s, %d bytes", root.Protection, root.Size)
}

func TestRootOfMissingImage(t *testing.T) {
	s := newSealer(t, t.TempDir(), folder(t.TempDir()))
	if _, err := s.Root(t.Context(), kiln.DigestOf(nil), nil); err == nil {
		t.Error("sealed an image that is not there")
	}
	if _, err := s.Root(t.Context(), "sha256:../x", nil); !errors.Is(err, kiln.ErrInvalid) {
		t.Errorf("digest that is a path: %v", err)
	}
	if _, err := s.Root(t.Context(), kiln.DigestOf(nil), []string{"../x"}); !errors.Is(err, kiln.ErrInvalid) {
		t.Errorf("mount point that climbs: %v", err)
	}
}
