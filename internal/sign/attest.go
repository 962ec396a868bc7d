package sign

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"time"

	"github.com/kilnproject/kiln"
)

// The older form of a signature: "simple signing" in a manifest whose tag is
// SignatureTag.
const (
	// SimpleType is the artifact type of the referrer that holds one.
	SimpleType       = "application/vnd.dev.cosign.artifact.sig.v1+json"
	simpleLayerType  = "application/vnd.dev.cosign.simplesigning.v1+json"
	simpleKind       = "cosign container image signature"
	simpleAnnotation = "dev.cosignproject.cosign/signature"
)

// SignatureTag is the tag under which a registry serves the older signature of a
// manifest: the referrer of SimpleType.
func SignatureTag(manifest kiln.Digest) string { return "sha256-" + manifest.Hex() + ".sig" }

// SignImage signs an image or a bundle, in both forms, unless the key that signs
// now has done so before.
func (s *Signer) SignImage(ctx context.Context, manifest kiln.Digest) error {
	if _, err := s.store.Manifest(ctx, manifest); err != nil {
		return fmt.Errorf("sign %s: %w", manifest.Short(), err)
	}
	if _, err := s.attest(ctx, manifest, PredicateSignature, json.RawMessage("{}")); err != nil {
		return err
	}
	if err := s.signSimply(ctx, manifest); err != nil {
		return fmt.Errorf("sign %s: %w", manifest.Short(), err)
	}
	return nil
}

// Attest signs what a predicate says of a manifest and returns the referrer.
// What the key that signs now attested before is not attested again. A verdict
// and a provenance have methods of their own.
func (s *Signer) Attest(ctx context.Context, about kiln.Digest, kind PredicateType, predicate json.RawMessage) (kiln.Digest, error) {
	switch kind {
	case PredicateSignature, PredicateVerdict, PredicateProvenance, "":
		return "", kiln.Errorf(kiln.CodeInternal, "", "attest %s: %q is not attested this way", about.Short(), kind)
	default:
		return s.attest(ctx, about, kind, predicate)
	}
}

func (s *Signer) attest(ctx context.Context, about kiln.Digest, kind PredicateType, predicate json.RawMessage) (kiln.Digest, error) {
	payload, err := payloadOf(about, kind, predicate)
	if err != nil {
		return "", err
	}
	k := s.images.current()
	before, err := s.read(ctx, k, about)
	if err != nil {
		return "", err
	}
	for _, b := range before {
		if b.err == nil && b.key == k.active().ID && b.payload == kiln.DigestOf(payload) {
			return b.referrer, nil
		}
	}
	raw, err := k.seal(ctx, payload)
	if err != nil {
		return "", fmt.Errorf("attest %s of %s: %w", kind, about.Short(), err)
	}
	referrer, err := s.store.PutReferrer(ctx, about, Referrer{
		ArtifactType: BundleType,
		Annotations:  map[string]string{contentAnnotation: "dsse-envelope", predicateAnnotation: string(kind)},
		Layers:       []ReferrerLayer{{MediaType: BundleType, Content: raw}},
	})
	if err != nil {
		return "", fmt.Errorf("attest %s of %s: %w", kind, about.Short(), err)
	}
	return referrer, nil
}

// AttestVerdict signs a verdict, which takes the place of the image's earlier
// ones. One that says the same as the newest is not signed again. Where the
// clock was set back since, the verdict gets a time just after the newest, so
// that it counts.
func (s *Signer) AttestVerdict(ctx context.Context, v kiln.Verdict) (kiln.Digest, error) {
	k := s.images.current()
	before, err := s.read(ctx, k, v.Image)
	if err != nil {
		return "", err
	}
	if v.At.IsZero() {
		v.At = s.now()
	}
	v.At = v.At.UTC().Round(0)
	if newest := newestVerdict(before); newest != nil {
		if newest.key == k.active().ID && sameJudgement(*newest.verdict, v) {
			return newest.referrer, nil
		}
		if !v.At.After(newest.verdict.At) {
			v.At = newest.verdict.At.Add(time.Nanosecond)
		}
	}
	predicate, err := json.Marshal(v)
	if err != nil {
		return "", fmt.Errorf("attest verdict: %w", err)
	}
	return s.attest(ctx, v.Image, PredicateVerdict, predicate)
}

