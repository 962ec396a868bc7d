package bake

import (
	"testing"

	"github.com/kilnproject/kiln"
)

func TestTheDefinitionIsNoPartOfItsContext(t *testing.T) {
	tree := kiln.Tree{Entries: []kiln.TreeEntry{
		{Path: ".terraform.lock.hcl", Mode: 0o644},
		{Path: "app", Mode: 0o755 | 1<<31},
		{Path: "app/more.hcl", Mode: 0o644},
		{Path: "app/kiln.lock", Mode: 0o644},
		{Path: "kiln.hcl", Mode: 0o644},
		{Path: "kiln.lock", Mode: 0o644},
		{Path: "main.go", Mode: 0o644},
	}}
	whole, err := newFolder(nil, tree, ".")
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{".terraform.lock.hcl": true, "app/more.hcl": true, "app/kiln.lock": true, "main.go": true, "kiln.hcl": false, "kiln.lock": false} {
		if _, got := whole.entry(path); got != want {
			t.Errorf("context .: %s is in it: %v, want %v", path, got, want)
		}
	}
	app, err := newFolder(nil, tree, "app")
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := app.entry("kiln.lock"); !ok {
		t.Error("a lock that is not the definition's was left out")
	}
}
