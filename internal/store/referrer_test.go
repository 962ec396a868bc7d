package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
)

const (
	typeSignature = "application/vnd.example.signature"
	typeInventory = "application/vnd.example.inventory+json"
)

func putReferrer(t testing.TB, s *Store, subject kiln.Digest, artifactType, content string) kiln.Digest {
	t.Helper()
	d, err := s.PutReferrer(t.Context(), subject, Referrer{
		ArtifactType: artifactType, Annotations: map[string]string{"about": content},
		Layers: []ReferrerLayer{{MediaType: "text/plain", Annotations: map[string]string{"n": "1"}, Content: []byte(content)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func referrers(t testing.TB, s *Store, subject kiln.Digest, artifactType string) []kiln.Digest {
	t.Helper()
	all, err := s.Referrers(t.Context(), subject, artifactType)
	if err != nil {
		t.Fatal(err)
	}
	out := []kiln.Digest{}
	for _, d := range all {
		out = append(out, kiln.Digest(d.Digest))
	}
	return out
}

func TestReferrers(t *testing.T) {
	s := open(t)
	image, other := putImage(t, s, "web", "1"), putImage(t, s, "other", "2")
	signature, inventory := putReferrer(t, s, image, typeSignature, "sig"), putReferrer(t, s, image, typeInventory, "sbom")
	if again := putReferrer(t, s, image, typeSignature, "sig"); again != signature {
		t.Errorf("the same again has another digest: %s, %s", again, signature)
	}
	want := []kiln.Digest{signature, inventory}
	slices.Sort(want)
	if got := referrers(t, s, image, ""); !slices.Equal(got, want) {
		t.Errorf("all: %v, want %v", got, want)
	}
	if got := referrers(t, s, other, ""); len(got) != 0 {
		t.Errorf("of another image: %v", got)
	}
	all, err := s.Referrers(t.Context(), image, typeInventory)
	if err != nil || len(all) != 1 || kiln.Digest(all[0].Digest) != inventory || all[0].ArtifactType != typeInventory ||
		all[0].Annotations["about"] != "sbom" || all[0].MediaType != ocispec.MediaTypeImageManifest {
		t.Errorf("by type: %+v %v", all, err)
	}
	m, err := s.Manifest(t.Context(), inventory)
	if err != nil || kiln.Digest(m.Subject.Digest) != image || m.Config.MediaType != ocispec.MediaTypeEmptyJSON || len(m.Layers) != 1 {
		t.Errorf("manifest: %+v %v", m, err)
	}
	if b, err := s.document(kiln.Digest(m.Layers[0].Digest)); err != nil || string(b) != "sbom" {
		t.Errorf("content: %q %v", b, err)
	}
	if b, err := s.document(kiln.Digest(m.Config.Digest)); err != nil || string(b) != "{}" {
		t.Errorf("config: %q %v", b, err)
	}
	if err := s.Unlink(t.Context(), signature); err != nil {
		t.Fatal(err)
	}
	if got := referrers(t, s, image, ""); !slices.Equal(got, []kiln.Digest{inventory}) {
		t.Errorf("after unlink: %v", got)
	}
}

func TestReferrersOfWhatIsPushed(t *testing.T) {
	s := open(t)
	image := putImage(t, s, "web", "1")
	subject := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: "sha256:" + "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", Size: 3}
	for _, m := range []any{
		ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, Config: ocispec.DescriptorEmptyJSON, Subject: &subject},
		ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, ArtifactType: typeInventory, Manifests: []ocispec.Descriptor{}, Subject: &subject},
	} {
		desc, err := s.putJSON(t.Context(), ocispec.MediaTypeImageManifest, m)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Tag(t.Context(), desc, "", nil); err != nil {
			t.Fatal(err)
		}
	}
	all, err := s.Referrers(t.Context(), kiln.Digest(subject.Digest), "")
	if err != nil || len(all) != 2 {
		t.Fatalf("%+v %v", all, err)
	}
	if got := referrers(t, s, kiln.Digest(subject.Digest), ocispec.MediaTypeEmptyJSON); len(got) != 1 {
		t.Errorf("by the type of the config: %v", got)
	}
	if got := referrers(t, s, kiln.Digest(subject.Digest), typeInventory); len(got) != 1 {
		t.Errorf("an index: %v", got)
	}
	if _, err := s.PutManifest(t.Context(), []byte(strings.Repeat(" ", maxManifest+1))); !errors.Is(err, kiln.ErrInvalid) {
		t.Errorf("a manifest of more than 4 MiB: %v", err)
	}
	bad := `{"schemaVersion":2,"config":{},"layers":[],"subject":{"digest":"sha256:../../x"}}`
	if _, err := s.PutManifest(t.Context(), []byte(bad)); !errors.Is(err, kiln.ErrInvalid) {
		t.Errorf("a subject that climbs: %v", err)
	}
	for name, r := range map[string]Referrer{"no type": {}, "no type of a layer": {ArtifactType: typeInventory, Layers: []ReferrerLayer{{}}}} {
		if _, err := s.PutReferrer(t.Context(), image, r); !errors.Is(err, kiln.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := s.PutReferrer(t.Context(), put(t, s, "plain"), Referrer{ArtifactType: typeInventory}); !errors.Is(err, kiln.ErrInvalid) {
		t.Errorf("of what is no manifest: %v", err)
	}
	if _, err := s.PutReferrer(t.Context(), kiln.DigestOf(nil), Referrer{ArtifactType: typeInventory}); !errors.Is(err, kiln.ErrNotFound) {
		t.Errorf("of what is not there: %v", err)
	}
}

func TestReferrersAreFoundAgain(t *testing.T) {
	s := open(t)
	image := putImage(t, s, "web", "1")
	inventory := putReferrer(t, s, image, typeInventory, "sbom")
	signature := putReferrer(t, s, inventory, typeSignature, "sig")
	check := func(s *Store, when string) {
		t.Helper()
		if got := referrers(t, s, image, ""); !slices.Equal(got, []kiln.Digest{inventory}) {
			t.Errorf("%s: of the image: %v", when, got)
		}
		if got := referrers(t, s, inventory, ""); !slices.Equal(got, []kiln.Digest{signature}) {
			t.Errorf("%s: of the inventory: %v", when, got)
		}
	}
	lose := func() {
		if err := os.RemoveAll(filepath.Join(s.dir, referrersFolder)); err != nil {
			t.Fatal(err)
		}
	}
	lose()
	check(s, "asked for")
	lose()
	again, err := Open(s.Dir())
	if err != nil {
		t.Fatal(err)
	}
	check(again, "opened")
	lose()
	if _, err := s.Collect(t.Context(), Keep{Roots: []kiln.Digest{image}, Grace: time.Nanosecond}); err != nil {
		t.Fatal(err)
	}
	check(s, "collected")
	// Ended before all were listed.
	if err := errors.Join(os.Remove(filepath.Join(s.dir, referrersFolder, referrersWhole)), s.unlink(image, inventory)); err != nil {
		t.Fatal(err)
	}
	check(s, "begun")
}

func TestReferrerIsDamaged(t *testing.T) {
	s := open(t)
	image := putImage(t, s, "web", "1")
	d := putReferrer(t, s, image, typeInventory, "sbom")
	other := putReferrer(t, s, image, typeSignature, "sig")
	path, _ := s.blobPath(d)
	if err := errors.Join(os.Chmod(path, 0o644), os.WriteFile(path, []byte("{}"), 0o644)); err != nil {
		t.Fatal(err)
	}
	for asked, want := range map[string][]kiln.Digest{"": {d, other}, typeSignature: {d, other}, typeInventory: {d}} {
		got, err := s.Referrers(t.Context(), image, asked)
		if err != nil || len(got) != len(want) {
			t.Fatalf("%q: %v %v", asked, got, err)
		}
		for _, one := range got {
			if !slices.Contains(want, kiln.Digest(one.Digest)) || (one.MediaType == "") != (kiln.Digest(one.Digest) == d) {
				t.Errorf("%q: %+v", asked, one)
			}
		}
	}
	if _, err := s.Manifest(t.Context(), d); !errors.Is(err, kiln.ErrInvalid) {
		t.Errorf("damage was not seen: %v", err)
	}
	putReferrer(t, s, image, typeInventory, "sbom")
	if got := referrers(t, s, image, typeInventory); !slices.Equal(got, []kiln.Digest{d}) {
		t.Errorf("not mended: %v", got)
	}
}

func TestReferrersLiveAndDieWithTheirSubject(t *testing.T) {
	s := open(t)
	kept, gone := putImage(t, s, "kept", "1"), putImage(t, s, "gone", "2")
	bundle, err := s.PutBundle(t.Context(), kiln.Bundle{
		Files:  putTree(t, s, map[string]string{"kiln.hcl": "x"}),
		Images: []kiln.BundleImage{{Name: "kept", Platform: "linux/amd64", Manifest: kept}},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	stay := []kiln.Digest{putReferrer(t, s, kept, typeInventory, "sbom"), putReferrer(t, s, bundle, typeSignature, "bundle")}
	stay = append(stay, putReferrer(t, s, stay[0], typeSignature, "sig of sbom"), kiln.DigestOf([]byte("sig of sbom")), kiln.DigestOf([]byte("{}")))
	goes := []kiln.Digest{putReferrer(t, s, gone, typeInventory, "other sbom"), kiln.DigestOf([]byte("other sbom")), gone}
	goes = append(goes, putReferrer(t, s, goes[0], typeSignature, "other sig"))
	age(t, s, 2*time.Hour)
	if _, err := s.Collect(t.Context(), Keep{Roots: []kiln.Digest{bundle}}); err != nil {
		t.Fatal(err)
	}
	for _, d := range stay {
		if !s.Has(d) {
			t.Errorf("%s went, and its subject stayed", d)
		}
	}
	for _, d := range goes {
		if s.Has(d) {
			t.Errorf("%s stayed, and its subject went", d)
		}
	}
	if got := referrers(t, s, kept, ""); !slices.Equal(got, stay[:1]) {
		t.Errorf("of the image: %v", got)
	}
	folders, err := os.ReadDir(filepath.Join(s.dir, referrersFolder))
	if err != nil || len(folders) != 4 { // three subjects, and the word that all are there
		t.Errorf("referrers: %v %v", folders, err)
	}
	all, _, err := s.List(t.Context())
	if err != nil || !slices.ContainsFunc(all, func(l Listed) bool { return l.Digest == stay[1] && l.Bundle }) {
		t.Errorf("the signature is not of the bundle: %+v %v", all, err)
	}
}

// TestReferrersStayWhileTheBudgetLasts keeps a cached image with all that is
// said of it, and lets both go together.
func TestReferrersStayWhileTheBudgetLasts(t *testing.T) {
	s := open(t)
	image := putImage(t, s, "cached", "1")
	inventory := putReferrer(t, s, image, typeInventory, "sbom")
	plain := put(t, s, strings.Repeat("p", 1000))
	age(t, s, 2*time.Hour)
	u, err := s.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Collect(t.Context(), Keep{MaxBytes: u.Bytes - 1000}); err != nil {
		t.Fatal(err)
	}
	path, _ := s.blobPath(inventory)
	if _, err := os.Lstat(path); err != nil || s.Has(plain) {
		t.Errorf("an inventory of a cached image went before a plain blob: %v", err)
	}
	if _, err := s.Collect(t.Context(), Keep{MaxBytes: 1}); err != nil {
		t.Fatal(err)
	}
	if s.Has(inventory) || s.Has(image) {
		t.Error("the image or its inventory stayed")
	}
}

// TestReferrersBesideCollections puts referrers while others collect: what was
// put is found, and a subject that goes takes no referrer of another along.
func TestReferrersBesideCollections(t *testing.T) {
	s := open(t)
	image := putImage(t, s, "web", "1")
	var writers sync.WaitGroup
	for i := range 4 {
		writers.Go(func() {
			for j := range 8 {
				if _, err := s.PutReferrer(t.Context(), image, Referrer{ArtifactType: typeSignature, Annotations: map[string]string{"n": fmt.Sprint(i%2, j)}}); err != nil {
					t.Error(err)
				}
				if _, err := s.Collect(t.Context(), Keep{Roots: []kiln.Digest{image}, Grace: time.Nanosecond}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	if got := referrers(t, s, image, typeSignature); len(got) != 16 {
		t.Errorf("%d referrers, want 16", len(got))
	}
}