// sameJudgement compares verdicts but for their time.
func sameJudgement(a, b kiln.Verdict) bool {
	a.At, b.At = time.Time{}, time.Time{}
	return kiln.DigestJSON(a) == kiln.DigestJSON(b)
}

// simplePayload is what the older form signs (containers/image,
// docs/containers-signature.5.md).
func simplePayload(manifest kiln.Digest) ([]byte, error) {
	type image struct {
		Digest kiln.Digest `json:"docker-manifest-digest"`
	}
	type name struct {
		Reference string `json:"docker-reference"`
	}
	type critical struct {
		Identity name   `json:"identity"`
		Image    image  `json:"image"`
		Type     string `json:"type"`
	}
	return json.Marshal(struct {
		Critical critical       `json:"critical"`
		Optional map[string]any `json:"optional"`
	}{critical{name{identity}, image{manifest}, simpleKind}, nil})
}

// signSimply signs in the older form.
func (s *Signer) signSimply(ctx context.Context, manifest kiln.Digest) error {
	payload, err := simplePayload(manifest)
	if err != nil {
		return err
	}
	k := s.images.current()
	found, err := s.store.Referrers(ctx, manifest, SimpleType)
	if err != nil {
		return err
	}
	for _, d := range found {
		if s.hasSimple(ctx, k, manifest, kiln.Digest(d.Digest), payload) {
			return nil
		}
	}
	signed, err := k.sign(payload)
	if err != nil {
		return err
	}
	_, err = s.store.PutReferrer(ctx, manifest, Referrer{
		ArtifactType: SimpleType,
		Layers: []ReferrerLayer{{
			MediaType: simpleLayerType, Content: payload,
			Annotations: map[string]string{simpleAnnotation: base64.StdEncoding.EncodeToString(signed)},
		}},
	})
	return err
}

// SimpleSignature returns the referrer that holds the older signature of a
// manifest: by the key that signs now, else by the newest that is trusted. The
// error matches kiln.ErrNotFound where there is none.
func (s *Signer) SimpleSignature(ctx context.Context, manifest kiln.Digest) (kiln.Digest, error) {
	payload, err := simplePayload(manifest)
	if err != nil {
		return "", err
	}
	k := s.images.current()
	found, err := s.store.Referrers(ctx, manifest, SimpleType)
	if err != nil {
		return "", err
	}
	best, rank := kiln.Digest(""), len(k.trusted)
	for _, d := range found {
		id, ok := s.simpleBy(ctx, k, manifest, kiln.Digest(d.Digest), payload)
		if at := k.rank(id); ok && at >= 0 && at < rank {
			best, rank = kiln.Digest(d.Digest), at
		}
	}
	if best == "" {
		return "", kiln.Errorf(kiln.CodeNotFound, "bake it again: what Kiln bakes it signs", "%s has no signature in the older form", manifest.Short())
	}
	return best, nil
}

// hasSimple says whether a referrer is the older signature of a manifest by the
// key that signs now.
func (s *Signer) hasSimple(ctx context.Context, k *keys, manifest, referrer kiln.Digest, payload []byte) bool {
	id, ok := s.simpleBy(ctx, k, manifest, referrer, payload)
	return ok && id == k.active().ID
}

// simpleBy returns the id of the trusted key that made a referrer an older
// signature of a manifest; false where none did.
func (s *Signer) simpleBy(ctx context.Context, k *keys, manifest, referrer kiln.Digest, payload []byte) (string, bool) {
	at := place{manifest, referrer}
	if known, ok := s.seen.get(at); ok {
		return known.key, known.err == nil && k.trusts(known.key)
	}
	m, err := s.store.Manifest(ctx, referrer)
	if err != nil || len(m.Layers) != 1 || kiln.Digest(m.Layers[0].Digest) != kiln.DigestOf(payload) {
		return "", false
	}
	signed, err := base64.StdEncoding.DecodeString(m.Layers[0].Annotations[simpleAnnotation])
	if err != nil {
		return "", false
	}
	if _, err := s.store.Document(ctx, kiln.DigestOf(payload)); err != nil {
		return "", false // damaged, or gone: it is put again
	}
	id, ok := k.signer(payload, signed)
	if ok {
		s.seen.put(at, finding{referrer: referrer, key: id})
	}
	return id, ok
}
