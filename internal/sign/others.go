package sign

import (
	"context"
	"crypto/ecdsa"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"slices"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
)

// Others are public keys of others, by name: a signature by one of a name's keys
// says who made an image. It lets nothing run by itself, and no such key ever
// counts for what Kiln signs.
type Others map[string][]*ecdsa.PublicKey

// Endorsement is a signature of others: a Sigstore bundle, or payload and
// signature of the older form. Nothing of it is believed before it is verified.
type Endorsement struct {
	Bundle             []byte
	Payload, Signature []byte
	// Path are indexes, from the one that was signed to the one that names the
	// image; none where the image itself was signed.
	Path [][]byte
}

// The form in which an endorsement is kept beside an image.
const (
	endorsementType = "application/vnd.kiln.endorsement.v1+json"
	pathLayerType   = ocispec.MediaTypeImageIndex
)

const (
	// maxPublic bounds the public keys of one name.
	maxPublic = 20
	maxSimple = 64 << 10 // bytes of a payload of the older form
	maxPath   = 4        // indexes within indexes
)

// ParsePublics reads public keys of ECDSA over P-256 in PEM, one after the other.
func ParsePublics(text []byte) ([]*ecdsa.PublicKey, error) {
	var out []*ecdsa.PublicKey
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		key, err := ParsePublic(pem.EncodeToMemory(block))
		if err != nil {
			return nil, fmt.Errorf("key %d: %w", len(out)+1, err)
		}
		if out = append(out, key); len(out) > maxPublic {
			return nil, fmt.Errorf("it has more than %d keys", maxPublic)
		}
	}
	if len(out) == 0 {
		return nil, errors.New("it has no PUBLIC KEY in PEM")
	}
	return out, nil
}

// CheckOthers refuses keys that sign here: what they sign is what is made here,
// and says nothing of others.
func (s *Signer) CheckOthers(others Others) error {
	for _, name := range slices.Sorted(maps.Keys(others)) {
		for _, key := range others[name] {
			id, _, err := describe(key)
			if err != nil {
				return err
			}
			if slices.ContainsFunc(s.Keys(), func(k Key) bool { return k.ID == id }) {
				return kiln.Errorf(kiln.CodeInvalid, "name the public key of somebody else", "trust %q: %s is a key of this control plane itself", name, short(id))
			}
		}
	}
	return nil
}

// SetOthers exchanges the keys of others.
func (s *Signer) SetOthers(others Others) {
	rings := map[string]*keys{}
	for name, all := range others {
		k := &keys{}
		for _, key := range all {
			if id, _, err := describe(key); err == nil {
				k.trusted = append(k.trusted, trusted{id, key})
			}
		}
		rings[name] = k
	}
	s.others.Store(&rings)
}

// Others are the names of those whose keys are known, sorted.
func (s *Signer) Others() []string { return slices.Sorted(maps.Keys(*s.others.Load())) }

// Endorsed are the names of others whose signatures of an image are kept, sorted.
func (s *Signer) Endorsed(ctx context.Context, image kiln.Digest) ([]string, error) {
	all, err := s.store.Referrers(ctx, image, endorsementType)
	if err != nil {
		return nil, fmt.Errorf("read who signed %s: %w", image.Short(), err)
	}
	if len(all) > maxReferrers {
		return nil, kiln.Errorf(kiln.CodeRefused, "remove those that strangers pushed", "%s has %d signatures of others, more than %d", image.Short(), len(all), maxReferrers)
	}
	names := map[string]bool{}
	for _, d := range all {
		e, err := s.endorsement(ctx, kiln.Digest(d.Digest))
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			continue // what cannot be read proves nothing
		}
		for _, name := range s.by(ctx, e, image) {
			names[name] = true
		}
	}
	return slices.Sorted(maps.Keys(names)), nil
}

// Endorse returns the names of others, sorted, who made signatures of an image.
// With keep those that count are kept beside the image, the rest never is.
func (s *Signer) Endorse(ctx context.Context, image kiln.Digest, found []Endorsement, keep bool) ([]string, error) {
	names := map[string]bool{}
	for _, e := range found {
		by := s.by(ctx, e, image)
		for _, name := range by {
			names[name] = true
		}
		if keep && len(by) > 0 {
			if _, err := s.store.PutReferrer(ctx, image, e.referrer()); err != nil {
				return nil, fmt.Errorf("keep who signed %s: %w", image.Short(), err)
			}
		}
	}
	return slices.Sorted(maps.Keys(names)), nil
}

