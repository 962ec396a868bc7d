package sign

import (
	"bytes"
	"crypto/elliptic"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/secure-systems-lab/go-securesystemslib/dsse"

	"github.com/kilnproject/kiln"
)

func TestWhatIsSignedIsProven(t *testing.T) {
	store := newShelf()
	s := open(t, Options{Store: store})
	image := store.image(t, "a")
	check(t, s.SignImage(t.Context(), image))
	sbom := json.RawMessage(`{"bomFormat": "CycloneDX", "name": "<a & b>"}`)
	for range 2 { // the second time nothing is new
		check(t, s.SignImage(t.Context(), image))
		_, err := s.Attest(t.Context(), image, PredicateCycloneDX, sbom)
		check(t, err)
		_, err = s.AttestProvenance(t.Context(), Build{Builder: "https://kiln.example/", Baked: kiln.Baked{Manifest: image, Inputs: "sha256:x"}})
		check(t, err)
	}
	if n := len(store.referrers[image]); n != 4 { // and the older signature
		t.Errorf("%d referrers", n)
	}
	p, err := open(t, Options{Dir: filepath.Dir(s.images.dir), Store: store}).Verify(t.Context(), image)
	check(t, err)
	var kinds []PredicateType
	for _, a := range p.Attestations {
		kinds = append(kinds, a.PredicateType)
		if a.Key != s.Keys()[0].ID {
			t.Errorf("%+v", a)
		}
	}
	if diff := cmp.Diff([]PredicateType{PredicateCycloneDX, PredicateSignature, PredicateProvenance}, kinds); diff != "" || p.Verdict != nil || p.Ignored != nil {
		t.Error(diff, p)
	}
	got, err := s.Predicates(t.Context(), image, PredicateCycloneDX)
	var bom struct{ Name string }
	if err != nil || len(got) != 1 || json.Unmarshal(got[0], &bom) != nil || bom.Name != "<a & b>" {
		t.Errorf("%s, %v", got, err)
	}

	before := store.reads
	for range 10 {
		_, err := s.Verify(t.Context(), image)
		check(t, err)
	}
	if store.reads != before {
		t.Errorf("%d reads of what is known", store.reads-before)
	}
}

func TestTheSameIsSignedTheSame(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "sign")
	var all []map[kiln.Digest][]byte
	for range 2 {
		store := newShelf()
		s := open(t, Options{Dir: dir, Store: store})
		check(t, s.SignImage(t.Context(), store.image(t, "a")))
		all = append(all, store.blobs)
	}
	if diff := cmp.Diff(all[0], all[1]); diff != "" {
		t.Error(diff)
	}
}

func TestNoSignatureWithoutASignature(t *testing.T) {
	store := newShelf()
	s := open(t, Options{Store: store})
	image := store.image(t, "a")
	_, err := s.Verify(t.Context(), image)
	refused(t, err, kiln.CodeRefused, "not signed")
	if !errors.Is(err, ErrUnsigned) {
		t.Error(err)
	}
	// A provenance is valid, and no signature.
	_, err = s.AttestProvenance(t.Context(), Build{Baked: kiln.Baked{Manifest: image, Inputs: "x"}})
	check(t, err)
	_, err = s.Verify(t.Context(), image)
	refused(t, err, kiln.CodeRefused, "is no signature of the image")
	if !errors.Is(err, ErrUnsigned) {
		t.Error(err)
	}
	// So is the older form by itself.
	check(t, s.signSimply(t.Context(), image))
	if _, err = s.Verify(t.Context(), image); !errors.Is(err, ErrUnsigned) {
		t.Error(err)
	}
	if _, err := s.Verify(t.Context(), "sha256:../x"); err == nil {
		t.Error("a path was taken for a digest")
	}
	if err := s.SignImage(t.Context(), kiln.DigestOf(nil)); !errors.Is(err, kiln.ErrNotFound) {
		t.Errorf("an image that is not there: %v", err)
	}
}

