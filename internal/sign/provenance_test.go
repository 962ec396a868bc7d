package sign

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnproject/kiln"
)

func build(image kiln.Digest) Build {
	return Build{
		Definition: kiln.DigestOf([]byte("definition")), Source: kiln.Source{Commit: "c0ffee", Branch: "main"},
		Builder: "https://kiln.example/builder", Version: "1.2.3",
		Parameters: map[string]json.RawMessage{"replicas": json.RawMessage("3")},
		Baked: kiln.Baked{Name: "web", Manifest: image, Platform: "linux/amd64", Inputs: kiln.DigestOf([]byte("inputs")), Materials: []kiln.Material{
			{Kind: kiln.MaterialImage, Name: "debian:12", URI: "oci://docker.io/library/debian:12", Digest: kiln.DigestOf([]byte("base"))},
		}},
	}
}

func TestProvenance(t *testing.T) {
	raw, err := Provenance(build(kiln.DigestOf(nil)))
	check(t, err)
	var got, want any
	check(t, json.Unmarshal(raw, &got))
	check(t, json.Unmarshal([]byte(`{
		"buildDefinition": {
			"buildType": "https://kiln.dev/bake/v1",
			"externalParameters": {"image": "web", "platform": "linux/amd64", "definition": "`+string(kiln.DigestOf([]byte("definition")))+`", "branch": "main", "variables": {"replicas": 3}},
			"internalParameters": {"inputs": "`+string(kiln.DigestOf([]byte("inputs")))+`"},
			"resolvedDependencies": [
				{"name": "source", "digest": {"gitCommit": "c0ffee"}},
				{"name": "debian:12", "uri": "oci://docker.io/library/debian:12", "digest": {"sha256": "`+kiln.DigestOf([]byte("base")).Hex()+`"}, "annotations": {"kind": "image"}}
			]
		},
		"runDetails": {"builder": {"id": "https://kiln.example/builder", "version": {"kiln": "1.2.3"}}}
	}`), &want))
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestAnImageKeepsTheProvenanceOfItsBake: neither a later commit nor another
// mirror made it, and a new key signs the same.
func TestAnImageKeepsTheProvenanceOfItsBake(t *testing.T) {
	store := newShelf()
	s := open(t, Options{Store: store})
	image := store.image(t, "a")
	first, err := s.AttestProvenance(t.Context(), build(image))
	check(t, err)
	later := build(image)
	later.Source.Commit = "decaf"
	later.Baked.Materials[0].URI = "oci://mirror.example/debian:12"
	again, err := s.AttestProvenance(t.Context(), later)
	if err != nil || again != first {
		t.Errorf("%s, %v", again, err)
	}
	_, err = s.Rotate()
	check(t, err)
	rotated, err := s.AttestProvenance(t.Context(), later)
	check(t, err)
	got, err := s.Predicates(t.Context(), image, PredicateProvenance)
	check(t, err)
	if rotated == first || len(got) != 2 || string(got[0]) != string(got[1]) {
		t.Errorf("%s", got)
	}
	other := build(image)
	other.Baked.Inputs = kiln.DigestOf([]byte("other"))
	if d, err := s.AttestProvenance(t.Context(), other); err != nil || d == first || d == rotated {
		t.Errorf("made of something else: %s, %v", d, err)
	}
}