// by are the names of those who made an endorsement of an image.
func (s *Signer) by(ctx context.Context, e Endorsement, image kiln.Digest) []string {
	signed, err := e.signed(image)
	if err != nil {
		return nil
	}
	var out []string
	for name, k := range *s.others.Load() {
		if k.endorses(ctx, e, signed) {
			out = append(out, name)
		}
	}
	return out
}

// endorses says whether one of the keys signed a manifest, and nothing else of it
// than that it is signed.
func (k *keys) endorses(ctx context.Context, e Endorsement, signed kiln.Digest) bool {
	if e.Bundle != nil {
		o, err := k.open(ctx, e.Bundle)
		return err == nil && o.PredicateType == PredicateSignature && o.about(signed) == nil
	}
	if len(e.Payload) > maxSimple || simplyAbout(e.Payload) != signed {
		return false
	}
	_, ok := k.signer(e.Payload, e.Signature)
	return ok
}

// simplyAbout is the manifest that a payload of the older form is about; empty
// for what is none.
func simplyAbout(payload []byte) kiln.Digest {
	var p struct {
		Critical struct {
			Image struct {
				Digest kiln.Digest `json:"docker-manifest-digest"`
			} `json:"image"`
			Type string `json:"type"`
		} `json:"critical"`
	}
	if one(payload, &p) != nil || p.Critical.Type != simpleKind {
		return ""
	}
	d, err := kiln.ParseDigest(string(p.Critical.Image.Digest))
	if err != nil {
		return ""
	}
	return d
}

// signed is the manifest that must have been signed for the endorsement to be
// about an image: its own, or the index at the beginning of a path to it.
func (e Endorsement) signed(image kiln.Digest) (kiln.Digest, error) {
	if len(e.Path) > maxPath {
		return "", malformed("indexes are nested more than %d deep", maxPath)
	}
	for _, raw := range slices.Backward(e.Path) {
		var index struct {
			Manifests []struct {
				Digest kiln.Digest `json:"digest"`
			} `json:"manifests"`
			Config json.RawMessage `json:"config"`
			Layers json.RawMessage `json:"layers"`
		}
		if err := one(raw, &index); err != nil {
			return "", malformed("the index cannot be read: %w", err)
		}
		named := false
		for _, m := range index.Manifests {
			named = named || m.Digest == image
		}
		// What could be read as an image and as an index is neither.
		if !named || index.Config != nil || index.Layers != nil {
			return "", malformed("it is no index of %s", image.Short())
		}
		image = kiln.DigestOf(raw)
	}
	return image, nil
}

// referrer is how an endorsement is kept.
func (e Endorsement) referrer() Referrer {
	first := ReferrerLayer{MediaType: BundleType, Content: e.Bundle}
	if e.Bundle == nil {
		first = ReferrerLayer{
			MediaType: simpleLayerType, Content: e.Payload,
			Annotations: map[string]string{simpleAnnotation: base64.StdEncoding.EncodeToString(e.Signature)},
		}
	}
	out := Referrer{ArtifactType: endorsementType, Layers: []ReferrerLayer{first}}
	for _, raw := range e.Path {
		out.Layers = append(out.Layers, ReferrerLayer{MediaType: pathLayerType, Content: raw})
	}
	return out
}

// endorsement reads one that was kept. The store verifies all digests.
func (s *Signer) endorsement(ctx context.Context, referrer kiln.Digest) (Endorsement, error) {
	m, err := s.store.Manifest(ctx, referrer)
	if err != nil {
		return Endorsement{}, err
	}
	if len(m.Layers) == 0 || len(m.Layers) > 1+maxPath || m.Layers[0].Size > maxBundle {
		return Endorsement{}, malformed("it is no signature of others")
	}
	var contents [][]byte
	for _, l := range m.Layers {
		raw, err := s.store.Document(ctx, kiln.Digest(l.Digest))
		if err != nil {
			return Endorsement{}, err
		}
		contents = append(contents, raw)
	}
	e := Endorsement{Path: contents[1:]}
	if m.Layers[0].MediaType == BundleType {
		e.Bundle = contents[0]
		return e, nil
	}
	e.Payload = contents[0]
	e.Signature, err = base64.StdEncoding.DecodeString(m.Layers[0].Annotations[simpleAnnotation])
	return e, err
}