func TestSignedByAnotherKey(t *testing.T) {
	store := newShelf()
	stranger, s := open(t, Options{Store: store}), open(t, Options{Store: store})
	image := store.image(t, "a")
	check(t, stranger.SignImage(t.Context(), image))
	_, err := s.Verify(t.Context(), image)
	refused(t, err, kiln.CodeRefused, "signed by another key: "+short(stranger.Keys()[0].ID))
	if !errors.Is(err, ErrOtherKey) {
		t.Error(err)
	}
	check(t, s.SignImage(t.Context(), image))
	p, err := s.Verify(t.Context(), image)
	if err != nil || len(p.Ignored) != 1 || !strings.Contains(p.Ignored[0].Reason, "another key") {
		t.Errorf("%+v, %v", p, err)
	}
	if n := len(store.referrers[image]); n != 4 {
		t.Errorf("%d referrers: a stranger's signature was taken for ours", n)
	}
}

// edited is a bundle with a change.
func edited(t testing.TB, raw []byte, change func(*bundle)) []byte {
	t.Helper()
	var b bundle
	check(t, json.Unmarshal(raw, &b))
	change(&b)
	out, err := json.Marshal(b)
	check(t, err)
	return out
}

// hint names a key in a bundle.
func hint(t testing.TB, id string) material {
	t.Helper()
	raw, err := hex.DecodeString(id)
	check(t, err)
	return material{PublicKey: &publicKey{Hint: base64.StdEncoding.EncodeToString(raw)}}
}

// signedAs is a bundle by the key of s over any payload of any type.
func signedAs(t testing.TB, s *Signer, kind string, payload []byte) []byte {
	t.Helper()
	k := s.images.current()
	sig, err := k.sign(dsse.PAE(kind, payload))
	check(t, err)
	raw, err := json.Marshal(bundle{MediaType: BundleType, Envelope: envelope{
		Payload: base64.StdEncoding.EncodeToString(payload), PayloadType: kind,
		Signatures: []signature{{Sig: base64.StdEncoding.EncodeToString(sig)}},
	}, Material: hint(t, k.active().ID)})
	check(t, err)
	return raw
}

