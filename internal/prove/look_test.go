package prove

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/kilnproject/kiln"
)

// bench is a prover of one image, with a clock.
type bench struct {
	*Prover
	*world
	now time.Time
}

func newBench() *bench {
	w := newWorld()
	w.layers[image()] = []kiln.Digest{}
	w.asked = Asked{Findings: []kiln.Finding{{ID: "A-1", Kind: kiln.FindingVulnerability, PURL: "pkg:npm/x@1"}}, Database: kiln.DigestOf([]byte("database"))}
	w.scan = func(kiln.GateScanner) ([]kiln.Finding, error) { return nil, errors.New("it is not installed") }
	b := &bench{world: w, Prover: w.prover(), now: time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)}
	b.opt.Now = func() time.Time { return b.now }
	b.opt.Rules = func(context.Context, kiln.Image, kiln.ProveRequest) ([]kiln.Finding, error) {
		return []kiln.Finding{{ID: "lint/pin", Kind: kiln.FindingLint}}, nil
	}
	return b
}

// writes is how often something was signed or attested.
func (b *bench) writes() int { return b.signs + b.attests }

// judged is the gate and the evidence of the last judgement.
func (b *bench) judged() (kiln.Gate, Evidence) {
	return b.gates[len(b.gates)-1], b.evidence[len(b.evidence)-1]
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
	if b.writes() > 0 {
		t.Errorf("to look wrote %d times", b.writes())
	}
	if len(b.inspected) != 1 {
		t.Errorf("the image was inspected %d times, want once", len(b.inspected))
	}
	if err := b.Admit(t.Context(), image()); err == nil {
		t.Error("what was only looked at may run")
	}
	if g, _ := b.judged(); g.FailOn != kiln.DefaultGate().FailOn {
		t.Errorf("it was judged by %+v", g)
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
	before := b.writes()
	v, err := b.Look(t.Context(), image(), func(g *kiln.Gate) { g.NoDatabase = kiln.PolicyWarn })
	if err != nil {
		t.Fatal(err)
	}
	if b.writes() != before || len(b.inspected) != 1 {
		t.Errorf("to look wrote %d times, and inspected", b.writes()-before)
	}
	g, e := b.judged()
	if g.FailOn != kiln.SeverityLow || g.NoDatabase != kiln.PolicyWarn {
		t.Errorf("it was judged by %+v", g)
	}
	if e.Scanners["trivy"] == "" {
		t.Error("the gate's scanner was not asked")
	}
	var shown []string
	for _, f := range v.Findings {
		shown = append(shown, f.ID)
	}
	if got := strings.Join(shown, " "); got != "A-1 lint/shell lint/pin" {
		t.Errorf("found %s", got)
	}
	document := string(e.VEX[recalled])
	for _, word := range []string{"A-1", "pkg:npm/x@1", "never called", "not_affected"} {
		if !strings.Contains(document, word) {
			t.Errorf("%s is not in %s", word, document)
		}
	}
	if again, _, _ := b.Prover.Newest(t.Context(), image()); again.At != last.At {
		t.Errorf("the newest verdict is of %s", again.At)
	}
}
