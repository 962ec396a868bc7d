package sign

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
)

// Proof is what trusted keys have signed about a manifest.
type Proof struct {
	Subject kiln.Digest `json:"subject"`
	// Attestations are all that hold, signatures included, sorted by type, then
	// referrer. There is at least one signature.
	Attestations []Attestation `json:"attestations"`
	// Verdict is the newest; nil where there is none.
	Verdict *kiln.Verdict `json:"verdict,omitempty"`
	// Ignored are referrers that do not count, sorted.
	Ignored []Ignored `json:"ignored,omitempty"`
}

// Attestation is one statement that a trusted key signed.
type Attestation struct {
	PredicateType PredicateType `json:"predicate_type"`
	Key           string        `json:"key"` // its id
	Referrer      kiln.Digest   `json:"referrer"`
}

// Ignored is a referrer that proves nothing, and why.
type Ignored struct {
	Referrer kiln.Digest `json:"referrer"`
	Reason   string      `json:"reason"`
}

// Has says whether something of that type is attested.
func (p Proof) Has(kind PredicateType) bool {
	return slices.ContainsFunc(p.Attestations, func(a Attestation) bool { return a.PredicateType == kind })
}

// MayRun refuses an image whose verdict is missing, or says anything but that
// it passed. A bundle has no verdict.
func (p Proof) MayRun() error {
	if p.Verdict == nil {
		return kiln.Errorf(kiln.CodeRefused, "kiln up judges it", "image %s has no verdict of its gate", p.Subject.Short())
	}
	if p.Verdict.Outcome == kiln.OutcomePass {
		return nil
	}
	refused := kiln.Errorf(kiln.CodeRefused, cmp.Or(p.Verdict.Hint, "kiln scan shows what is wrong"), "image %s did not pass its gate: %s", p.Subject.Short(), p.Verdict.Outcome)
	refused.Evidence = slices.Clone(p.Verdict.Reasons)
	return refused
}

// Verify returns what is proven of a manifest, and fails where no trusted key
// signed exactly that digest: with ErrUnsigned, ErrOtherKey or ErrChanged in a
// refusal. Each referrer is read once.
func (s *Signer) Verify(ctx context.Context, about kiln.Digest) (Proof, error) {
	found, err := s.read(ctx, s.images.current(), about)
	if err != nil {
		return Proof{}, err
	}
	p := Proof{Subject: about}
	for _, f := range found {
		if f.err != nil {
			p.Ignored = append(p.Ignored, Ignored{f.referrer, f.err.Error()})
			continue
		}
		p.Attestations = append(p.Attestations, Attestation{f.kind, f.key, f.referrer})
	}
	slices.SortFunc(p.Attestations, func(a, b Attestation) int {
		return cmp.Or(cmp.Compare(a.PredicateType, b.PredicateType), cmp.Compare(a.Referrer, b.Referrer))
	})
	if newest := newestVerdict(found); newest != nil {
		v := *newest.verdict
		p.Verdict = &v
	}
	if !p.Has(PredicateSignature) {
		return Proof{}, unproven(about, found)
	}
	return p, nil
}

// unproven says why nothing counts as a signature: what was tampered with
// before what is only a stranger's.
func unproven(about kiln.Digest, found []finding) error {
	reason, hint := ErrUnsigned, "bake it again: what Kiln bakes it signs"
	var evidence []string
	for _, f := range found {
		if f.err == nil {
			evidence = append(evidence, fmt.Sprintf("%s: a %s is no signature of the image", f.referrer.Short(), f.kind))
			continue
		}
		evidence = append(evidence, f.referrer.Short()+": "+f.err.Error())
		switch {
		case errors.Is(f.err, ErrChanged):
			reason, hint = ErrChanged, "find out who changed it; kiln up judges and signs it again"
		case errors.Is(f.err, ErrOtherKey) && !errors.Is(reason, ErrChanged):
			reason, hint = ErrOtherKey, "bake it again here, or restore the keys that signed it from a backup"
		}
	}
	e := kiln.Errorf(kiln.CodeRefused, hint, "%s does not run: %w", about.Short(), reason)
	e.Evidence = evidence[:min(len(evidence), 10)]
	return e
}

