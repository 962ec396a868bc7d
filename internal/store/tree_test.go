package store

import (
	"cmp"
	"io/fs"
	"slices"
	"testing"
	"testing/fstest"

	"github.com/kilnproject/kiln"
)

func sortTree(t kiln.Tree) {
	slices.SortFunc(t.Entries, func(a, b kiln.TreeEntry) int { return cmp.Compare(a.Path, b.Path) })
}

func TestTreeFS(t *testing.T) {
	s := open(t)
	tree := putTree(t, s, map[string]string{"kiln.hcl": "x", "web/index.html": "hello", "web/css/a.css": "y"})
	link := func(p, to string) {
		tree.Entries = append(tree.Entries, kiln.TreeEntry{Path: p, Mode: fs.ModeSymlink | 0o777, Link: to})
	}
	link("current", "web")
	link("web/up", "../kiln.hcl")
	link("out", "../../etc/passwd")
	link("absolute", "/etc/passwd")
	link("loop", "loop")
	link("web/deep", "../current/css/../index.html")
	sortTree(tree)
	fsys := s.TreeFS(tree)
	for name, want := range map[string]string{
		"kiln.hcl": "x", "current/index.html": "hello", "web/up": "x", "current/css/a.css": "y", "web/deep": "hello",
	} {
		if b, err := fs.ReadFile(fsys, name); err != nil || string(b) != want {
			t.Errorf("read %s: %q, %v", name, b, err)
		}
	}
	for _, name := range []string{"out", "absolute", "loop", "../kiln.hcl", "kiln.hcl/x", "web/none", "/kiln.hcl"} {
		if b, err := fs.ReadFile(fsys, name); err == nil {
			t.Errorf("read %s gave %q", name, b)
		}
	}
	if to, err := fs.ReadLink(fsys, "out"); err != nil || to != "../../etc/passwd" {
		t.Errorf("readlink: %q %v", to, err)
	}
}

func TestTreeFSConforms(t *testing.T) {
	s := open(t)
	tree := putTree(t, s, map[string]string{"kiln.hcl": "x", "web/index.html": "hello", "web/css/a.css": "y"})
	if err := fstest.TestFS(s.TreeFS(tree), "kiln.hcl", "web/index.html", "web/css/a.css"); err != nil {
		t.Error(err)
	}
}

func TestCheckTree(t *testing.T) {
	d := kiln.DigestOf(nil)
	file := func(p string) kiln.TreeEntry { return kiln.TreeEntry{Path: p, Mode: 0o644, Digest: d} }
	link := func(p string) kiln.TreeEntry {
		return kiln.TreeEntry{Path: p, Mode: fs.ModeSymlink | 0o777, Link: "x"}
	}
	dir := func(p string) kiln.TreeEntry { return kiln.TreeEntry{Path: p, Mode: fs.ModeDir | 0o755} }
	good := [][]kiln.TreeEntry{
		nil,
		{file("a")},
		{dir("a"), file("a/b"), link("c")},
		{file("a/b/c"), file("a/d")},
		{dir("a"), file("a-b"), file("a/b")},
	}
	for i, entries := range good {
		if err := CheckTree(kiln.Tree{Entries: entries}); err != nil {
			t.Errorf("good %d: %v", i, err)
		}
	}
	bad := map[string][]kiln.TreeEntry{
		"unsorted":    {file("b"), file("a")},
		"twice":       {file("a"), file("a")},
		"climbs":      {file("../a")},
		"climbs in":   {file("a/../b")},
		"absolute":    {file("/a")},
		"root":        {dir(".")},
		"empty":       {file("")},
		"NUL":         {file("a\x00b")},
		"under file":  {file("a"), file("a/b")},
		"under link":  {link("a"), file("a/b")},
		"deep":        {link("a"), file("a/b/c")},
		"after":       {file("a-"), file("a/b"), file("a/b/c")},
		"setuid":      {{Path: "a", Mode: 0o755 | fs.ModeSetuid, Digest: d}},
		"device":      {{Path: "a", Mode: 0o755 | fs.ModeDevice}},
		"no digest":   {{Path: "a", Mode: 0o644}},
		"bad digest":  {{Path: "a", Mode: 0o644, Digest: "sha256:../x"}},
		"negative":    {{Path: "a", Mode: 0o644, Digest: d, Size: -1}},
		"dir content": {{Path: "a", Mode: fs.ModeDir | 0o755, Digest: d}},
		"no target":   {{Path: "a", Mode: fs.ModeSymlink | 0o777}},
		"file target": {{Path: "a", Mode: 0o644, Digest: d, Link: "x"}},
		"long name":   {file(string(make([]byte, 300)))},
	}
	for name, entries := range bad {
		if CheckTree(kiln.Tree{Entries: entries}) == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}