func TestBundlesThatDoNotCount(t *testing.T) {
	source := newShelf()
	s := open(t, Options{Store: source})
	image, other := source.image(t, "a"), source.image(t, "b")
	check(t, s.SignImage(t.Context(), image))
	check(t, s.SignImage(t.Context(), other))
	_, err := s.AttestProvenance(t.Context(), Build{Baked: kiln.Baked{Manifest: image, Inputs: "x"}})
	check(t, err)
	sound, foreign := source.bundles(t, image)[PredicateSignature], source.bundles(t, other)[PredicateSignature]
	provenance := source.bundles(t, image)[PredicateProvenance]
	payload, err := payloadOf(image, PredicateSignature, json.RawMessage("{}"))
	check(t, err)
	text := func(change func(string) string) []byte { return []byte(change(string(payload))) }
	record, err := s.SignRecord("x", payload)
	check(t, err)

	for name, c := range map[string]struct {
		raw   []byte
		words string
		is    error
	}{
		"payload swapped": {edited(t, sound, func(b *bundle) {
			var f bundle
			check(t, json.Unmarshal(provenance, &f))
			b.Envelope.Payload = f.Envelope.Payload
		}), "does not hold for its payload", ErrChanged},
		"of another image":       {foreign, "made for sha256:" + other.Hex(), ErrChanged},
		"type of the payload":    {edited(t, sound, func(b *bundle) { b.Envelope.PayloadType = "application/vnd.x" }), "payload has the type", ErrUnsigned},
		"signed as another type": {signedAs(t, s, recordType+"seal", payload), "payload has the type", ErrUnsigned},
		"several signatures":     {edited(t, sound, func(b *bundle) { b.Envelope.Signatures = append(b.Envelope.Signatures, b.Envelope.Signatures[0]) }), "2 signatures", ErrUnsigned},
		"no signature":           {edited(t, sound, func(b *bundle) { b.Envelope.Signatures = nil }), "0 signatures", ErrUnsigned},
		"an empty signature":     {edited(t, sound, func(b *bundle) { b.Envelope.Signatures[0].Sig = "" }), "does not hold", ErrChanged},
		"no base64":              {edited(t, sound, func(b *bundle) { b.Envelope.Payload = "%%%" }), "does not hold", ErrChanged},
		"of a record":            {edited(t, sound, func(b *bundle) { b.Envelope.Signatures[0].Sig = base64.StdEncoding.EncodeToString(record) }), "does not hold", ErrChanged},
		"another bundle type":    {edited(t, sound, func(b *bundle) { b.MediaType = "application/json" }), "bundle has the type", ErrUnsigned},
		"no JSON":                {[]byte("bundle"), "cannot be read", ErrUnsigned},
		"something after it":     {append(bytes.Clone(sound), "{}"...), "comes after its end", ErrUnsigned},
		"a bomb":                 {append(bytes.Clone(sound), bytes.Repeat([]byte(" "), maxBundle)...), "not one bundle of at most", ErrUnsigned},
		"no statement":           {signedAs(t, s, payloadType, []byte("[]")), "statement cannot be read", ErrUnsigned},
		"an older statement":     {signedAs(t, s, payloadType, text(func(p string) string { return strings.Replace(p, "Statement/v1", "Statement/v0.1", 1) })), "statement has the type", ErrUnsigned},
		"two subjects": {signedAs(t, s, payloadType, text(func(p string) string {
			return strings.Replace(p, `"subject":[`, `"subject":[{"name":"x","digest":{"sha256":"00"}},`, 1)
		})), "exactly one digest", ErrUnsigned},
		"no subject":        {signedAs(t, s, payloadType, []byte(`{"_type":"`+statementType+`"}`)), "exactly one digest", ErrUnsigned},
		"another algorithm": {signedAs(t, s, payloadType, text(func(p string) string { return strings.Replace(p, `"sha256"`, `"sha512"`, 1) })), "made for", ErrChanged},
		"a verdict of another image": {signedAs(t, s, payloadType, func() []byte {
			raw, err := json.Marshal(kiln.Verdict{Image: other, Outcome: kiln.OutcomePass, At: time.Unix(1, 0)})
			check(t, err)
			p, err := payloadOf(image, PredicateVerdict, raw)
			check(t, err)
			return p
		}()), "the verdict is about", ErrChanged},
		"a provenance as a signature": {provenance, "is no signature", ErrUnsigned},
	} {
		t.Run(name, func(t *testing.T) {
			store := newShelf()
			if d := store.image(t, "a"); d != image {
				t.Fatal(d)
			}
			bad := open(t, Options{Dir: filepath.Dir(s.images.dir), Store: store})
			store.attach(t, image, c.raw)
			_, err := bad.Verify(t.Context(), image)
			refused(t, err, kiln.CodeRefused, c.words)
			if !errors.Is(err, c.is) {
				t.Errorf("not %v: %v", c.is, err)
			}
			// Beside a sound one it changes nothing.
			store.attach(t, image, sound)
			p, err := bad.Verify(t.Context(), image)
			if err != nil || !p.Has(PredicateSignature) || p.Verdict != nil {
				t.Errorf("%+v, %v", p, err)
			}
		})
	}
}

// TestAKeyThatIsOnlyNamed: which key a bundle names is not signed and decides
// nothing, neither for nor against it.
func TestAKeyThatIsOnlyNamed(t *testing.T) {
	store := newShelf()
	stranger, s := open(t, Options{Store: store}), open(t, Options{Store: store})
	image := store.image(t, "a")
	check(t, stranger.SignImage(t.Context(), image))
	forged := edited(t, store.bundles(t, image)[PredicateSignature], func(b *bundle) { b.Material = hint(t, s.Keys()[0].ID) })
	store.attach(t, image, forged)
	if _, err := s.Verify(t.Context(), image); !errors.Is(err, ErrChanged) {
		t.Errorf("a stranger's signature under our id: %v", err)
	}
	mine := store.image(t, "b")
	check(t, s.SignImage(t.Context(), mine))
	renamed := edited(t, store.bundles(t, mine)[PredicateSignature], func(b *bundle) { b.Material = hint(t, strings.Repeat("01", 32)) })
	store.referrers[mine] = nil
	store.attach(t, mine, renamed)
	if _, err := s.Verify(t.Context(), mine); err != nil {
		t.Error(err)
	}
}

