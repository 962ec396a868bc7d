package store

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/kilnproject/kiln"
)

func TestOriginKeepsItsFiles(t *testing.T) {
	s := open(t)
	o := kiln.Origin{
		Tree: putTree(t, s, map[string]string{"kiln.hcl": "x", "web/Dockerfile": "FROM scratch", "web/a": "a"}),
		Lock: kiln.Lock{References: []kiln.LockedReference{{Reference: "base:1", Index: kiln.DigestOf(nil)}}},
	}
	d, err := s.PutOrigin(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	put(t, s, "plain")
	age(t, s, 2*time.Hour)
	if freed, err := s.Collect(t.Context(), Keep{Roots: []kiln.Digest{d}}); err != nil || freed.Blobs != 1 {
		t.Fatalf("freed %+v, %v", freed, err)
	}
	got, err := s.Origin(t.Context(), d)
	if err != nil || kiln.DigestJSON(got) != kiln.DigestJSON(o) {
		t.Fatalf("%+v %v", got, err)
	}
	age(t, s, 2*time.Hour)
	if freed, err := s.Collect(t.Context(), Keep{}); err != nil || freed.Blobs != 4 {
		t.Fatalf("freed %+v, %v", freed, err)
	}
	if _, err := s.Origin(t.Context(), d); !errors.Is(err, kiln.ErrNotFound) {
		t.Errorf("one that was collected: %v", err)
	}
}

func TestOriginWithoutAFileIsNotThere(t *testing.T) {
	s := open(t)
	gone := kiln.DigestOf([]byte("gone"))
	d, err := s.PutOrigin(t.Context(), kiln.Origin{Tree: kiln.Tree{Entries: []kiln.TreeEntry{{Path: "a", Mode: 0o644, Size: 4, Digest: gone}}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Origin(t.Context(), d); !errors.Is(err, kiln.ErrNotFound) {
		t.Errorf("%v", err)
	}
}

func TestOriginRefuses(t *testing.T) {
	s := open(t)
	climbing := kiln.Tree{Entries: []kiln.TreeEntry{{Path: "../a", Mode: 0o644, Digest: kiln.DigestOf(nil)}}}
	if _, err := s.PutOrigin(t.Context(), kiln.Origin{Tree: climbing}); err == nil {
		t.Error("a tree that climbs was taken")
	}
	var many kiln.Tree
	for i := range 180_000 {
		many.Entries = append(many.Entries, kiln.TreeEntry{Path: fmt.Sprintf("%06d", i), Mode: 0o644, Size: 1, Digest: kiln.DigestOf(nil)})
	}
	if _, err := s.PutOrigin(t.Context(), kiln.Origin{Tree: many}); !errors.Is(err, &kiln.Error{Code: kiln.CodeInvalid}) {
		t.Errorf("too many files: %v", err)
	}
	for name, content := range map[string]string{
		"another document": `{"mediaType":"application/json","tree":{"entries":[]}}`,
		"no document":      "hello",
		"climbs":           `{"mediaType":"` + MediaTypeOrigin + `","tree":{"entries":[{"path":"../a","mode":420,"digest":"` + string(kiln.DigestOf(nil)) + `"}]},"lock":{}}`,
	} {
		if _, err := s.Origin(t.Context(), put(t, s, content)); err == nil || errors.Is(err, kiln.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
