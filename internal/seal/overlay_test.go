package seal

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// mountSealed seals layers without mount points and mounts the result.
func mountSealed(t *testing.T, store folder, layers ...[]byte) (string, error) {
	t.Helper()
	dir := t.TempDir()
	out, err := os.Create(filepath.Join(dir, "image.erofs"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	opt := Options{Dir: dir, Store: store, Limits: DefaultLimits()}
	if _, err := build(t.Context(), opt, store.image(t, layers...), nil, out); err != nil {
		return "", err
	}
	if fsck, err := exec.LookPath("fsck.erofs"); err == nil {
		if b, err := exec.CommandContext(t.Context(), fsck, out.Name()).CombinedOutput(); err != nil {
			t.Errorf("fsck.erofs: %v\n%s", err, b)
		}
	}
	at := filepath.Join(dir, "mnt")
	if err := mountFile(out, at); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Error(err)
		}
	})
	return at, nil
}

// mountOverlay applies layers by containerd's reader, each to an overlayfs
// mount over those below it, and mounts what comes out.
func mountOverlay(t *testing.T, layers ...[]byte) (string, error) {
	t.Helper()
	dir := t.TempDir()
	var lower []string
	mount := func(upper string) string {
		at, work := filepath.Join(dir, "mnt"), filepath.Join(dir, "work-"+filepath.Base(upper))
		for _, d := range []string{at, work, upper} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		data := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", strings.Join(lower, ":"), upper, work)
		if err := unix.Mount("overlay", at, "overlay", 0, data); err != nil {
			t.Fatalf("overlay %s: %v", data, err)
		}
		return at
	}
	empty := filepath.Join(dir, "empty")
	if err := os.Mkdir(empty, 0o755); err != nil {
		t.Fatal(err)
	}
	lower = []string{empty}
	for i, l := range layers {
		upper := filepath.Join(dir, fmt.Sprint(i))
		at := mount(upper)
		_, err := archive.Apply(t.Context(), at, bytes.NewReader(l))
		if err := errors.Join(err, unix.Unmount(at, 0)); err != nil {
			return "", err
		}
		lower = append([]string{upper}, lower...)
	}
	at := mount(filepath.Join(dir, "top"))
	t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Error(err)
		}
	})
	return at, nil
}

// describeTree lists everything that can be seen of a tree, by path.
func describeTree(t *testing.T, root string) map[string]string {
	t.Helper()
	all := map[string]string{}
	inodes := map[uint64][]string{}
	err := filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		s := fmt.Sprintf("mode %o owner %d:%d", st.Mode, st.Uid, st.Gid)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			sum := sha256.Sum256(b)
			s += fmt.Sprintf(" size %d content %s", st.Size, hex.EncodeToString(sum[:4]))
		case unix.S_IFLNK:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			s += " to " + target
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			s += fmt.Sprintf(" time %d.%d", st.Mtim.Sec, st.Mtim.Nsec)
			inodes[st.Ino] = append(inodes[st.Ino], rel)
		}
		all[rel] = s + attributesOf(t, p)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, names := range inodes {
		slices.Sort(names)
		for _, n := range names {
			all[n] += fmt.Sprintf(" names %v", names)
		}
	}
	return all
}

func attributesOf(t *testing.T, p string) string {
	t.Helper()
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(p, buf)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for name := range strings.SplitSeq(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
		if !strings.HasPrefix(name, "user.") {
			continue
		}
		value := make([]byte, 64<<10)
		k, err := unix.Lgetxattr(p, name, value)
		if err != nil {
			t.Fatal(err)
		}
		found[name] = string(value[:k])
	}
	var s strings.Builder
	for _, name := range slices.Sorted(maps.Keys(found)) {
		fmt.Fprintf(&s, " %s=%q", name, found[name])
	}
	return s.String()
}