// Predicates returns what trusted keys attested of a manifest, of one type; those
// of the key that signs now come first. It is empty where there is nothing.
func (s *Signer) Predicates(ctx context.Context, about kiln.Digest, kind PredicateType) ([]json.RawMessage, error) {
	k := s.images.current()
	found, err := s.read(ctx, k, about)
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(found, func(a, b finding) int {
		return cmp.Or(cmp.Compare(k.rank(a.key), k.rank(b.key)), cmp.Compare(a.referrer, b.referrer))
	})
	var out []json.RawMessage
	for _, f := range found {
		if f.err != nil || f.kind != kind {
			continue
		}
		predicate, err := s.predicate(ctx, k, place{about, f.referrer})
		if err != nil {
			return nil, fmt.Errorf("read %s of %s: %w", kind, about.Short(), err)
		}
		out = append(out, predicate)
	}
	return out, nil
}

// predicate reads what one referrer says, and verifies it again.
func (s *Signer) predicate(ctx context.Context, k *keys, at place) (json.RawMessage, error) {
	raw, err := s.bundle(ctx, at.referrer)
	if err != nil {
		return nil, err
	}
	o, err := k.open(ctx, raw)
	if err != nil {
		return nil, err
	}
	return o.Predicate, o.about(at.subject)
}

// rank orders keys: the one that signs now is 0.
func (k *keys) rank(id string) int {
	return slices.IndexFunc(k.trusted, func(t trusted) bool { return t.id == id })
}

// finding is a referrer that was read.
type finding struct {
	referrer kiln.Digest
	err      error  // why it does not count
	key      string // id of the one that signed
	kind     PredicateType
	payload  kiln.Digest   // of what was signed
	verdict  *kiln.Verdict // of PredicateVerdict
	inputs   kiln.Digest   // of PredicateProvenance
}

// newestVerdict returns the newest; of two at one moment the one that does not
// pass.
func newestVerdict(found []finding) *finding {
	var newest *finding
	for i, f := range found {
		switch {
		case f.err != nil || f.verdict == nil:
		case newest == nil, f.verdict.At.After(newest.verdict.At),
			f.verdict.At.Equal(newest.verdict.At) && f.verdict.Outcome != kiln.OutcomePass:
			newest = &found[i]
		}
	}
	return newest
}

// maxReferrers bounds how many bundles of one manifest are read: who may push
// may push bundles, too.
const maxReferrers = 10_000

