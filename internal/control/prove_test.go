package control

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/kilntest"
)

// prover says of each image what it is told to.
type prover struct {
	mu       sync.Mutex
	verdicts map[string]kiln.Verdict // by image; others pass
	err      error
	asked    []kiln.ProveRequest
	signed   []kiln.Digest
	foreseen int
	tampered map[kiln.Digest]bool // bundles that are not what was signed
}

func (p *prover) Prove(_ context.Context, r kiln.ProveRequest) (map[string]kiln.Verdict, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = append(p.asked, r)
	return p.judged(r), p.err
}

func (p *prover) Foresee(_ context.Context, r kiln.ProveRequest) (map[string]kiln.Verdict, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.foreseen++
	return p.judged(r), p.err
}

func (p *prover) Rejudge(context.Context, kiln.Digest, kiln.Gate, map[string][]byte) (kiln.Verdict, bool, error) {
	return kiln.Verdict{}, false, kiln.Errorf(kiln.CodeNotFound, "", "there is no inventory")
}

func (p *prover) Database() kiln.Digest { return "" }

func (p *prover) judged(r kiln.ProveRequest) map[string]kiln.Verdict {
	out := map[string]kiln.Verdict{}
	for name, baked := range r.Baked {
		v, ok := p.verdicts[name]
		if !ok {
			v.Outcome = kiln.OutcomePass
		}
		v.Image = baked.Manifest
		out[name] = v
	}
	return out
}

func (p *prover) SignBundle(_ context.Context, bundle kiln.Digest, _ kiln.ProveRequest) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.signed = append(p.signed, bundle)
	return nil
}

func (p *prover) AdmitBundle(_ context.Context, bundle kiln.Digest) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.tampered[bundle] {
		return kiln.Errorf(kiln.CodeRefused, "bake it again", "changed after it was signed")
	}
	return nil
}

// tamper says whether a bundle is not what was signed.
func (p *prover) tamper(bundle kiln.Digest, with bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.tampered == nil {
		p.tampered = map[kiln.Digest]bool{}
	}
	p.tampered[bundle] = with
}

// proving is onBench with a prover.
func proving(t *testing.T, p *prover, test func(t *testing.T, b *bench)) {
	onBench(t, func(t *testing.T, b *bench) {
		b.halt()
		b.prover = p
		b.start()
		test(t, b)
	})
}

func TestAnImageThatFailsItsGateChangesNothing(t *testing.T) {
	p := &prover{verdicts: map[string]kiln.Verdict{}}
	proving(t, p, func(t *testing.T, b *bench) {
		b.mustUp(shop("production", "1"))
		if len(p.signed) != 1 {
			t.Fatalf("%d bundles were signed", len(p.signed))
		}
		p.verdicts["web-2"] = kiln.Verdict{
			Outcome: kiln.OutcomeFail, Packages: 3, Reasons: []string{"1 finding fails: CVE-1."}, Database: "sha256:0123456789abcdef", Dated: time.Now(),
			Findings: []kiln.Finding{
				{ID: "CVE-1", Severity: kiln.SeverityHigh, State: kiln.FindingOpen, Fails: true, Package: "zlib", Version: "1.0", FixedIn: []string{"1.1"}, Change: "upgrade zlib to 1.1"},
				{ID: "CVE-2", Severity: kiln.SeverityLow, State: kiln.FindingOpen, Package: "tar"},
			},
		}
		p.verdicts["orders-2"] = kiln.Verdict{Outcome: kiln.OutcomeUnknown, Hint: "kiln db update"}
		_, err := b.up(shop("production", "2"))
		var known *kiln.Error
		if !errors.As(err, &known) || known.Code != kiln.CodeRefused || known.Hint != "kiln db update" {
			t.Fatalf("%v", err)
		}
		text := strings.Join(known.Evidence, "\n")
		for _, want := range []string{"image web-2", "image orders-2", "CVE-1", "zlib 1.0", "upgrade zlib to 1.1"} {
			if !strings.Contains(text, want) {
				t.Errorf("no %q in\n%s", want, text)
			}
		}
		if strings.Contains(text, "CVE-2") || strings.Contains(text, "mailer-2") {
			t.Errorf("what passes is told of:\n%s", text)
		}
		b.wantStates("production", kiln.ReleaseLive)
		refused := 0
		for _, kind := range b.kinds() {
			if kind == "gate.refused" {
				refused++
			}
		}
		if refused != 2 || len(p.signed) != 1 {
			t.Errorf("%d events, %d bundles signed", refused, len(p.signed))
		}
		_, err = b.Bake(t.Context(), shop("production", "2").request(), nil)
		if !errors.As(err, &known) || known.Code != kiln.CodeRefused {
			t.Errorf("kiln bake: %v", err)
		}
	})
}

