package seal

import (
	"archive/tar"
	"bytes"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// model is a tree as the simplest thing that can be: contents by path, "/"
// for folders.
type model map[string]string

// drop removes a path and all that is below it.
func (m model) drop(p string) {
	maps.DeleteFunc(m, func(q, _ string) bool { return q == p || strings.HasPrefix(q, p+"/") })
}

// apply puts a layer over the model: first all that it hides, then all that
// it brings. It reports whether some entry would be beneath a file.
func (m model) apply(entries []entry) bool {
	for _, e := range entries {
		for up := path.Dir(e.name); up != "."; up = path.Dir(up) {
			if old, ok := m[up]; ok && old != "/" {
				return false
			}
		}
	}
	for _, e := range entries {
		dir, base := path.Split(e.name)
		dir = path.Clean(dir)
		switch {
		case base == opaqueMarker:
			maps.DeleteFunc(m, func(q, _ string) bool { return strings.HasPrefix(q, dir+"/") })
		case strings.HasPrefix(base, whiteout):
			m.drop(path.Join(dir, strings.TrimPrefix(base, whiteout)))
		}
	}
	for _, e := range entries {
		dir, base := path.Split(e.name)
		for up := path.Clean(dir); up != "."; up = path.Dir(up) {
			m[up] = "/"
		}
		switch {
		case strings.HasPrefix(base, whiteout):
		case e.kind == tar.TypeDir:
			m[e.name] = "/" // over a file or a folder
		default:
			m.drop(e.name)
			m[e.name] = e.body
		}
	}
	return true
}

// contents turns a tree into a model.
func contents(t testing.TB, f *flattener) model {
	t.Helper()
	m := model{}
	var walk func(*node, string)
	walk = func(dir *node, at string) {
		for name, n := range dir.children {
			p := path.Join(at, name)
			if n.isDir() {
				m[p] = "/"
				walk(n, p)
				continue
			}
			b := make([]byte, n.size)
			if _, err := n.content().ReadAt(b, 0); err != nil && n.size > 0 {
				t.Fatal(err)
			}
			m[p] = string(b)
		}
	}
	walk(f.root, "")
	return m
}

// layerGen draws layers of files, folders, whiteouts and opaque markers, in
// any order, each path once.
func layerGen(id int) *rapid.Generator[[]entry] {
	return rapid.Custom(func(t *rapid.T) []entry {
		paths := rapid.SliceOfNDistinct(rapid.Custom(func(t *rapid.T) string {
			return strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c"}), 1, 3).Draw(t, "path"), "/")
		}), 0, 8, rapid.ID[string]).Draw(t, "paths")
		var files, all []entry
		for i, p := range paths {
			switch rapid.IntRange(0, 5).Draw(t, "kind") {
			case 0:
				all = append(all, file(path.Join(path.Dir(p), whiteout+path.Base(p)), ""))
			case 1:
				all = append(all, file(path.Join(p, opaqueMarker), ""))
			case 2, 3:
				all = append(all, folderAt(p))
			default:
				files = append(files, file(p, fmt.Sprintf("%d.%d", id, i)))
			}
		}
		// One path of a layer is not both a file and above something.
		for _, f := range files {
			if !slices.ContainsFunc(paths, func(p string) bool { return strings.HasPrefix(p, f.name+"/") }) {
				all = append(all, f)
			}
		}
		return rapid.Permutation(all).Draw(t, "order")
	})
}

func TestWhiteoutsAgainstAModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		unnamed, err := newSpool(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = unnamed.Close() }()
		f, want := newFlattener(openSpool(unnamed), DefaultLimits()), model{}
		for i := range rapid.IntRange(1, 4).Draw(rt, "layers") {
			entries := layerGen(i).Draw(rt, "layer")
			fits := want.apply(entries)
			err := f.layer(t.Context(), "", bytes.NewReader(layer(t, entries...)))
			if !fits {
				return // what is beneath a file is refused or depends on the order
			}
			if err != nil {
				rt.Fatal(err)
			}
		}
		if err := f.spool.finish(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, contents(t, f)); diff != "" {
			rt.Fatalf("model (-) and tree (+) differ:\n%s", diff)
		}
	})
}

// checkSound fails when a tree has what no tree may have.
func checkSound(t testing.TB, f *flattener) {
	t.Helper()
	entries, depth := 0, 0
	var walk func(*node)
	walk = func(dir *node) {
		depth++
		for name, n := range dir.children {
			entries++
			if name == "" || name == "." || name == ".." || len(name) > maxName || strings.ContainsAny(name, "/\x00") {
				t.Fatalf("name %q", name)
			}
			if n.implied || n.opaque || n.gone != nil {
				t.Fatalf("%q still has the marks of its layer", name)
			}
			switch n.kind() {
			case unix.S_IFDIR:
				walk(n)
			case unix.S_IFREG:
				if n.size < 0 || n.offset < 0 || n.offset+n.size > f.spool.end {
					t.Fatalf("%q is outside of the spool", name)
				}
			case unix.S_IFLNK:
				if n.target == "" || len(n.target) > maxPath || strings.ContainsRune(n.target, 0) {
					t.Fatalf("%q has the target %q", name, n.target)
				}
			case unix.S_IFIFO:
			default:
				t.Fatalf("%q has the mode %o", name, n.mode)
			}
		}
	}
	walk(f.root)
	if limits := fuzzLimits(); entries > limits.Entries {
		t.Fatalf("%d entries", entries)
	}
}