// trickyImages are layers whose meaning has been got wrong by someone.
func trickyImages(t *testing.T) map[string][][]byte {
	many := []entry{folderAt("many")}
	for i := range 1000 {
		many = append(many, file(fmt.Sprintf("many/file-with-a-rather-long-name-%04d", i), fmt.Sprint(i)))
	}
	base := layer(t, folderAt("usr"), folderAt("usr/lib"), file("usr/lib/a.so", "a"), symlink("lib", "usr/lib"),
		symlink("abs", "/usr/lib"), folderAt("d"), file("d/one", "1"), file("d/two", "2"), folderAt("d/sub"), file("d/sub/x", "x"), file("f", "file"))
	return map[string][][]byte{
		"one layer":                     {base},
		"whiteout of a file":            {base, layer(t, file("d/.wh.one", ""))},
		"whiteout of a folder":          {base, layer(t, file(".wh.d", ""))},
		"whiteout of nothing":           {base, layer(t, file("d/.wh.none", ""), file("none/.wh.x", ""))},
		"whiteout of a symbolic link":   {base, layer(t, file(".wh.lib", ""))},
		"whiteout and again":            {base, layer(t, file(".wh.d", ""), folderAt("d"), file("d/new", "n"))},
		"opaque":                        {base, layer(t, folderAt("d"), file("d/.wh..wh..opq", ""), file("d/new", "n"))},
		"opaque after its own entries":  {base, layer(t, folderAt("d"), file("d/a-new", "n"), folderAt("d/sub"), file("d/.wh..wh..opq", ""))},
		"opaque in a middle layer":      {base, layer(t, folderAt("d"), file("d/.wh..wh..opq", ""), file("d/mid", "m")), layer(t, file("d/top", "t"), file("d/two", "again"))},
		"opaque folder below":           {base, layer(t, folderAt("d"), folderAt("d/sub"), file("d/sub/.wh..wh..opq", ""))},
		"file over folder":              {base, layer(t, file("d", "file now"))},
		"folder over file":              {base, layer(t, folderAt("f"), file("f/in", "i"))},
		"link over folder":              {base, layer(t, symlink("d", "usr"))},
		"folder over link":              {base, layer(t, folderAt("lib"), file("lib/own", "o"))},
		"file over folder, folder back": {base, layer(t, file("d", "file now")), layer(t, folderAt("d"), file("d/new", "n"))},
		"beneath a link":                {base, layer(t, file("lib/b.so", "b"), file("abs/c.so", "c"))},
		"beneath a link to nowhere":     {base, layer(t, symlink("way", "/opt/x")), layer(t, file("way/y", "y"))},
		"whiteout beneath a link":       {base, layer(t, file("lib/.wh.a.so", ""))},
		"beneath links that climb":      {base, layer(t, symlink("up", "../../../../usr/lib")), layer(t, file("up/c.so", "c"))},
		"hard links": {
			layer(t, file("a", strings.Repeat("a", 9000)), hardlink("b", "a"), folderAt("d"), hardlink("d/c", "b"), symlink("s", "a"), entry{name: "s2", link: "s", kind: tar.TypeLink, sec: 3000}),
			layer(t, file("later", "l")),
		},
		"hard link to a lower layer":    {base, layer(t, hardlink("f2", "f"))},
		"hard link through a link":      {base, layer(t, hardlink("a2.so", "lib/a.so"))},
		"hard link and whiteout of one": {layer(t, file("a", "a"), hardlink("b", "a"), hardlink("c", "a")), layer(t, file(".wh.a", ""))},
		"owners and modes": {layer(t, folderAt("d").perm(0o1777).owner(1, 2), file("d/suid", "s").perm(0o4755).owner(70000, 80000),
			file("d/sgid", "s").perm(0o2755), file("d/none", "n").perm(0o100000), entry{name: "d/fifo", kind: tar.TypeFifo, mode: 0o600})},
		"a folder's metadata by the upper": {layer(t, folderAt("d").perm(0o700).owner(1, 1), file("d/x", "x")), layer(t, folderAt("d").perm(0o755).owner(2, 2))},
		"attributes":                       {layer(t, file("a", "a").attr("user.one", "1"), folderAt("d").attr("user.two", strings.Repeat("2", 3000)), file("b", strings.Repeat("b", 5000)).attr("user.bin", "\x00\x01\xff"))},
		"attributes of an upper folder":    {layer(t, folderAt("d").attr("user.low", "1")), layer(t, file("d/x", "x"))},
		"duplicates":                       {layer(t, file("a", "1"), file("a", "22"), folderAt("d"), file("d/x", "x"), folderAt("d").perm(0o700), symlink("a2", "a"), file("a2", "not through the link"))},
		"sizes": {layer(t, file("empty", ""), file("4095", strings.Repeat("x", 4095)), file("4096", strings.Repeat("x", 4096)), file("4097", strings.Repeat("x", 4097)),
			file("4032", strings.Repeat("y", 4032)), file("zeros", strings.Repeat("\x00", 1<<20)), file("mixed", strings.Repeat("\x00", 200_000)+"end"))},
		"names":          {layer(t, file(strings.Repeat("n", 255), "n"), file("sp ace\n\t", "s"), file("ünïcode", "u"), file("bad\xffutf8", "b"), file(".whx", "not a whiteout"), file("./dot/./x", "x"), file("/slash", "s"))},
		"long links":     {layer(t, symlink("l", strings.Repeat("x/", 2000)), symlink("m", strings.Repeat("y", 100)))},
		"many":           {layer(t, many...), layer(t, file("many/.wh.file-with-a-rather-long-name-0500", ""))},
		"implied":        {layer(t, file("x/y/z", "z"))},
		"old times":      {layer(t, entry{name: "old", sec: 1}, entry{name: "far", sec: 1 << 33})},
		"deep":           {layer(t, file(strings.Repeat("d/", 200)+"x", "x"))},
		"link over link": {layer(t, symlink("a", "b"), file("b", "b")), layer(t, file("a", "now a file"))},
	}
}

