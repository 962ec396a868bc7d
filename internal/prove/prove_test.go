package prove

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/kilnproject/kiln"
)

// world is what a Prover asks, in memory.
type world struct {
	mu        sync.Mutex
	layers    map[kiln.Digest][]kiln.Digest
	inspected []kiln.Digest
	bases     []Base
	asked     Asked
	matched   int
	signed    map[kiln.Digest]bool
	said      map[kiln.Digest]map[string][]json.RawMessage
	signs     int
	verified  int
	attests   int
	origins   int
	scan      func(kiln.GateScanner) ([]kiln.Finding, error)
	outcome   kiln.Outcome
	evidence  []Evidence
	told      []string
	kept      []string // who signed, as far as it is known here
	answer    []string // of the registry
	away      error
	questions []string
	gates     []kiln.Gate
}

func newWorld() *world {
	return &world{
		layers: map[kiln.Digest][]kiln.Digest{}, signed: map[kiln.Digest]bool{},
		said: map[kiln.Digest]map[string][]json.RawMessage{}, outcome: kiln.OutcomePass,
	}
}

func (w *world) prover() *Prover {
	return New(Options{
		Inspector: w, Advisories: w, Signer: w, Observer: w, Others: w,
		Judge: func(g kiln.Gate, e Evidence, now time.Time) (kiln.Verdict, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.evidence, w.gates = append(w.evidence, e), append(w.gates, g)
			return kiln.Verdict{
				Image: e.Inventory.Image, Outcome: w.outcome, Gate: g, At: now, Database: e.Asked.Database,
				Findings: slices.Concat(e.Asked.Findings, e.Others),
			}, nil
		},
		Scan: func(_ context.Context, s kiln.GateScanner, _ kiln.Digest) ([]kiln.Finding, error) { return w.scan(s) },
	})
}

func (w *world) Inspect(_ context.Context, image kiln.Digest, base Base) (Inspection, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.inspected, w.bases = append(w.inspected, image), append(w.bases, base)
	return Inspection{
		Inventory: kiln.Inventory{Image: image, Packages: []kiln.Package{{Name: "zlib", Version: "1", Ecosystem: "Debian:12"}}},
		Marks:     []kiln.Finding{{ID: "lint/shell", Kind: kiln.FindingLint, Path: "/bin/sh"}},
	}, nil
}

func (w *world) Names() []string { return []string{"ci", "team"} }

func (w *world) Known(context.Context, kiln.Digest) ([]string, error) { return w.kept, nil }

func (w *world) Ask(_ context.Context, reference string, index, image kiln.Digest, keep bool) ([]string, error) {
	w.questions = append(w.questions, fmt.Sprint(reference, " ", index == digest("index"), " ", image == digest("web"), " ", keep))
	if keep {
		w.kept = w.answer
	}
	return w.answer, w.away
}

func (w *world) Inspected(took time.Duration, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.told = append(w.told, fmt.Sprint("inspected ", took >= 0, " ", err))
}

func (w *world) Judged(why Why, outcome kiln.Outcome, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.told = append(w.told, fmt.Sprint(why, " ", outcome, " ", err))
}

func (w *world) Layers(_ context.Context, image kiln.Digest) ([]kiln.Digest, error) {
	l, ok := w.layers[image]
	if !ok {
		return nil, kiln.Errorf(kiln.CodeNotFound, "", "no image %s", image)
	}
	return l, nil
}

func (w *world) SBOM(i kiln.Inventory) (json.RawMessage, error) { return json.Marshal(i.Packages) }

func (w *world) Match(context.Context, []kiln.Package) (Asked, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.matched++
	return w.asked, nil
}

func (w *world) Database() kiln.Digest { return w.asked.Database }

func (w *world) Sign(_ context.Context, d kiln.Digest) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.signed[d] = true
	w.signs++
	return nil
}

func (w *world) Attest(_ context.Context, d kiln.Digest, kind string, predicate any) error {
	raw, err := json.Marshal(predicate)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.said[d] == nil {
		w.said[d] = map[string][]json.RawMessage{}
	}
	// Statements come in no order.
	w.said[d][kind] = slices.Insert(w.said[d][kind], 0, json.RawMessage(raw))
	w.attests++
	return err
}

func (w *world) Verify(_ context.Context, d kiln.Digest) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.verified++
	if !w.signed[d] {
		return kiln.Errorf(kiln.CodeRefused, "bake it again", "not signed")
	}
	return nil
}

func (w *world) Statements(_ context.Context, d kiln.Digest, kind string) ([]json.RawMessage, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.said[d][kind]), nil
}

