package prove

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/kilnproject/kiln"
)

// shelf is a signer that keeps what is attested, and an inspector that counts.
type shelf struct {
	signed    map[kiln.Digest]bool
	said      map[string][]json.RawMessage
	inspected int
	writes    int
}

func (s *shelf) Sign(_ context.Context, m kiln.Digest) error {
	s.writes++
	s.signed[m] = true
	return nil
}

func (s *shelf) Attest(_ context.Context, m kiln.Digest, kind string, v any) error {
	s.writes++
	raw, err := json.Marshal(v)
	s.said[string(m)+kind] = append(s.said[string(m)+kind], raw)
	return err
}

func (s *shelf) Verify(_ context.Context, m kiln.Digest) error {
	if !s.signed[m] {
		return errors.New("it is not signed")
	}
	return nil
}

func (s *shelf) Statements(_ context.Context, m kiln.Digest, kind string) ([]json.RawMessage, error) {
	return s.said[string(m)+kind], nil
}

func (s *shelf) Has(_ context.Context, m kiln.Digest, kind string) (bool, error) {
	return len(s.said[string(m)+kind]) > 0, nil
}

func (s *shelf) AttestOrigin(context.Context, kiln.Image, kiln.Baked, kiln.ProveRequest) error {
	return nil
}

func (s *shelf) Inspect(_ context.Context, d kiln.Digest, _ Base) (Inspection, error) {
	s.inspected++
	return Inspection{
		Inventory: kiln.Inventory{Image: d, Packages: []kiln.Package{{Name: "x", PURL: "pkg:npm/x@1"}}},
		Marks:     []kiln.Finding{{ID: "lint/shell", Kind: kiln.FindingLint, Path: "/bin/sh"}},
	}, nil
}

func (s *shelf) Layers(context.Context, kiln.Digest) ([]kiln.Digest, error) { return nil, nil }

func (s *shelf) SBOM(kiln.Inventory) (json.RawMessage, error) { return json.RawMessage(`{}`), nil }

type known struct{ findings []kiln.Finding }

func (k known) Match(context.Context, []kiln.Package) (Asked, error) {
	return Asked{Findings: k.findings, Database: kiln.DigestOf([]byte("database"))}, nil
}

func (known) Database() kiln.Digest { return kiln.DigestOf([]byte("database")) }

// bench is a prover whose judge says what it was told.
type bench struct {
	*Prover
	*shelf
	evidence Evidence
	gate     kiln.Gate
	outcome  kiln.Outcome
	now      time.Time
}

func newBench() *bench {
	b := &bench{
		shelf:   &shelf{signed: map[kiln.Digest]bool{}, said: map[string][]json.RawMessage{}},
		outcome: kiln.OutcomePass, now: time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC),
	}
	b.Prover = New(Options{
		Inspector: b.shelf, Advisories: known{[]kiln.Finding{{ID: "A-1", Kind: kiln.FindingVulnerability, PURL: "pkg:npm/x@1"}}}, Signer: b.shelf,
		Judge: func(g kiln.Gate, e Evidence, now time.Time) (kiln.Verdict, error) {
			b.gate, b.evidence = g, e
			return kiln.Verdict{Image: e.Inventory.Image, Outcome: b.outcome, Gate: g, At: now, Findings: append(e.Asked.Findings, e.Others...)}, nil
		},
		Scan: func(context.Context, kiln.GateScanner, kiln.Digest) ([]kiln.Finding, error) {
			return nil, errors.New("it is not installed")
		},
		Rules: func(context.Context, kiln.Image, kiln.ProveRequest) ([]kiln.Finding, error) {
			return []kiln.Finding{{ID: "lint/pin", Kind: kiln.FindingLint}}, nil
		},
		Now: func() time.Time { return b.now },
	})
	return b
}

func image() kiln.Digest { return kiln.DigestOf([]byte("image")) }

// TestWhatIsLookedAtMayNotRun is the promise of Look: an image that passes is
// neither signed nor admitted.
func TestWhatIsLookedAtMayNotRun(t *testing.T) {
	b := newBench()
	for range 2 {
		v, err := b.Look(t.Context(), image(), nil)
		if err != nil || v.Outcome != kiln.OutcomePass {
			t.Fatalf("%+v, %v", v, err)
		}
	}
	if _, err := b.Describe(t.Context(), image()); err != nil {
		t.Error(err)
	}
	if b.writes > 0 {
		t.Errorf("to look wrote %d times", b.writes)
	}
	if b.inspected != 1 {
		t.Errorf("the image was inspected %d times, want once", b.inspected)
	}
	if err := b.Admit(t.Context(), image()); err == nil {
		t.Error("what was only looked at may run")
	}
	if b.gate.FailOn != kiln.DefaultGate().FailOn {
		t.Errorf("it was judged by %+v", b.gate)
	}
}

// TestLookGoesByTheNewestVerdict has an image that was proved: its gate, what
// rules said of its definition, and what VEX documents said hold on.
func TestLookGoesByTheNewestVerdict(t *testing.T) {
	b := newBench()
	gate := kiln.Gate{FailOn: kiln.SeverityLow, Scanners: []kiln.GateScanner{{Name: "trivy"}}}
	r := kiln.ProveRequest{Images: []kiln.Image{{Name: "app", Gate: gate}}, Baked: map[string]kiln.Baked{"app": {Name: "app", Manifest: image()}}}
	if _, err := b.Prove(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	b.now = b.now.Add(time.Hour)
	last := kiln.Verdict{Image: image(), Outcome: kiln.OutcomeFail, Gate: gate, At: b.now, Findings: []kiln.Finding{
		{ID: "A-1", Kind: kiln.FindingVulnerability, PURL: "pkg:npm/x@1", State: kiln.FindingNotAffected, Reason: "never called"},
		{ID: "lint/shell", Kind: kiln.FindingLint, Path: "/bin/sh"},
		{ID: "lint/pin", Kind: kiln.FindingLint},
	}}
	if err := b.Attest(t.Context(), image(), TypeVerdict, last); err != nil {
		t.Fatal(err)
	}
	before := b.writes
	v, err := b.Look(t.Context(), image(), func(g *kiln.Gate) { g.NoDatabase = kiln.PolicyWarn })
	if err != nil {
		t.Fatal(err)
	}
	if b.writes != before || b.inspected != 1 {
		t.Errorf("to look wrote %d times, and inspected", b.writes-before)
	}
	if b.gate.FailOn != kiln.SeverityLow || b.gate.NoDatabase != kiln.PolicyWarn {
		t.Errorf("it was judged by %+v", b.gate)
	}
	if b.evidence.Scanners["trivy"] == "" {
		t.Error("the gate's scanner was not asked")
	}
	var shown []string
	for _, f := range v.Findings {
		shown = append(shown, f.ID)
	}
	if got := strings.Join(shown, " "); got != "A-1 lint/shell lint/pin" {
		t.Errorf("found %s", got)
	}
	document := string(b.evidence.VEX[recalled])
	for _, word := range []string{"A-1", "pkg:npm/x@1", "never called", "not_affected"} {
		if !strings.Contains(document, word) {
			t.Errorf("%s is not in %s", word, document)
		}
	}
	if again, _, _ := b.Newest(t.Context(), image()); again.At != last.At {
		t.Errorf("the newest verdict is of %s", again.At)
	}
}