func TestAProverThatCannotTellChangesNothing(t *testing.T) {
	p := &prover{err: errors.New("no room")}
	proving(t, p, func(t *testing.T, b *bench) {
		if _, err := b.up(shop("production", "1")); err == nil || !strings.Contains(err.Error(), "no room") {
			t.Fatalf("%v", err)
		}
		if kinds := b.kinds(); slices.Contains(kinds, "release.created") {
			t.Errorf("%v", kinds)
		}
	})
}

func TestAPlanShowsVerdictsAndProvesNothing(t *testing.T) {
	p := &prover{verdicts: map[string]kiln.Verdict{"web-1": {Outcome: kiln.OutcomeFail}}}
	proving(t, p, func(t *testing.T, b *bench) {
		out, err := b.Plan(t.Context(), shop("production", "1").request())
		check(t, err)
		if out.Verdicts["web-1"].Outcome != kiln.OutcomeFail || out.Verdicts["orders-1"].Outcome != kiln.OutcomePass {
			t.Errorf("%+v", out.Verdicts)
		}
		if out.Refused == nil || !strings.Contains(out.Refused.Message, "web-1") {
			t.Errorf("it does not say that up is refused: %+v", out.Refused)
		}
		if len(p.asked) > 0 || len(p.signed) > 0 || p.foreseen != 1 {
			t.Errorf("proved %d, signed %d, foreseen %d", len(p.asked), len(p.signed), p.foreseen)
		}
	})
}

// preparing is an engine that prepares, for as long as hold is open.
type preparing struct {
	*kilntest.Fake
	asked chan []kiln.Template
	hold  chan struct{}
	ended chan error
}

func (p *preparing) Prepare(ctx context.Context, templates []kiln.Template) error {
	p.asked <- templates
	select {
	case <-p.hold:
	case <-ctx.Done():
	}
	p.ended <- ctx.Err()
	return ctx.Err()
}

func TestTheEnginePreparesWhatIsBeingProved(t *testing.T) {
	p := &prover{verdicts: map[string]kiln.Verdict{}}
	var engine *preparing
	onBenchAs(t, func(b *bench) {
		engine = &preparing{b.engine, make(chan []kiln.Template, 1), make(chan struct{}), make(chan error, 1)}
		b.prover, b.engineAs = p, engine
	}, func(t *testing.T, b *bench) {
		ended := make(chan error, 1)
		go func() {
			_, err := b.up(shop("production", "1"))
			ended <- err
		}()
		if templates := <-engine.asked; len(templates) != len(shop("production", "1").Services) || templates[0].Image == "" {
			t.Errorf("%v", templates)
		}
		synctest.Wait()
		if kinds := b.kinds(); slices.Contains(kinds, "release.created") {
			t.Errorf("released before it was prepared: %v", kinds)
		}
		close(engine.hold)
		if err := errors.Join(<-ended, <-engine.ended); err != nil {
			t.Fatal(err)
		}

		// What does not pass is not prepared to the end.
		engine.hold = make(chan struct{})
		p.verdicts["web-2"] = kiln.Verdict{Outcome: kiln.OutcomeFail}
		if _, err := b.up(shop("production", "2")); !errors.Is(err, &kiln.Error{Code: kiln.CodeRefused}) {
			t.Errorf("%v", err)
		}
		if err := <-engine.ended; !errors.Is(err, context.Canceled) {
			t.Errorf("prepared to the end: %v", err)
		}
	})
}