func (w *world) Newest(ctx context.Context, d kiln.Digest) (*kiln.Verdict, error) {
	raw, err := w.Statements(ctx, d, TypeVerdict)
	if err != nil {
		return nil, err
	}
	all, err := decode[kiln.Verdict](raw)
	var newest *kiln.Verdict
	for i := range all {
		if newest == nil || all[i].At.After(newest.At) {
			newest = &all[i]
		}
	}
	return newest, err
}

func (w *world) Has(_ context.Context, d kiln.Digest, kind string) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.said[d][kind]) > 0, nil
}

func (w *world) AttestOrigin(context.Context, kiln.Image, kiln.Baked, kiln.ProveRequest) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.origins++
	return nil
}

func digest(name string) kiln.Digest { return kiln.DigestOf([]byte(name)) }

func (w *world) image(name string, layers ...string) kiln.Baked {
	for _, l := range layers {
		w.layers[digest(name)] = append(w.layers[digest(name)], digest(l))
	}
	return kiln.Baked{Name: name, Manifest: digest(name)}
}

func request(gate kiln.Gate, baked ...kiln.Baked) kiln.ProveRequest {
	r := kiln.ProveRequest{Baked: map[string]kiln.Baked{}, VEX: map[string][]byte{"a.json": []byte("a"), "b.json": []byte("b")}}
	for _, b := range baked {
		r.Images = append(r.Images, kiln.Image{Name: b.Name, Gate: gate})
		r.Baked[b.Name] = b
	}
	return r
}

