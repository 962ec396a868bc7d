package sign

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"

	"github.com/kilnproject/kiln"
)

// BundleType is the media type of a Sigstore bundle, and the artifact type of
// the referrer that holds one (sigstore protobuf-specs, bundle v0.3).
const BundleType = "application/vnd.dev.sigstore.bundle.v0.3+json"

// The annotations by which others' tools choose a bundle.
const (
	contentAnnotation   = "dev.sigstore.bundle.content"
	predicateAnnotation = "dev.sigstore.bundle.predicateType"
)

// PredicateType says what a statement says of its subject.
type PredicateType string

// The types of predicates.
const (
	PredicateSignature  PredicateType = "https://sigstore.dev/cosign/sign/v1" // no more than that it is signed
	PredicateProvenance PredicateType = "https://slsa.dev/provenance/v1"
	PredicateCycloneDX  PredicateType = "https://cyclonedx.org/bom"
	PredicateSPDX       PredicateType = "https://spdx.dev/Document"
	PredicateVerdict    PredicateType = "https://kiln.dev/verdict/v1" // a kiln.Verdict
)

const (
	statementType = "https://in-toto.io/Statement/v1"
	payloadType   = "application/vnd.in-toto+json"
)

// MaxPredicate bounds a predicate in bytes, so that its bundle is one that the
// store reads as a document.
const MaxPredicate = 11 << 20

// maxBundle bounds a bundle in bytes: base64 takes 4 bytes for 3.
const maxBundle = MaxPredicate/3*4 + 64<<10

// statement is an in-toto statement about one manifest.
type statement struct {
	Type          string          `json:"_type"`
	Subject       []subject       `json:"subject"`
	PredicateType PredicateType   `json:"predicateType"`
	Predicate     json.RawMessage `json:"predicate"`
}

type subject struct {
	Name   string            `json:"name"`
	Digest map[string]string `json:"digest"`
}

// bundle is a Sigstore bundle as protobuf writes it in JSON.
type bundle struct {
	MediaType string   `json:"mediaType"`
	Material  material `json:"verificationMaterial"`
	Envelope  envelope `json:"dsseEnvelope"`
}

type material struct {
	PublicKey *publicKey `json:"publicKey,omitempty"`
}

// publicKey hints at a key: the bytes of its id, in base64. Nothing is decided by
// it.
type publicKey struct {
	Hint string `json:"hint"`
}

type envelope struct {
	Payload     string      `json:"payload"`
	PayloadType string      `json:"payloadType"`
	Signatures  []signature `json:"signatures"`
}

// signature has no id of its key: verifiers of others compare it with an id of
// their own making, and skip the signature where it is another.
type signature struct {
	Sig string `json:"sig"`
}

// named is the id that a bundle gives of its key, "" for none.
func (b bundle) named() string {
	if b.Material.PublicKey == nil {
		return ""
	}
	raw, err := base64.StdEncoding.DecodeString(b.Material.PublicKey.Hint)
	if err != nil || len(raw) != sha256.Size {
		return ""
	}
	return hex.EncodeToString(raw)
}

// payloadOf is a statement about a manifest, as it is signed.
func payloadOf(about kiln.Digest, kind PredicateType, predicate json.RawMessage) ([]byte, error) {
	var compact bytes.Buffer
	if err := json.Compact(&compact, predicate); err != nil {
		return nil, kiln.Errorf(kiln.CodeInvalid, "", "the predicate %s is not JSON: %w", kind, err)
	}
	payload, err := json.Marshal(statement{
		Type:          statementType,
		Subject:       []subject{{Name: identity, Digest: map[string]string{"sha256": about.Hex()}}},
		PredicateType: kind,
		Predicate:     compact.Bytes(),
	})
	if err == nil && len(payload) > MaxPredicate {
		err = kiln.Errorf(kiln.CodeInvalid, "", "the predicate %s has more than %d bytes", kind, MaxPredicate)
	}
	return payload, err
}

// identity is the name that signatures give to their subject. Where an image
// lies is not signed: it is the same image everywhere.
const identity = "localhost/kiln"

// seal signs a payload and returns its bundle.
func (k *keys) seal(ctx context.Context, payload []byte) ([]byte, error) {
	signer, err := dsse.NewEnvelopeSigner(dsseSigner{k})
	if err != nil {
		return nil, err
	}
	signed, err := signer.SignPayload(ctx, payloadType, payload)
	if err != nil {
		return nil, err
	}
	id := k.active().ID
	raw, err := hex.DecodeString(id)
	if err != nil {
		return nil, fmt.Errorf("id of a key: %w", err)
	}
	return json.Marshal(bundle{
		MediaType: BundleType,
		Material:  material{PublicKey: &publicKey{Hint: base64.StdEncoding.EncodeToString(raw)}},
		Envelope:  envelope{Payload: signed.Payload, PayloadType: signed.PayloadType, Signatures: []signature{{Sig: signed.Signatures[0].Sig}}},
	})
}

