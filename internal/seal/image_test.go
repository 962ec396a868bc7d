package seal

import (
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/erofs/go-erofs"
	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
)

func diskBytes(t testing.TB, f *os.File) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// buildOnce seals an image into a new file and returns its digest.
func buildOnce(t testing.TB, store folder, manifest kiln.Digest, points []string) (kiln.Digest, string) {
	t.Helper()
	dir := t.TempDir()
	out, err := os.Create(filepath.Join(dir, "image"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	if _, err := build(t.Context(), Options{Dir: dir, Store: store, Limits: DefaultLimits()}, manifest, points, out); err != nil {
		t.Fatal(err)
	}
	d, _, err := hashFile(t.Context(), out)
	if err != nil {
		t.Fatal(err)
	}
	return d, out.Name()
}

func TestSameImageSameBytes(t *testing.T) {
	store := folder(t.TempDir())
	var entries []entry
	for i := range 300 {
		e := file(fmt.Sprintf("d%d/f%d", i%7, i), fmt.Sprint("content ", i))
		e.xattrs = map[string]string{"user.b": "2", "user.a": "1", "user.c": "3"}
		entries = append(entries, e)
		if i%10 == 0 {
			entries = append(entries, hardlink(fmt.Sprintf("links/l%d", i), e.name))
		}
	}
	manifest := store.image(t, layer(t, entries...), layer(t, file("d1/.wh..wh..opq", ""), file("d1/x", "x")))
	points, err := cleanPoints([]string{"/b", "/a"})
	if err != nil {
		t.Fatal(err)
	}
	first, _ := buildOnce(t, store, manifest, points)
	for range 5 {
		if again, _ := buildOnce(t, store, manifest, points); again != first {
			t.Fatalf("%s, then %s", first, again)
		}
	}
	if other, _ := buildOnce(t, store, manifest, append(points, "/c")); other == first {
		t.Error("mount points make no difference")
	}
}

func TestKey(t *testing.T) {
	d := kiln.DigestOf(nil)
	one, err := KeyOf(d, []string{"/b/", "/a", "/tmp"})
	if err != nil {
		t.Fatal(err)
	}
	if two, err := KeyOf(d, []string{"/a", "/b", "/a"}); err != nil || one != two {
		t.Errorf("order, repeats or standard points matter: %s %s %v", one, two, err)
	}
	if two, _ := KeyOf(d, []string{"/a"}); one == two {
		t.Error("points do not matter")
	}
	for _, p := range []string{"a", "", "/", "/../x", "/a/../b", "/a\x00"} {
		if _, err := KeyOf(d, []string{p}); err == nil {
			t.Errorf("mount point %q was accepted", p)
		}
	}
}

// TestImageReadsBack reads the image with a reader that is not the kernel.
func TestImageReadsBack(t *testing.T) {
	store := folder(t.TempDir())
	manifest := store.image(t, layer(t, file("a/b", "content"), hardlink("a/c", "a/b"), symlink("s", "a/b"), symlink("etc", "/other/etc"), symlink("run", "var/run")))
	points, err := cleanPoints([]string{"/s-dir/x", "/s2"})
	if err != nil {
		t.Fatal(err)
	}
	_, path := buildOnce(t, store, manifest, points)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	img, err := erofs.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a/b", "a/c"} {
		if b, err := fs.ReadFile(img, name); err != nil || string(b) != "content" {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	for _, name := range []string{"other/etc/hosts", "other/etc/resolv.conf", "var/run", "s-dir/x", "s2", "proc", "dev"} {
		if _, err := fs.Stat(img, name); err != nil {
			t.Errorf("mount point: %v", err)
		}
	}
}

func TestMountPointsThatCannotBe(t *testing.T) {
	f, err := flatten(t, DefaultLimits(), layer(t, file("f", "f"), symlink("loop", "loop"), folderAt("etc"), folderAt("etc/hosts"), symlink("etc/resolv.conf", "../run/x")))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"/f", "/f/x", "/loop", "/loop/x", "/etc/hosts"} {
		if _, err := addPoint(f.root, p); err == nil {
			t.Errorf("%s was accepted", p)
		}
	}
	if added, err := addPoint(f.root, "/etc/resolv.conf"); err != nil || !added {
		t.Error(added, err)
	}
	for p, mode := range map[string]uint32{"/tmp": 0o1777, "/data": 0o1777, "/run": 0o755, "/etc": 0o755} {
		added, err := addPoint(f.root, p)
		if n := f.root.children[p[1:]]; err != nil || added != (p != "/etc") || n.mode != unix.S_IFDIR|mode {
			t.Errorf("%s: %v %o %v", p, added, n.mode, err)
		}
	}
	if n := f.root.children["etc"].children["resolv.conf"]; n.kind() != unix.S_IFREG {
		t.Error("a link in the place of a file was not replaced")
	}
}

func TestSparseWriter(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "x"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	w := newSparseWriter(f)
	sum := sha256.New()
	out := io.MultiWriter(w, sum)
	total := int64(0)
	for i := range 400 {
		chunk := make([]byte, (i*7919)%70_000)
		if i%3 == 0 {
			for j := range chunk {
				chunk[j] = byte(i + j)
			}
		}
		n, err := out.Write(chunk)
		if err != nil {
			t.Fatal(err)
		}
		total += int64(n)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(total); err != nil {
		t.Fatal(err)
	}
	got, n, err := hashFile(t.Context(), f)
	if err != nil || n != total || got != digestOf(sum) {
		t.Errorf("%d bytes of %d, %s, %v", n, total, got, err)
	}
}
