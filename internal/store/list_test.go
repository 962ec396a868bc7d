package store

import (
	"slices"
	"strings"
	"testing"

	"github.com/kilnproject/kiln"
)

func TestListTellsBundlesFromTheRest(t *testing.T) {
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	file, size, err := s.Put(t.Context(), strings.NewReader("service"), "")
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := s.PutBundle(t.Context(), kiln.Bundle{Files: kiln.Tree{Entries: []kiln.TreeEntry{{Path: "kiln.hcl", Mode: 0o644, Size: size, Digest: file}}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	all, index, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ofBundle := 0
	for _, b := range all {
		if b.Bundle {
			ofBundle++
		}
	}
	of := func(d kiln.Digest) Listed {
		return all[slices.IndexFunc(all, func(b Listed) bool { return b.Digest == d })]
	}
	if len(all) != 4 || ofBundle != 3 || !of(bundle).Bundle || of(file) != (Listed{Digest: file, Size: size}) {
		t.Errorf("%+v", all)
	}
	if !strings.Contains(string(index), string(bundle)) {
		t.Errorf("index %s", index)
	}
}