// dsseSigner is the key that signs, for package dsse.
type dsseSigner struct{ keys *keys }

func (s dsseSigner) Sign(_ context.Context, data []byte) ([]byte, error) { return s.keys.sign(data) }

func (s dsseSigner) KeyID() (string, error) { return s.keys.active().ID, nil }

// dsseVerifier is one trusted key, for package dsse. It has no id there: ids are
// not signed, and decide nothing.
type dsseVerifier struct{ key *ecdsa.PublicKey }

func (v dsseVerifier) Verify(_ context.Context, data, signature []byte) error {
	if !verifies(v.key, data, signature) {
		return errSignature
	}
	return nil
}
func (v dsseVerifier) KeyID() (string, error)   { return "", errSignature }
func (v dsseVerifier) Public() crypto.PublicKey { return v.key }

var errSignature = errors.New("the signature does not hold")

// Why a bundle does not count; errors.Is finds them in what Verify returns.
var (
	// ErrUnsigned is a manifest that nobody signed.
	ErrUnsigned = errors.New("not signed")
	// ErrOtherKey is a signature by a key that is not trusted.
	ErrOtherKey = errors.New("signed by another key")
	// ErrChanged is a bundle that is not what its signer signed, or that is about
	// something else.
	ErrChanged = errors.New("changed after it was signed")
)

// opened is a bundle whose signature holds.
type opened struct {
	key     string // id of the one that signed
	payload []byte
	statement
}

// open reads a bundle and returns what a trusted key signed in it.
func (k *keys) open(ctx context.Context, raw []byte) (opened, error) {
	b, err := parseBundle(raw)
	if err != nil {
		return opened{}, err
	}
	signed := b.Envelope.Signatures[0]
	e := &dsse.Envelope{Payload: b.Envelope.Payload, PayloadType: b.Envelope.PayloadType, Signatures: []dsse.Signature{{Sig: signed.Sig}}}
	for _, t := range k.trusted {
		verifier, err := dsse.NewEnvelopeVerifier(dsseVerifier{t.key})
		if err != nil {
			return opened{}, err
		}
		_, payload, err := verifier.VerifyAndDecode(ctx, e)
		if err != nil {
			continue
		}
		o := opened{key: t.id, payload: payload}
		o.statement, err = parseStatement(payload)
		return o, err
	}
	named := b.named()
	switch {
	case named == "":
		return opened{}, fmt.Errorf("%w: it does not say which", ErrOtherKey)
	case k.trusts(named): // it says so itself: enough to word the error
		return opened{}, fmt.Errorf("%w: the signature of key %s does not hold for its payload", ErrChanged, short(named))
	}
	return opened{}, fmt.Errorf("%w: %s", ErrOtherKey, short(named))
}

func (k *keys) trusts(id string) bool {
	for _, t := range k.trusted {
		if t.id == id {
			return true
		}
	}
	return false
}

// parseBundle reads a bundle of the only form that counts: one DSSE envelope
// with one signature over an in-toto statement.
func parseBundle(raw []byte) (bundle, error) {
	var b bundle
	if len(raw) > maxBundle {
		return b, malformed("the bundle has more than %d bytes", maxBundle)
	}
	if err := one(raw, &b); err != nil {
		return b, malformed("the bundle cannot be read: %w", err)
	}
	switch {
	case b.MediaType != BundleType:
		return b, malformed("the bundle has the type %.100q", b.MediaType)
	case b.Envelope.PayloadType != payloadType:
		return b, malformed("its payload has the type %.100q", b.Envelope.PayloadType)
	case len(b.Envelope.Signatures) != 1:
		return b, malformed("it has %d signatures instead of one", len(b.Envelope.Signatures))
	}
	return b, nil
}

func parseStatement(payload []byte) (statement, error) {
	var s statement
	if err := one(payload, &s); err != nil {
		return s, malformed("the statement cannot be read: %w", err)
	}
	switch {
	case s.Type != statementType:
		return s, malformed("the statement has the type %.100q", s.Type)
	case len(s.Subject) != 1 || len(s.Subject[0].Digest) != 1:
		return s, malformed("the statement is not about exactly one digest")
	}
	return s, nil
}

// about compares what a statement is about.
func (s statement) about(d kiln.Digest) error {
	if got := s.Subject[0].Digest["sha256"]; got != d.Hex() {
		return fmt.Errorf("%w: it was made for sha256:%.64s", ErrChanged, got)
	}
	return nil
}

// one decodes exactly one JSON value.
func one(raw []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something comes after its end")
	}
	return nil
}

func malformed(format string, args ...any) error {
	return kiln.Errorf(kiln.CodeInvalid, "", format, args...)
}
