package sign

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
)

// maker is somebody else: another Kiln, or a pipeline that signs as cosign does.
type maker struct {
	*Signer
	store *shelf
}

func newMaker(t *testing.T) maker {
	t.Helper()
	store := newShelf()
	return maker{open(t, Options{Store: store}), store}
}

func (m maker) others(t *testing.T, name string) Others {
	t.Helper()
	keys, err := ParsePublics([]byte(m.PublicKey()))
	check(t, err)
	return Others{name: keys}
}

// bundle is a signature of a manifest as a bundle, whatever its store has.
func (m maker) bundle(t *testing.T, about kiln.Digest, kind PredicateType) []byte {
	t.Helper()
	payload, err := payloadOf(about, kind, json.RawMessage("{}"))
	check(t, err)
	raw, err := m.images.current().seal(t.Context(), payload)
	check(t, err)
	return raw
}

// simple is one in the older form, as cosign writes it: with the name under which
// it was signed.
func (m maker) simple(t *testing.T, about kiln.Digest, kind string) Endorsement {
	t.Helper()
	payload := fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":"registry.example.com/team/app"},"image":{"docker-manifest-digest":%q},"type":%q},"optional":{"creator":"ci"}}`, about, kind)
	signed, err := m.images.current().sign(payload)
	check(t, err)
	return Endorsement{Payload: payload, Signature: signed}
}

func indexOf(t *testing.T, digests ...kiln.Digest) []byte {
	t.Helper()
	type entry struct {
		MediaType string      `json:"mediaType"`
		Digest    kiln.Digest `json:"digest"`
	}
	var all []entry
	for _, d := range digests {
		all = append(all, entry{ocispec.MediaTypeImageManifest, d})
	}
	raw, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageIndex, "manifests": all})
	check(t, err)
	return raw
}

// TestEndorsements: a signature counts for the one manifest that it was made for,
// or for one that the signed index names, and for nothing else.
func TestEndorsements(t *testing.T) {
	store := newShelf()
	s := open(t, Options{Store: store})
	ci, stranger := newMaker(t), newMaker(t)
	image, another := store.image(t, "a"), store.image(t, "b")
	index, beside := indexOf(t, another, image), indexOf(t, another)
	outer := indexOf(t, kiln.DigestOf(index))
	both := []byte(strings.Replace(string(index), `{`, `{"layers":[],`, 1))
	s.SetOthers(ci.others(t, "ci"))
	simple := ci.simple(t, image, simpleKind)
	flipped := slices.Clone(simple.Signature)
	flipped[len(flipped)-1] ^= 1
	swapped := []byte(strings.Replace(string(ci.bundle(t, another, PredicateSignature)), payloadIn(t, ci.bundle(t, another, PredicateSignature)), payloadIn(t, ci.bundle(t, image, PredicateSignature)), 1))
	about := func(raw []byte) kiln.Digest { return kiln.DigestOf(raw) }
	tests := map[string]struct {
		e    Endorsement
		want bool
	}{
		"bundle":                          {Endorsement{Bundle: ci.bundle(t, image, PredicateSignature)}, true},
		"older form":                      {simple, true},
		"bundle of the index":             {Endorsement{Bundle: ci.bundle(t, about(index), PredicateSignature), Path: [][]byte{index}}, true},
		"older form of the index":         {Endorsement{Payload: ci.simple(t, about(index), simpleKind).Payload, Signature: ci.simple(t, about(index), simpleKind).Signature, Path: [][]byte{index}}, true},
		"index of an index":               {Endorsement{Bundle: ci.bundle(t, about(outer), PredicateSignature), Path: [][]byte{outer, index}}, true},
		"by another key":                  {Endorsement{Bundle: stranger.bundle(t, image, PredicateSignature)}, false},
		"older form, by another key":      {stranger.simple(t, image, simpleKind), false},
		"of another image":                {Endorsement{Bundle: ci.bundle(t, another, PredicateSignature)}, false},
		"older form, of another image":    {ci.simple(t, another, simpleKind), false},
		"provenance is no signature":      {Endorsement{Bundle: ci.bundle(t, image, PredicateProvenance)}, false},
		"verdict is no signature":         {Endorsement{Bundle: ci.bundle(t, image, PredicateVerdict)}, false},
		"another kind of simple signing":  {ci.simple(t, image, "atomic container signature"), false},
		"flipped":                         {Endorsement{Payload: simple.Payload, Signature: flipped}, false},
		"payload was swapped":             {Endorsement{Bundle: swapped}, false},
		"nothing":                         {Endorsement{}, false},
		"index without the image":         {Endorsement{Bundle: ci.bundle(t, about(beside), PredicateSignature), Path: [][]byte{beside}}, false},
		"index that is not the signed":    {Endorsement{Bundle: ci.bundle(t, about(beside), PredicateSignature), Path: [][]byte{index}}, false},
		"image is signed, index is not":   {Endorsement{Bundle: ci.bundle(t, image, PredicateSignature), Path: [][]byte{index}}, false},
		"path in the wrong order":         {Endorsement{Bundle: ci.bundle(t, about(outer), PredicateSignature), Path: [][]byte{index, outer}}, false},
		"path with a hole":                {Endorsement{Bundle: ci.bundle(t, about(outer), PredicateSignature), Path: [][]byte{outer}}, false},
		"image and index in one document": {Endorsement{Bundle: ci.bundle(t, about(both), PredicateSignature), Path: [][]byte{both}}, false},
		"no index":                        {Endorsement{Bundle: ci.bundle(t, about([]byte("x")), PredicateSignature), Path: [][]byte{[]byte("x")}}, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			by, err := s.Endorse(t.Context(), image, []Endorsement{test.e}, false)
			check(t, err)
			if (len(by) == 1 && by[0] == "ci") != test.want || !test.want && len(by) > 0 {
				t.Errorf("signed by %q", by)
			}
		})
	}
	if n := len(store.referrers[image]); n != 0 {
		t.Errorf("%d signatures were kept without being asked for", n)
	}
}

