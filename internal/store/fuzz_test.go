package store

import (
	"encoding/json"
	"io/fs"
	"path"
	"testing"

	"github.com/kilnproject/kiln"
)

// FuzzTree takes any JSON for a tree. What CheckTree accepts can be walked,
// and no link of it leads to what the tree does not name.
func FuzzTree(f *testing.F) {
	d := kiln.DigestOf(nil)
	for _, entries := range [][]kiln.TreeEntry{
		{{Path: "a", Mode: fs.ModeDir | 0o755}, {Path: "a/b", Mode: 0o644, Digest: d}, {Path: "l", Mode: fs.ModeSymlink | 0o777, Link: "a/../a/b"}},
		{{Path: "l", Mode: fs.ModeSymlink | 0o777, Link: "../../x"}, {Path: "m", Mode: fs.ModeSymlink | 0o777, Link: "m/m"}},
	} {
		b, err := json.Marshal(kiln.Tree{Entries: entries})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	s := open(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		var tree kiln.Tree
		if json.Unmarshal(b, &tree) != nil || CheckTree(tree) != nil {
			return
		}
		fsys := s.TreeFS(tree)
		named := map[string]bool{".": true}
		for _, e := range tree.Entries {
			for p := e.Path; !named[p]; p = path.Dir(p) {
				named[p] = true
			}
		}
		seen := 0
		err := fs.WalkDir(fsys, ".", func(p string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			seen++
			if !named[p] {
				t.Fatalf("%q is not of the tree", p)
			}
			if info, err := fs.Stat(fsys, p); err == nil && info.Mode().Type() == fs.ModeSymlink {
				t.Fatalf("%q was not followed", p)
			}
			return nil
		})
		if err != nil || seen != len(named) {
			t.Fatalf("walked %d of %d: %v", seen, len(named), err)
		}
	})
}

// FuzzBundle takes any bytes for a bundle's config. What is accepted is
// canonical.
func FuzzBundle(f *testing.F) {
	f.Add([]byte(`{"files":{"entries":null},"images":null}`))
	f.Add([]byte(`{"files":{"entries":[{"path":"a","mode":420,"digest":"` + string(kiln.DigestOf(nil)) + `"}]},"images":[]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		b, err := decodeBundle("", raw)
		if err == nil && kiln.DigestJSON(b) != kiln.DigestOf(raw) {
			t.Fatal("not canonical")
		}
	})
}