func prove(t *testing.T, p *Prover, r kiln.ProveRequest) map[string]kiln.Verdict {
	t.Helper()
	v, err := p.Prove(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestAnImageIsInspectedOnce(t *testing.T) {
	w := newWorld()
	r := request(kiln.DefaultGate(), w.image("web", "a", "b"))
	first := w.prover()
	prove(t, first, r)
	before := w.attests
	prove(t, first, r)
	prove(t, w.prover(), r) // after a restart
	if len(w.inspected) != 1 || w.matched != 3 {
		t.Errorf("inspected %d times, matched %d times", len(w.inspected), w.matched)
	}
	if w.attests != before {
		t.Errorf("%d statements, and %d when nothing was new", before, w.attests)
	}
	for _, kind := range []string{TypeInspection, TypeSBOM, TypeVerdict} {
		if n := len(w.said[digest("web")][kind]); n != 1 {
			t.Errorf("%d statements of type %s", n, kind)
		}
	}
	if w.origins != 3 || !w.signed[digest("web")] {
		t.Errorf("%d origins, signed %t", w.origins, w.signed[digest("web")])
	}
}

func TestWhatStandsOnABaseIsToldFromIt(t *testing.T) {
	w := newWorld()
	w.image("low", "a")
	w.image("high", "a", "b")
	w.image("other", "x")
	web := w.image("web", "a", "b", "c")
	for _, m := range []string{"other", "low", "high", "gone", "web"} {
		web.Materials = append(web.Materials, kiln.Material{Kind: kiln.MaterialImage, Digest: digest(m)})
	}
	web.Materials = append(web.Materials, kiln.Material{Kind: kiln.MaterialPackage, Digest: digest("deb")})
	prove(t, w.prover(), request(kiln.DefaultGate(), web))
	if want := (Base{Layers: 2, Image: digest("high")}); w.bases[0] != want {
		t.Errorf("base %+v, not %+v", w.bases[0], want)
	}
	// The same image of other materials adds other layers: it is looked at again.
	web.Materials = web.Materials[:2]
	prove(t, w.prover(), request(kiln.DefaultGate(), web))
	if len(w.bases) != 2 || w.bases[1].Layers != 1 {
		t.Errorf("bases %+v", w.bases)
	}
}

func TestAVerdictIsAttestedWhenItSaysSomethingElse(t *testing.T) {
	w := newWorld()
	p := w.prover()
	strict := kiln.DefaultGate()
	loose := strict
	loose.FailOn = kiln.SeverityCritical
	web := w.image("web", "a")
	verdicts := func() int { return len(w.said[digest("web")][TypeVerdict]) }
	for i, step := range []struct {
		gate     kiln.Gate
		database string
		outcome  kiln.Outcome
		want     int
	}{
		{strict, "1", kiln.OutcomePass, 1},
		{strict, "1", kiln.OutcomePass, 1},
		{strict, "2", kiln.OutcomePass, 2}, // another database was asked
		{loose, "2", kiln.OutcomePass, 3},  // another gate
		{strict, "2", kiln.OutcomePass, 3}, // whose last word was the same
		{strict, "2", kiln.OutcomeFail, 4},
		{strict, "2", kiln.OutcomePass, 5},
	} {
		w.asked.Database, w.outcome = digest(step.database), step.outcome
		prove(t, p, request(step.gate, web))
		if verdicts() != step.want {
			t.Errorf("step %d: %d verdicts, not %d", i, verdicts(), step.want)
		}
	}
}

func TestNothingIsAdmittedThatDidNotPass(t *testing.T) {
	w := newWorld()
	web := w.image("web", "a")
	refused := func(why string) {
		t.Helper()
		var known *kiln.Error
		if err := w.prover().Admit(t.Context(), web.Manifest); !errors.As(err, &known) || known.Code != kiln.CodeRefused || known.Hint == "" {
			t.Errorf("%s: %v", why, err)
		}
	}
	refused("nothing is known of it")
	w.signed[web.Manifest] = true
	refused("signed, and not judged")
	for _, outcome := range []kiln.Outcome{kiln.OutcomeUnknown, kiln.OutcomeFail} {
		w.outcome = outcome
		prove(t, w.prover(), request(kiln.DefaultGate(), web))
		refused(string(outcome))
	}
	w.outcome = kiln.OutcomePass
	p := w.prover()
	prove(t, p, request(kiln.DefaultGate(), web))
	delete(w.signed, web.Manifest)
	refused("judged, and not signed")
	w.signed[web.Manifest] = true
	if err := p.Admit(t.Context(), web.Manifest); err != nil {
		t.Error(err)
	}
	// What runs goes on being replaced when the world learns of a vulnerability.
	w.outcome = kiln.OutcomeFail
	prove(t, w.prover(), request(kiln.DefaultGate(), web))
	if err := w.prover().Admit(t.Context(), web.Manifest); err != nil {
		t.Error(err)
	}
}

func TestForeseeingWritesNothing(t *testing.T) {
	w := newWorld()
	old, fresh := w.image("old", "a"), w.image("new", "b")
	prove(t, w.prover(), request(kiln.DefaultGate(), old))
	attests, origins := w.attests, w.origins
	w.asked.Database = digest("newer")
	v, err := w.prover().Foresee(t.Context(), request(kiln.DefaultGate(), old, fresh))
	if err != nil {
		t.Fatal(err)
	}
	if len(v) != 1 || v["old"].Database != digest("newer") {
		t.Errorf("%+v", v)
	}
	if w.attests != attests || w.origins != origins || len(w.inspected) != 1 || w.signed[fresh.Manifest] {
		t.Error("it wrote something")
	}
}

func TestAGateGetsAllThatIsKnown(t *testing.T) {
	w := newWorld()
	w.asked = Asked{Findings: []kiln.Finding{{ID: "CVE-1"}}, Unmatched: []string{"npm"}}
	w.scan = func(s kiln.GateScanner) ([]kiln.Finding, error) {
		if s.Name == "snyk" {
			failed := kiln.Errorf(kiln.CodeFailed, "mend it", "it ended with status 2")
			failed.Evidence = []string{"one", "two", "three", "no token"}
			return nil, failed
		}
		return []kiln.Finding{{ID: "CVE-2", Kind: kiln.FindingScanner}}, nil
	}
	g := kiln.DefaultGate()
	g.Scanners = []kiln.GateScanner{{Name: "snyk"}, {Name: "trivy"}}
	g.VEX = []string{"b.json"}
	p := w.prover()
	p.opt.Rules = func(context.Context, kiln.Image, kiln.ProveRequest) ([]kiln.Finding, error) {
		return []kiln.Finding{{ID: "lint/probe"}}, nil
	}
	prove(t, p, request(g, w.image("web", "a")))
	e := w.evidence[0]
	var ids []string
	for _, f := range append(e.Others, e.Asked.Findings...) {
		ids = append(ids, f.ID)
	}
	slices.Sort(ids)
	if want := []string{"CVE-1", "CVE-2", "lint/probe", "lint/shell"}; !slices.Equal(ids, want) {
		t.Errorf("findings %v, not %v", ids, want)
	}
	if e.Scanners["snyk"] != "it ended with status 2; it said: two three no token" || e.Scanners["trivy"] != "" || len(e.Scanners) != 2 {
		t.Errorf("scanners %v", e.Scanners)
	}
	if len(e.VEX) != 1 || string(e.VEX["b.json"]) != "b" {
		t.Errorf("documents %v", e.VEX)
	}
}

func TestAnImageThatCannotBeProvedIsNamed(t *testing.T) {
	w := newWorld()
	good := w.image("good", "a")
	bad := w.image("bad", "b")
	bad.Materials = []kiln.Material{{Kind: kiln.MaterialImage, Digest: digest("good")}}
	delete(w.layers, bad.Manifest)
	_, err := w.prover().Prove(t.Context(), request(kiln.DefaultGate(), good, bad))
	if err == nil || !errors.Is(err, kiln.ErrNotFound) {
		t.Errorf("%v", err)
	}
	if w.signed[bad.Manifest] {
		t.Error("it was signed")
	}
}

func TestWhatIsDoneIsTold(t *testing.T) {
	w := newWorld()
	web, p := w.image("web", "a"), w.prover()
	want := func(told ...string) {
		t.Helper()
		if !slices.Equal(w.told, told) {
			t.Errorf("told %q, not %q", w.told, told)
		}
		w.told = nil
	}
	if _, err := p.Look(t.Context(), web.Manifest, nil); err != nil {
		t.Fatal(err)
	}
	want("inspected true <nil>", "scan pass <nil>")
	r := request(kiln.DefaultGate(), web)
	w.outcome = kiln.OutcomeFail
	prove(t, p, r)
	want("inspected true <nil>", "release fail <nil>")
	if _, err := p.Foresee(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	want("plan fail <nil>")
	if _, _, err := p.Rejudge(t.Context(), web.Manifest, kiln.DefaultGate(), nil); err != nil {
		t.Fatal(err)
	}
	want("rescan fail <nil>")
	p.opt.Judge = func(kiln.Gate, Evidence, time.Time) (kiln.Verdict, error) {
		return kiln.Verdict{}, errors.New("a broken document")
	}
	if _, _, err := p.Rejudge(t.Context(), web.Manifest, kiln.DefaultGate(), nil); err == nil {
		t.Fatal("no error")
	}
	want("rescan  a broken document")
}

// TestWhoSignedAnImage: a registry is asked once, and only by who may be let pass
// by it.
func TestWhoSignedAnImage(t *testing.T) {
	w := newWorld()
	p := w.prover()
	web := w.image("web", "a")
	ask := func(gate kiln.Gate) kiln.ProveRequest {
		r := request(gate, web)
		r.Images[0].Reference, r.Images[0].Platform = "example.com/web:1", "linux/amd64"
		r.Resolved.References = []kiln.LockedReference{{Reference: "example.com/web:1", Index: digest("index"), Platforms: map[string]kiln.Digest{"linux/amd64": web.Manifest}}}
		return r
	}
	want := func(signed Signed, questions ...string) {
		t.Helper()
		got := w.evidence[len(w.evidence)-1].Signed
		if !slices.Equal(got.By, signed.By) || !slices.Equal(got.Trusted, signed.Trusted) || got.Unasked != signed.Unasked || !slices.Equal(w.questions, questions) {
			t.Errorf("%+v after %q", got, w.questions)
		}
		w.questions = nil
	}
	prove(t, p, ask(kiln.DefaultGate()))
	want(Signed{})
	strict := kiln.DefaultGate()
	strict.SignedBy = []string{"ci"}
	known := w.Names()
	w.answer, w.away = []string{"team"}, errors.New("half of it is away")
	if _, err := p.Foresee(t.Context(), ask(strict)); err != nil {
		t.Fatal(err)
	}
	want(Signed{By: []string{"team"}, Trusted: known, Unasked: "half of it is away"}, "example.com/web:1 true true false")
	prove(t, p, ask(strict))
	want(Signed{By: []string{"team"}, Trusted: known, Unasked: "half of it is away"}, "example.com/web:1 true true true")
	w.answer, w.away = []string{"ci"}, nil
	r := ask(strict)
	r.Resolved.References[0].Platforms["linux/amd64"] = digest("another") // it was locked anew meanwhile
	prove(t, p, r)
	want(Signed{By: []string{"team", "ci"}, Trusted: known}, "example.com/web:1 false true true")
	prove(t, p, ask(strict))
	want(Signed{By: []string{"ci"}, Trusted: known})
	// Who looks, and a rescan, go by what is known here.
	w.kept = nil
	if _, err := p.Look(t.Context(), web.Manifest, func(g *kiln.Gate) { g.SignedBy = strict.SignedBy }); err != nil {
		t.Fatal(err)
	}
	want(Signed{Trusted: known})
	w.kept = []string{"ci"}
	if _, _, err := p.Rejudge(t.Context(), web.Manifest, strict, nil); err != nil {
		t.Fatal(err)
	}
	want(Signed{By: []string{"ci"}, Trusted: known})
}

func TestThereIsNoInventoryOfAStranger(t *testing.T) {
	w := newWorld()
	web := w.image("web", "a")
	if _, err := w.prover().Inventory(t.Context(), web.Manifest); !errors.Is(err, kiln.ErrNotFound) {
		t.Errorf("%v", err)
	}
	prove(t, w.prover(), request(kiln.DefaultGate(), web))
	if i, err := w.prover().Inventory(t.Context(), web.Manifest); err != nil || len(i.Packages) != 1 {
		t.Errorf("%+v %v", i, err)
	}
}