func TestAgainstOverlayfs(t *testing.T) {
	needRoot(t)
	store := folder(t.TempDir())
	for name, layers := range trickyImages(t) {
		t.Run(strings.NewReplacer("/", "root", ",", "").Replace(name), func(t *testing.T) { compare(t, store, layers...) })
	}
}

func compare(t *testing.T, store folder, layers ...[]byte) {
	t.Helper()
	theirs, theirErr := mountOverlay(t, layers...)
	ours, ourErr := mountSealed(t, store, layers...)
	if theirErr != nil { // it refuses folders that the same layer replaces
		t.Logf("the reference refuses it: %v; sealed: %v", theirErr, ourErr)
		return
	}
	if ourErr != nil {
		t.Fatal(ourErr)
	}
	if diff := cmp.Diff(describeTree(t, theirs), describeTree(t, ours)); diff != "" {
		t.Errorf("overlayfs (-) and seal (+) differ:\n%s", diff)
	}
}

// TestAgainstOverlayfsRandomly does the same with layers made by chance, as
// differs write them: whiteouts first, each path once, parents before what
// they hold.
func TestAgainstOverlayfsRandomly(t *testing.T) {
	needRoot(t)
	if testing.Short() {
		t.Skip("long")
	}
	store := folder(t.TempDir())
	for seed := range uint64(100) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			var layers [][]byte
			var list []string
			for range 2 + r.IntN(3) {
				entries := randomLayer(r)
				for _, e := range entries {
					list = append(list, fmt.Sprintf("%c %s %s", e.kind, e.name, e.link))
				}
				list = append(list, "--")
				layers = append(layers, layer(t, entries...))
			}
			compare(t, store, layers...)
			if t.Failed() {
				t.Log(strings.Join(list, "\n"))
			}
		})
	}
}

func randomLayer(r *rand.Rand) []entry {
	name := func() string { return string(rune('a' + r.IntN(4))) }
	p := func() string {
		parts := []string{name()}
		for r.IntN(2) == 0 && len(parts) < 4 {
			parts = append(parts, name())
		}
		return strings.Join(parts, "/")
	}
	var opaque, white, rest []entry
	seen := map[string]bool{}
	for range r.IntN(8) {
		at := p()
		if seen[at] {
			continue
		}
		seen[at] = true
		switch r.IntN(9) {
		case 0:
			white = append(white, file(filepath.Join(filepath.Dir(at), ".wh."+filepath.Base(at)), ""))
		case 1:
			opaque = append(opaque, folderAt(at), file(at+"/.wh..wh..opq", ""))
		case 2, 3:
			rest = append(rest, folderAt(at).perm(int64(0o700+r.IntN(0o77))))
		case 4:
			rest = append(rest, symlink(at, []string{"", "/", "../"}[r.IntN(3)]+p()))
		default:
			rest = append(rest, file(at, at+fmt.Sprint(r.Int())).owner(r.IntN(100), r.IntN(100)))
		}
	}
	slices.SortFunc(rest, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	depth := func(e entry) int { return strings.Count(e.name, "/") }
	slices.SortStableFunc(white, func(a, b entry) int { return depth(a) - depth(b) })
	return slices.Concat(opaque, white, rest)
}