func payloadIn(t *testing.T, raw []byte) string {
	t.Helper()
	var b bundle
	check(t, json.Unmarshal(raw, &b))
	return b.Envelope.Payload
}

// TestWhatIsKeptOfOthersIsVerifiedEachTime: what counts is kept, and counts for as
// long as its key is known.
func TestWhatIsKeptOfOthersIsVerifiedEachTime(t *testing.T) {
	store := newShelf()
	s := open(t, Options{Store: store})
	ci, old, stranger := newMaker(t), newMaker(t), newMaker(t)
	image := store.image(t, "a")
	index := indexOf(t, image)
	trust := Others{"ci": slices.Concat(ci.others(t, "x")["x"], old.others(t, "x")["x"]), "team": stranger.others(t, "x")["x"]}
	want := func(names ...string) {
		t.Helper()
		got, err := s.Endorsed(t.Context(), image)
		check(t, err)
		if !slices.Equal(got, names) {
			t.Errorf("signed by %q, want %q", got, names)
		}
	}
	want()
	s.SetOthers(Others{"ci": trust["ci"]})
	found := []Endorsement{{Bundle: old.bundle(t, kiln.DigestOf(index), PredicateSignature), Path: [][]byte{index}}, stranger.simple(t, image, simpleKind)}
	for range 2 {
		by, err := s.Endorse(t.Context(), image, found, true)
		check(t, err)
		if !slices.Equal(by, []string{"ci"}) {
			t.Fatalf("signed by %q", by)
		}
	}
	if n := len(store.referrers[image]); n != 1 {
		t.Errorf("%d are kept, want the one that counts", n)
	}
	want("ci")
	s.SetOthers(trust)
	_, err := s.Endorse(t.Context(), image, found, true)
	check(t, err)
	want("ci", "team")
	s.SetOthers(Others{"team": trust["team"]})
	want("team")
	s.SetOthers(nil)
	want()
	s.SetOthers(trust)
	// It is no signature of Kiln's.
	if _, err := s.Verify(t.Context(), image); !errors.Is(err, ErrUnsigned) {
		t.Errorf("signed by others alone: %v", err)
	}
	// Who may push may push what looks like it.
	m, err := s.store.Manifest(t.Context(), kiln.Digest(store.referrers[image][0].Digest))
	check(t, err)
	layer := kiln.Digest(m.Layers[0].Digest)
	store.blobs[layer][len(store.blobs[layer])/2] ^= 1
	_, err = store.PutReferrer(t.Context(), image, Referrer{ArtifactType: endorsementType, Layers: []ReferrerLayer{{MediaType: "text/plain", Content: []byte("x")}}})
	check(t, err)
	_, err = store.PutReferrer(t.Context(), image, Referrer{ArtifactType: endorsementType})
	check(t, err)
	want("team")
}

func TestOwnKeysAreNobodyElses(t *testing.T) {
	s := open(t, Options{Store: newShelf()})
	own, err := ParsePublics([]byte(s.PublicKey()))
	check(t, err)
	_, err = s.Rotate()
	check(t, err)
	refused(t, s.CheckOthers(Others{"self": own}), kiln.CodeInvalid, "a key of this control plane itself")
	check(t, s.CheckOthers(newMaker(t).others(t, "ci")))
}

func TestParsePublics(t *testing.T) {
	one, two := newMaker(t).PublicKey(), newMaker(t).PublicKey()
	keys, err := ParsePublics([]byte("# of 2026\n" + one + "\n# of 2025\n" + two))
	if err != nil || len(keys) != 2 || keys[0].Equal(keys[1]) {
		t.Errorf("%d keys, %v", len(keys), err)
	}
	for name, text := range map[string]string{
		"empty": "", "no PEM": "ci", "a second of another kind": one + "-----BEGIN CERTIFICATE-----\n" + base64.StdEncoding.EncodeToString([]byte("x")) + "\n-----END CERTIFICATE-----\n",
		"too many": strings.Repeat(one, maxPublic+1),
	} {
		if _, err := ParsePublics([]byte(text)); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}