// TestAnyFlippedByteOfABundle is noticed, or changes nothing that is signed.
func TestAnyFlippedByteOfABundle(t *testing.T) {
	source := newShelf()
	s := open(t, Options{Store: source})
	image := source.image(t, "a")
	check(t, s.SignImage(t.Context(), image))
	k := s.images.current()
	raw := source.bundles(t, image)[PredicateSignature]
	want, err := k.open(t.Context(), raw)
	check(t, err)
	held := 0
	for i := range raw {
		bad := bytes.Clone(raw)
		bad[i] ^= 1 << (i % 8)
		got, err := k.open(t.Context(), bad)
		if err != nil {
			continue
		}
		if held++; !bytes.Equal(got.payload, want.payload) || got.key != want.key {
			t.Errorf("byte %d gives another payload", i)
		}
	}
	if held == 0 || held > len(raw)/2 {
		t.Errorf("%d of %d hold", held, len(raw)) // those in the hint and the id
	}
	// In the store, a changed file is another digest.
	m, err := source.Manifest(t.Context(), kiln.Digest(source.referrers[image][0].Digest))
	check(t, err)
	source.blobs[kiln.Digest(m.Layers[0].Digest)][10] ^= 1
	_, err = open(t, Options{Dir: filepath.Dir(s.images.dir), Store: source}).Verify(t.Context(), image)
	refused(t, err, kiln.CodeRefused, "is damaged")
	if !errors.Is(err, ErrChanged) {
		t.Error(err)
	}
}

func TestNewestVerdictCounts(t *testing.T) {
	now := &clock{time.Date(2031, 1, 1, 0, 0, 0, 0, time.UTC)}
	store := newShelf()
	s := open(t, Options{Store: store, Now: now.now})
	image := store.image(t, "a")
	check(t, s.SignImage(t.Context(), image))
	p, err := s.Verify(t.Context(), image)
	check(t, err)
	refused(t, p.MayRun(), kiln.CodeRefused, "no verdict")

	say := func(o kiln.Outcome, reasons ...string) kiln.Digest {
		t.Helper()
		d, err := s.AttestVerdict(t.Context(), kiln.Verdict{Image: image, Outcome: o, Reasons: reasons, At: now.at})
		check(t, err)
		return d
	}
	want := func(o kiln.Outcome) kiln.Verdict {
		t.Helper()
		p, err := s.Verify(t.Context(), image)
		check(t, err)
		if p.Verdict == nil || p.Verdict.Outcome != o {
			t.Fatalf("%+v, want %s", p.Verdict, o)
		}
		return *p.Verdict
	}
	first := say(kiln.OutcomePass)
	want(kiln.OutcomePass)
	now.at = now.at.Add(time.Hour)
	if say(kiln.OutcomePass) != first {
		t.Error("the same verdict was signed twice")
	}
	fail := say(kiln.OutcomeFail, "GO-2031-1 is critical")
	want(kiln.OutcomeFail)
	p, err = s.Verify(t.Context(), image)
	check(t, err)
	if e := refused(t, p.MayRun(), kiln.CodeRefused, "did not pass"); len(e) != 1 {
		t.Errorf("%q", e)
	}
	// A clock that was set back: what was said last counts.
	now.at = now.at.Add(-24 * time.Hour)
	if say(kiln.OutcomePass) == first {
		t.Error("an older verdict was taken for the newest")
	}
	v := want(kiln.OutcomePass)
	if p.Verdict = &v; p.MayRun() != nil {
		t.Error(p.MayRun())
	}
	if !v.At.Equal(now.at.Add(24*time.Hour + time.Nanosecond)) {
		t.Error(v.At)
	}
	p.Verdict.Outcome = kiln.OutcomeUnknown
	refused(t, p.MayRun(), kiln.CodeRefused, "unknown")
	// Of two at one moment the one that does not pass.
	at := now.at.Add(48 * time.Hour)
	a := finding{verdict: &kiln.Verdict{At: at, Outcome: kiln.OutcomePass}}
	b := finding{referrer: fail, verdict: &kiln.Verdict{At: at, Outcome: kiln.OutcomeFail}}
	if newestVerdict([]finding{a, b}).referrer != fail || newestVerdict([]finding{b, a}).referrer != fail {
		t.Error("the verdict that passes won")
	}
}

