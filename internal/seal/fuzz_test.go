package seal

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/erofs/go-erofs"

	"github.com/kilnproject/kiln"
)

func fuzzLimits() Limits { return Limits{Entries: 2000, Bytes: 1 << 20, Names: 1 << 20} }

// FuzzTar reads anything as the second layer of an image. Whatever it is, the
// result is a sound tree that can be written and read, or an error for a user.
func FuzzTar(f *testing.F) {
	base := layer(f, folderAt("d"), file("d/f", "f"), symlink("l", "d"), symlink("loop", "loop"), symlink("abs", "/d"))
	f.Add(layer(f, file("d/g", "g"), file("l/h", "h"), hardlink("x", "d/f"), file(".wh.l", "")))
	f.Add(layer(f, file("d/.wh..wh..opq", ""), file("abs/x", "x").attr("user.a", "b"), entry{name: "null", kind: tar.TypeChar}))
	f.Add(layer(f, file("../x", ""), file("loop/x", "")))
	f.Add(layer(f, file(strings.Repeat("long/", 60)+"x", "x"), symlink("s", strings.Repeat("y", 300))))
	f.Fuzz(func(t *testing.T, second []byte) { checkLayers(t, base, second) })
}

// FuzzFlatten reads layers from a small language, so that chance gets past
// the format: lines of a type, a name and a target, "-" between layers.
func FuzzFlatten(f *testing.F) {
	f.Add("d a\nf a/b\n-\nw a/b\nf a/c\n")
	f.Add("l a b\nl b a\n-\nf a/x\n")
	f.Add("f a\nh b a\n-\nw a\nh c b\no .\n")
	f.Add("d d\nl d/up ../../..\n-\nf d/up/d/x\nd d/up\n-\no d/up/d\n")
	f.Add("l x /\n-\nf x/x/x/y\nw x/.\n")
	f.Fuzz(func(t *testing.T, program string) {
		if len(program) > 2000 {
			return
		}
		var layers [][]byte
		for part := range strings.SplitSeq(program, "-\n") {
			layers = append(layers, layerOf(t, part))
		}
		checkLayers(t, layers...)
	})
}

// layerOf makes a tar of what a program says, leaving out what tar cannot say.
func layerOf(t testing.TB, program string) []byte {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for line := range strings.SplitSeq(program, "\n") {
		words := append(strings.SplitN(line, " ", 3), "", "", "")
		h := &tar.Header{Name: words[1], Mode: 0o644, Format: tar.FormatPAX}
		switch words[0] {
		case "d":
			h.Typeflag, h.Name = tar.TypeDir, words[1]+"/"
		case "l":
			h.Typeflag, h.Linkname = tar.TypeSymlink, words[2]
		case "h":
			h.Typeflag, h.Linkname = tar.TypeLink, words[2]
		case "w":
			dir, base := filepath.Split(words[1])
			h.Name = dir + whiteout + base
		case "o":
			h.Name += "/" + opaqueMarker
		case "p":
			h.Typeflag = tar.TypeFifo
		case "f":
			h.Size = int64(len(words[1]))
		default:
			continue
		}
		if err := w.WriteHeader(h); err != nil {
			continue
		}
		if h.Size > 0 {
			if _, err := io.WriteString(w, words[1]); err != nil && !errors.Is(err, tar.ErrWriteTooLong) {
				t.Fatal(err)
			}
		}
	}
	_ = w.Close()
	return out.Bytes()
}

func checkLayers(t *testing.T, layers ...[]byte) {
	f, err := flatten(t, fuzzLimits(), layers...)
	if err != nil {
		if !errors.Is(err, kiln.ErrInvalid) {
			t.Fatalf("not an error for a user: %v", err)
		}
		return
	}
	for _, p := range standardPoints() {
		// A file may be in the way, which is an error and no harm.
		_, _ = addPoint(f.root, filepath.Clean(p))
	}
	f.root.settle()
	checkSound(t, f)
	out, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	if err := writeImage(t.Context(), out, f.root); err != nil {
		t.Fatal(err)
	}
	if err := sameAsImage(f.root, out); err != nil {
		t.Fatal(err)
	}
}

// sameAsImage reads an image back and compares names, types and sizes.
func sameAsImage(root *node, image *os.File) error {
	img, err := erofs.Open(image)
	if err != nil {
		return err
	}
	count := 0
	err = fs.WalkDir(img, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == "." {
			return err
		}
		count++
		n := root
		for part := range strings.SplitSeq(p, "/") {
			if n = n.children[part]; n == nil {
				return fmt.Errorf("%s is only in the image", p)
			}
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		// The reader has its own bits for set-id and sticky.
		if want := (&imageInfo{node: n}).Mode(); info.Mode().Type() != want.Type() || info.Mode().Perm() != want.Perm() {
			return fmt.Errorf("%s has the mode %v, not %v", p, info.Mode(), want)
		}
		if n.size > 0 && info.Size() != n.size {
			return fmt.Errorf("%s has %d bytes, not %d", p, info.Size(), n.size)
		}
		return nil
	})
	if want := countNames(root); err == nil && count != want {
		err = fmt.Errorf("the image has %d names, not %d", count, want)
	}
	return err
}

func countNames(n *node) int {
	count := len(n.children)
	for _, child := range n.children {
		count += countNames(child)
	}
	return count
}