// read reads all bundles of a manifest, as far as it has not before.
func (s *Signer) read(ctx context.Context, k *keys, about kiln.Digest) ([]finding, error) {
	if _, err := kiln.ParseDigest(string(about)); err != nil {
		return nil, kiln.Errorf(kiln.CodeInvalid, "", "verify: %w", err)
	}
	all, err := s.store.Referrers(ctx, about, BundleType)
	if err != nil {
		return nil, fmt.Errorf("read what is signed of %s: %w", about.Short(), err)
	}
	if len(all) > maxReferrers {
		return nil, kiln.Errorf(kiln.CodeRefused, "remove those that strangers pushed", "%s has %d bundles, more than %d", about.Short(), len(all), maxReferrers)
	}
	slices.SortFunc(all, func(a, b ocispec.Descriptor) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	out := make([]finding, 0, len(all))
	for _, d := range all {
		f := s.look(ctx, k, place{about, kiln.Digest(d.Digest)})
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		out = append(out, f)
	}
	return out, nil
}

// look reads one bundle, unless it is known.
func (s *Signer) look(ctx context.Context, k *keys, at place) finding {
	f, ok := s.seen.get(at)
	if !ok {
		var lasting bool
		if f, lasting = s.readOne(ctx, k, at); lasting {
			s.seen.put(at, f)
		}
	}
	if f.err == nil && !k.trusts(f.key) {
		f.err = fmt.Errorf("%w: key %s is not trusted any more", ErrOtherKey, short(f.key))
	}
	return f
}

// Said says whether a trusted key signed what a referrer says of a manifest, in
// either form.
func (s *Signer) Said(ctx context.Context, about, referrer kiln.Digest) (bool, error) {
	payload, err := simplePayload(about)
	if err != nil {
		return false, err
	}
	k := s.images.current()
	if _, ok := s.simpleBy(ctx, k, about, referrer, payload); ok {
		return true, nil
	}
	f := s.look(ctx, k, place{about, referrer})
	return f.err == nil, ctx.Err()
}

// readOne reads one bundle. What the store could not read may be there again
// later, and is not remembered.
func (s *Signer) readOne(ctx context.Context, k *keys, at place) (f finding, lasting bool) {
	f.referrer = at.referrer
	raw, err := s.bundle(ctx, at.referrer)
	if err != nil {
		f.err = err
		return f, false
	}
	o, err := k.open(ctx, raw)
	if err != nil {
		f.err = err
		return f, true
	}
	if f.err = o.about(at.subject); f.err != nil {
		return f, true
	}
	f.key, f.kind, f.payload = o.key, o.PredicateType, kiln.DigestOf(o.payload)
	f.err = f.understand(o.Predicate, at.subject)
	return f, true
}

// understand reads what of a predicate decides something.
func (f *finding) understand(predicate json.RawMessage, about kiln.Digest) error {
	switch f.kind {
	case PredicateVerdict:
		var v kiln.Verdict
		if err := json.Unmarshal(predicate, &v); err != nil {
			return malformed("the verdict cannot be read: %w", err)
		}
		if v.Image != about || v.At.IsZero() {
			return fmt.Errorf("%w: the verdict is about %s, of %s", ErrChanged, v.Image.Short(), v.At)
		}
		f.verdict = &v
	case PredicateProvenance:
		var p provenance
		if err := json.Unmarshal(predicate, &p); err != nil {
			return malformed("the provenance cannot be read: %w", err)
		}
		f.inputs = p.Definition.Internal.Inputs
	case PredicateSignature, PredicateCycloneDX, PredicateSPDX:
	default: // signed by a trusted key, and nothing that Kiln goes by
	}
	return nil
}

// bundle reads the bundle of a referrer. The store verifies both digests.
func (s *Signer) bundle(ctx context.Context, referrer kiln.Digest) ([]byte, error) {
	m, err := s.store.Manifest(ctx, referrer)
	if err != nil {
		return nil, lost(err)
	}
	if len(m.Layers) != 1 || m.Layers[0].MediaType != BundleType || m.Layers[0].Size > maxBundle {
		return nil, malformed("it is not one bundle of at most %d bytes", maxBundle)
	}
	raw, err := s.store.Document(ctx, kiln.Digest(m.Layers[0].Digest))
	return raw, lost(err)
}

// lost is an error of the store's: what was signed was there once.
func lost(err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrChanged, err)
}

// place is a referrer of a subject.
type place struct{ subject, referrer kiln.Digest }

// memory holds what was read. Referrers are named by their digest, so that what
// was read of one stays true; which keys are trusted is asked each time.
type memory struct {
	mu    sync.Mutex
	known map[place]finding
}

// mostKnown bounds the memory; beyond it referrers are read again.
const mostKnown = 50_000

func newMemory() *memory { return &memory{known: map[place]finding{}} }

func (m *memory) get(at place) (finding, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f, ok := m.known[at]
	return f, ok
}

func (m *memory) put(at place, f finding) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.known) >= mostKnown {
		clear(m.known)
	}
	m.known[at] = f
}