// TestAnAttestationIsNoVerdict: what decides goes through its own method.
func TestAnAttestationIsNoVerdict(t *testing.T) {
	s := open(t, Options{Store: newShelf()})
	for _, kind := range []PredicateType{"", PredicateSignature, PredicateVerdict, PredicateProvenance} {
		if _, err := s.Attest(t.Context(), kiln.DigestOf(nil), kind, json.RawMessage("{}")); err == nil {
			t.Errorf("%q was attested", kind)
		}
	}
	if _, err := s.Attest(t.Context(), kiln.DigestOf(nil), PredicateSPDX, json.RawMessage("{")); !errors.Is(err, kiln.ErrInvalid) {
		t.Error(err)
	}
	large := append(append([]byte(`"`), bytes.Repeat([]byte("x"), MaxPredicate)...), '"')
	if _, err := s.Attest(t.Context(), kiln.DigestOf(nil), PredicateSPDX, large); !errors.Is(err, kiln.ErrInvalid) {
		t.Error(err)
	}
}

func TestTheLargestPredicateFits(t *testing.T) {
	store := newShelf()
	s := open(t, Options{Store: store})
	image := store.image(t, "a")
	check(t, s.SignImage(t.Context(), image))
	large := append(append([]byte(`"`), bytes.Repeat([]byte("x"), MaxPredicate-500)...), '"')
	_, err := s.Attest(t.Context(), image, PredicateSPDX, large)
	check(t, err)
	got, err := s.Predicates(t.Context(), image, PredicateSPDX)
	if err != nil || len(got) != 1 || !bytes.Equal(got[0], large) {
		t.Errorf("%d, %v", len(got), err)
	}
}

func TestRecordsAreOfOneKind(t *testing.T) {
	store := newShelf()
	s, stranger := open(t, Options{Store: store}), open(t, Options{Store: store})
	sig, err := s.SignRecord("seal", []byte("payload"))
	check(t, err)
	check(t, s.CheckRecord("seal", []byte("payload"), sig))
	check(t, s.Records("seal").Check(t.Context(), []byte("payload"), sig))
	flipped := bytes.Clone(sig)
	flipped[len(flipped)-1] ^= 1
	image, err := s.images.current().sign(dsse.PAE(recordType+"seal", []byte("payload")))
	check(t, err)
	for name, err := range map[string]error{
		"kind": s.CheckRecord("lock", []byte("payload"), sig), "payload": s.CheckRecord("seal", []byte("Payload"), sig),
		"signature": s.CheckRecord("seal", []byte("payload"), flipped), "none": s.CheckRecord("seal", []byte("payload"), nil),
		"another machine": stranger.CheckRecord("seal", []byte("payload"), sig),
		"another key":     s.CheckRecord("seal", []byte("payload"), image),
		"moved length":    s.CheckRecord("seal 7 payload", nil, sig),
	} {
		if err == nil {
			t.Errorf("another %s is taken", name)
			continue
		}
		refused(t, err, kiln.CodeRefused, "not signed by this machine")
	}
}

// TestOnlyP256IsTrusted: a list of keys with another curve is no list.
func TestOnlyP256IsTrusted(t *testing.T) {
	s := open(t, Options{Store: newShelf()})
	key := newKey(t, elliptic.P384())
	id, text, err := describe(&key.PublicKey)
	check(t, err)
	check(t, s.images.save(append([]Key{{ID: id, Public: text}}, s.images.current().all...)))
	if _, err := New(Options{Dir: filepath.Dir(s.images.dir), Store: newShelf()}); !errors.Is(err, kiln.ErrInvalid) {
		t.Error(err)
	}
}

func FuzzOpen(f *testing.F) {
	store := newShelf()
	s := open(f, Options{Store: store})
	image := store.image(f, "a")
	check(f, s.SignImage(f.Context(), image))
	k := s.images.current()
	sound := store.bundles(f, image)[PredicateSignature]
	want, err := k.open(f.Context(), sound)
	check(f, err)
	f.Add(sound)
	f.Add([]byte(`{"mediaType":"` + BundleType + `","dsseEnvelope":{"payload":"e30=","payloadType":"` + payloadType + `","signatures":[{"sig":"AA=="}]}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		o, err := k.open(t.Context(), raw)
		if err == nil && !bytes.Equal(o.payload, want.payload) {
			t.Errorf("nobody signed %q", o.payload)
		}
		if s, err := parseStatement(raw); err == nil {
			_ = s.about(image) // must not panic
		}
	})
}
