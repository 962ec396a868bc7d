package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/kilntest"
)

// world is what a repave meets: registries whose tags move, a baker that bakes
// what they have, and advisories about what was baked.
type world struct {
	mu       sync.Mutex
	tags     map[string]string            // reference: what it names now
	says     map[string]map[string]string // what a base is: finding, and the version that mends it
	database string
	whole    bool
	unread   bool      // definitions cannot be read
	resolved kiln.Lock // what the prover was told last
	asked    int
	refused  error // by the registries
	origins  map[kiln.Digest]kiln.Origin
	bundles  map[kiln.Digest]kiln.Bundle
	bases    map[kiln.Digest]string // of what was baked: what it was baked from
}

func newWorld() *world {
	return &world{
		tags: map[string]string{"base:1": "old"}, says: map[string]map[string]string{}, database: "one", whole: true,
		origins: map[kiln.Digest]kiln.Origin{}, bundles: map[kiln.Digest]kiln.Bundle{}, bases: map[kiln.Digest]string{},
	}
}

func (w *world) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

// questions is how often the advisories were asked about an image.
func (w *world) questions() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.asked
}

// unreadable says whether no definition can be read.
func (w *world) unreadable() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.unread
}

// originated is whether there is an origin of a digest, and how many there are.
func (w *world) originated(d kiln.Digest) (bool, int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, ok := w.origins[d]
	return ok, len(w.origins)
}

// base is what an image was baked from.
func (w *world) base(image kiln.Digest) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.bases[image]
}

func locked(reference, base string) kiln.LockedReference {
	return kiln.LockedReference{Reference: reference, Index: kiln.DigestOf([]byte(base)), Platforms: map[string]kiln.Digest{"linux/amd64": kiln.DigestOf([]byte(base))}}
}

// worldBaker bakes every image from base:1.
type worldBaker struct{ *world }

func (b worldBaker) standsOn(l kiln.Lock) (string, kiln.Lock) {
	for _, r := range l.References {
		for _, name := range []string{"old", "new", "newer"} {
			if r.Index == kiln.DigestOf([]byte(name)) {
				return name, l
			}
		}
	}
	return b.tags["base:1"], kiln.Lock{References: []kiln.LockedReference{locked("base:1", b.tags["base:1"])}}
}

func (b worldBaker) Bake(_ context.Context, r kiln.BakeRequest) (kiln.BakeResult, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	base, lock := b.standsOn(r.Lock)
	out := kiln.BakeResult{Images: map[string]kiln.Baked{}, Lock: lock}
	for _, i := range r.Images {
		d := kiln.DigestOf([]byte(i.Name + " " + base))
		b.bases[d] = base
		out.Images[i.Name] = kiln.Baked{Name: i.Name, Manifest: d, Platform: i.Platform}
	}
	return out, nil
}

func (b worldBaker) Lookup(ctx context.Context, r kiln.BakeRequest) (map[string]kiln.Baked, map[string]string, error) {
	out, err := b.Bake(ctx, r)
	return out.Images, nil, err
}

func (b worldBaker) Refresh(_ context.Context, r kiln.BakeRequest) (kiln.Lock, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out kiln.Lock
	for _, ref := range r.Lock.References {
		out.References = append(out.References, locked(ref.Reference, b.tags[ref.Reference]))
	}
	return out, b.refused
}

// worldStore keeps origins and bundles.
type worldStore struct {
	store
	*world
}

func (s worldStore) PutBundle(_ context.Context, b kiln.Bundle, _ map[string]string) (kiln.Digest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bundles[kiln.DigestJSON(b)] = b
	return kiln.DigestJSON(b), nil
}

func (s worldStore) Bundle(_ context.Context, d kiln.Digest) (kiln.Bundle, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bundles[d], nil
}

func (s worldStore) PutOrigin(_ context.Context, o kiln.Origin) (kiln.Digest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.origins[kiln.DigestJSON(o)] = o
	return kiln.DigestJSON(o), nil
}

func (s worldStore) Origin(_ context.Context, d kiln.Digest) (kiln.Origin, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, ok := s.origins[d]
	if !ok {
		return o, kiln.Errorf(kiln.CodeNotFound, "", "it was collected")
	}
	return o, nil
}

// worldLoader reads kiln.lock, too, as JSON.
type worldLoader struct {
	loader
	*world
}

func (l worldLoader) Load(tree fs.FS, o LoadOptions) (Definition, error) {
	def, err := l.loader.Load(tree, o)
	if l.unreadable() {
		return def, errors.New("of a later version")
	}
	if raw, missing := fs.ReadFile(tree, "kiln.lock"); err == nil && missing == nil {
		err = json.Unmarshal(raw, &def.Lock)
	}
	return def, err
}

// worldProver lets pass what has no finding that was known when it was baked.
type worldProver struct{ *world }

func (p worldProver) verdict(image kiln.Digest) kiln.Verdict {
	v := kiln.Verdict{Image: image, Outcome: kiln.OutcomePass, Database: kiln.DigestOf([]byte(p.database))}
	for _, id := range sortedKeys(p.says[p.bases[image]]) {
		f := kiln.Finding{ID: id, Aliases: []string{"ALIAS-" + id}, Kind: kiln.FindingVulnerability, State: kiln.FindingOpen, Severity: kiln.SeverityHigh, Fails: true, Package: "libz"}
		if fixed := p.says[p.bases[image]][id]; fixed != "" {
			f.FixedIn = []string{fixed}
		}
		if strings.HasPrefix(id, "LOW") {
			f.Fails = false
		}
		if strings.HasPrefix(id, "IGNORED") {
			f.Fails, f.State = false, kiln.FindingIgnored
		}
		v.Findings = append(v.Findings, f)
	}
	return v
}

func (p worldProver) Prove(_ context.Context, r kiln.ProveRequest) (map[string]kiln.Verdict, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.resolved = r.Resolved
	out := map[string]kiln.Verdict{}
	for name, b := range r.Baked {
		out[name] = p.verdict(b.Manifest)
	}
	return out, nil
}

func (p worldProver) Foresee(ctx context.Context, r kiln.ProveRequest) (map[string]kiln.Verdict, error) {
	return p.Prove(ctx, r)
}

func (p worldProver) SignBundle(context.Context, kiln.Digest, kiln.ProveRequest) error { return nil }

func (p worldProver) Rejudge(_ context.Context, image kiln.Digest, _ kiln.Gate, _ map[string][]byte) (kiln.Verdict, bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked++
	v := p.verdict(image)
	if slices.ContainsFunc(v.Findings, func(f kiln.Finding) bool { return f.Fails }) {
		v.Outcome = kiln.OutcomeFail
	}
	return v, p.whole, nil
}

func (p worldProver) Database() kiln.Digest {
	p.mu.Lock()
	defer p.mu.Unlock()
	return kiln.DigestOf([]byte(p.database))
}

// stamps signs with a word.
type stamps struct{}

func (stamps) Sign(_ context.Context, payload []byte) ([]byte, error) {
	return []byte(kiln.DigestOf(payload)), nil
}

func (stamps) Check(_ context.Context, payload, signature []byte) error {
	if string(signature) != string(kiln.DigestOf(payload)) {
		return errors.New("signed by another")
	}
	return nil
}

// inWorld runs a test with a control plane in a world.
func inWorld(t *testing.T, test func(t *testing.T, b *bench, w *world)) {
	t.Helper()
	w := newWorld()
	onBenchAs(t, func(b *bench) { b.world = w }, func(t *testing.T, b *bench) { test(t, b, w) })
}

// with is a request whose tree has a kiln.lock with what a base was.
func (a app) with(base string) UpRequest {
	r := a.request()
	raw, err := json.Marshal(kiln.Lock{References: []kiln.LockedReference{locked("base:1", base)}})
	if err != nil {
		panic(err)
	}
	r.Tree.Entries = append(r.Tree.Entries, kiln.TreeEntry{Path: "kiln.lock", Link: string(raw)})
	return r
}

// learns makes the database say that a base has findings.
func (w *world) learns(base string, findings map[string]string) {
	w.set(func() { w.says[base] = findings; w.database += "+" })
}

// looked waits until the control plane has looked at the database again.
func looked() { kilntest.Pass(2 * rescanLook) }

func (b *bench) repave(r RepaveRequest) (Repaved, error) {
	r.Actor = "ada"
	out, err := b.Repave(b.t.Context(), r, nil)
	if len(out.Environments) == 0 {
		return Repaved{}, err
	}
	return out.Environments[0], err
}

// tally is how many events of a kind there are.
func (b *bench) tally(kind string) (n int) {
	for _, k := range b.kinds() {
		if k == kind {
			n++
		}
	}
	return n
}

// problems are those of production.
func (b *bench) problemsOf() []string {
	b.t.Helper()
	status, err := b.Status(b.t.Context())
	check(b.t, err)
	return status.Environments[0].Problems
}

func (b *bench) wantBase(base string) {
	b.t.Helper()
	for _, f := range b.fleetsOf() {
		if got := b.world.base(f.Template.Image); got != base {
			b.t.Fatalf("%s runs from base %q, want %q", f.Template.Service, got, base)
		}
	}
}

func (b *bench) fleetsOf() []kiln.Fleet {
	b.t.Helper()
	live, err := b.Release(b.t.Context(), "production", 0)
	check(b.t, err)
	var out []kiln.Fleet
	for _, s := range live.Services {
		out = append(out, kiln.Fleet{Template: s.Template})
	}
	return out
}

func TestWhatTheWorldLearnsIsToldOnce(t *testing.T) {
	inWorld(t, func(t *testing.T, b *bench, w *world) {
		b.mustUp(shop("production", "1"))
		looked()
		if n := b.tally("finding.new"); n != 0 {
			t.Fatalf("%d findings of nothing", n)
		}
		w.learns("old", map[string]string{"CVE-1": "1.2", "LOW-1": "1.1"})
		looked()
		if b.tally("finding.new") != 1 {
			t.Fatalf("events %v", b.kinds())
		}
		problems := b.problemsOf()
		if len(problems) != 1 || !strings.Contains(problems[0], "CVE-1 (high) is in services mailer, orders, web, by libz, fixed in 1.2: kiln repave production") {
			t.Fatalf("problems %q", problems)
		}
		// Neither an hour nor a restart tells it again.
		kilntest.Pass(2 * rescanEvery)
		b.halt()
		b.start()
		looked()
		if b.tally("finding.new") != 1 || len(b.problemsOf()) != 1 {
			t.Fatalf("told again: %v", b.kinds())
		}
		// What cannot be told is not gone.
		w.set(func() { w.says, w.whole, w.database = nil, false, "part" })
		looked()
		if b.tally("finding.gone") != 0 || len(b.problemsOf()) != 1 {
			t.Fatalf("gone although nothing is known: %v", b.kinds())
		}
		w.set(func() { w.whole, w.database = true, "all" })
		looked()
		if b.tally("finding.gone") != 1 || len(b.problemsOf()) != 0 {
			t.Fatalf("not gone: %v", b.kinds())
		}
	})
}

// TestTheProverKnowsWhatReferencesWereResolvedTo, also where no lock said it.
func TestTheProverKnowsWhatReferencesWereResolvedTo(t *testing.T) {
	inWorld(t, func(t *testing.T, b *bench, w *world) {
		b.mustUp(shop("production", "1"))
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.resolved.References) != 1 || w.resolved.References[0].Index != locked("base:1", "old").Index {
			t.Errorf("it was told %+v", w.resolved)
		}
	})
}

// TestWhatRunsIsCountedAsItWasJudgedLast: nothing is judged for it, and what is
// not known is said to be unknown.
func TestWhatRunsIsCountedAsItWasJudgedLast(t *testing.T) {
	inWorld(t, func(t *testing.T, b *bench, w *world) {
		want := func(findings map[kiln.ReleaseState]int, services map[kiln.Outcome]int) {
			t.Helper()
			asked := w.questions()
			all := b.Judgements()
			if w.questions() != asked {
				t.Error("something was judged for it")
			}
			if len(all) != 1 || all[0].Environment != "production" || !maps.Equal(all[0].Services, services) {
				t.Fatalf("%+v", all)
			}
			for state, n := range findings {
				if counts := all[0].Findings[state]; counts[kiln.SeverityHigh] != n || len(counts) != len(kiln.Severities()) {
					t.Errorf("%s: %v, want %d", state, counts, n)
				}
			}
			if len(all[0].Findings) != len(findings) {
				t.Errorf("releases %v", all[0].Findings)
			}
		}
		if got := b.Judgements(); len(got) != 0 {
			t.Fatalf("%+v of nothing", got)
		}
		b.mustUp(shop("production", "1"))
		looked()
		want(map[kiln.ReleaseState]int{kiln.ReleaseLive: 0}, map[kiln.Outcome]int{kiln.OutcomePass: 3})
		w.learns("old", map[string]string{"CVE-1": "1.2", "LOW-1": "1.1", "IGNORED-1": "1.1"})
		looked()
		want(map[kiln.ReleaseState]int{kiln.ReleaseLive: 2}, map[kiln.Outcome]int{kiln.OutcomeFail: 3})
		b.mustUp(shop("production", "2"))
		looked()
		want(map[kiln.ReleaseState]int{kiln.ReleaseLive: 2, kiln.ReleaseParked: 2}, map[kiln.Outcome]int{kiln.OutcomeFail: 3})
		w.set(func() { w.unread = true; w.database += "+" })
		looked()
		want(map[kiln.ReleaseState]int{kiln.ReleaseLive: 2, kiln.ReleaseParked: 2}, map[kiln.Outcome]int{kiln.OutcomeUnknown: 3})
	})
}

func TestNothingIsJudgedWithoutACause(t *testing.T) {
	inWorld(t, func(t *testing.T, b *bench, w *world) {
		b.mustUp(shop("production", "1"))
		b.settled()
		looked()
		w.set(func() { w.asked = 0 })
		kilntest.Pass(rescanEvery / 2)
		if n := w.questions(); n != 0 {
			t.Fatalf("asked %d times though nothing changed", n)
		}
		kilntest.Pass(rescanEvery)
		if n := w.questions(); n != 3 {
			t.Fatalf("asked %d times in an hour and a half, about 3 images", n)
		}
	})
}

func TestRepaveBringsTheNewBase(t *testing.T) {
	inWorld(t, func(t *testing.T, b *bench, w *world) {
		a := shop("production", "1")
		_, err := b.Up(t.Context(), a.with("old"), nil)
		check(t, err)
		if out, err := b.repave(RepaveRequest{}); err != nil || out.Outcome != RepaveNothing {
			t.Fatalf("nothing is newer: %+v %v", out, err)
		}
		w.learns("old", map[string]string{"CVE-1": "2"})
		w.set(func() { w.tags["base:1"] = "new" })
		planned, err := b.repave(RepaveRequest{Plan: true})
		if err != nil || planned.Outcome != RepavePlanned || len(planned.Pins) != 1 || len(planned.Steps) != 3 {
			t.Fatalf("plan: %+v %v", planned, err)
		}
		b.wantBase("old")
		out, err := b.repave(RepaveRequest{Finding: "alias-cve-1"})
		check(t, err)
		if out.Outcome != RepaveDone || out.From != 1 || out.Release != 2 || *out.Before != (FindingCount{1, 1}) || *out.After != (FindingCount{}) {
			t.Fatalf("repave: %+v", out)
		}
		b.wantBase("new")
		b.settled()
		looked()
		if problems := b.problemsOf(); len(problems) != 0 {
			t.Fatalf("problems %q", problems)
		}
		kilntest.Pass(31 * time.Minute) // the old release is parked no longer
		looked()
		if b.tally("finding.gone") != 1 || b.tally("repave.done") != 1 {
			t.Fatalf("events %v", b.kinds())
		}
		var failed *kiln.Error
		if _, err := b.repave(RepaveRequest{Finding: "CVE-1"}); !errors.As(err, &failed) || failed.Code != kiln.CodeNotFound {
			t.Fatalf("a finding that nothing has: %v", err)
		}
	})
}

func TestTheNextCommitDoesNotBringTheOldBaseBack(t *testing.T) {
	inWorld(t, func(t *testing.T, b *bench, w *world) {
		a := shop("production", "1")
		up := func(version, base string) UpResult {
			t.Helper()
			r, err := b.Up(t.Context(), shop("production", version).with(base), nil)
			check(t, err)
			b.settled()
			return r
		}
		up("1", "old")
		for _, base := range []string{"new", "newer"} {
			w.set(func() { w.tags["base:1"] = base })
			if out, err := b.repave(RepaveRequest{}); err != nil || out.Outcome != RepaveDone {
				t.Fatalf("repave to %s: %+v %v", base, out, err)
			}
			b.settled()
		}
		plan, err := b.Plan(t.Context(), a.with("old"))
		if err != nil || len(plan.Overlay) != 1 || len(plan.Steps) != 0 {
			t.Fatalf("plan with the old lock: %+v %v", plan, err)
		}
		r := up("2", "old")
		b.wantBase("newer")
		if len(r.Overlay) != 1 || !strings.Contains(r.Overlay[0], "base:1") || r.Lock.References[0].Index != kiln.DigestOf([]byte("newer")) {
			t.Fatalf("up with the old lock: %q, lock %v", r.Overlay, r.Lock)
		}
		// The lock that the client wrote says the same: there is nothing to say.
		if r = up("2", "newer"); len(r.Overlay) != 0 || !r.Nothing {
			t.Fatalf("up with the new lock: %+v", r)
		}
		// One in between was replaced as well.
		if r = up("2", "new"); len(r.Overlay) != 1 || !r.Nothing {
			t.Fatalf("up with the lock in between: %+v", r)
		}
	})
}

func TestALockThatDecidesAnewEndsTheOverlay(t *testing.T) {
	inWorld(t, func(t *testing.T, b *bench, w *world) {
		_, err := b.Up(t.Context(), shop("production", "1").with("old"), nil)
		check(t, err)
		w.set(func() { w.tags["base:1"] = "new" })
		_, err = b.repave(RepaveRequest{})
		check(t, err)
		b.settled()
		for _, base := range []string{"newer", "old"} {
			r, err := b.Up(t.Context(), shop("production", "2").with(base), nil)
			check(t, err)
			if len(r.Overlay) != 0 {
				t.Fatalf("%s: %q", base, r.Overlay)
			}
			b.settled()
			b.wantBase(base)
		}
		if b.tally("lock.outgrown") != 1 {
			t.Fatalf("events %v", b.kinds())
		}
	})
}

func TestARepaveThatWasRolledBackPinsNothing(t *testing.T) {
	inWorld(t, func(t *testing.T, b *bench, w *world) {
		a := shop("production", "1")
		_, err := b.Up(t.Context(), a.with("old"), nil)
		check(t, err)
		w.set(func() { w.tags["base:1"] = "new" })
		_, err = b.repave(RepaveRequest{})
		check(t, err)
		b.settled()
		_, err = b.Rollback(t.Context(), RollbackRequest{Environment: "production"}, nil)
		check(t, err)
		b.settled()
		r, err := b.Up(t.Context(), a.with("old"), nil)
		if err != nil || !r.Nothing || len(r.Overlay) != 0 {
			t.Fatalf("up after the rollback: %+v %v", r, err)
		}
		b.wantBase("old")
	})
}

func TestPinsOfAnotherAreRefused(t *testing.T) {
	inWorld(t, func(t *testing.T, b *bench, w *world) {
		a := shop("production", "1")
		_, err := b.Up(t.Context(), a.with("old"), nil)
		check(t, err)
		w.set(func() { w.tags["base:1"] = "new" })
		_, err = b.repave(RepaveRequest{})
		check(t, err)
		b.settled()
		var kept signedOverlay
		check(t, b.setting(t.Context(), overlayOf("production"), &kept))
		kept.Payload = []byte(strings.Replace(string(kept.Payload), "base:1", "evil:1", 1))
		raw, err := json.Marshal(kept)
		check(t, err)
		check(t, b.ledger.SetSetting(t.Context(), overlayOf("production"), raw, kiln.Event{}))
		var failed *kiln.Error
		if _, err := b.Up(t.Context(), a.with("old"), nil); !errors.As(err, &failed) || failed.Code != kiln.CodeRefused || failed.Hint != "kiln repave production makes them anew" {
			t.Fatalf("up: %v", err)
		}
		w.set(func() { w.tags["base:1"] = "newer" })
		if out, err := b.repave(RepaveRequest{}); err != nil || out.Outcome != RepaveDone {
			t.Fatalf("repave: %+v %v", out, err)
		}
		b.settled()
		if r, err := b.Up(t.Context(), a.with("new"), nil); err != nil || len(r.Overlay) != 1 {
			t.Fatalf("up: %+v %v", r.Overlay, err)
		}
	})
}

// TestWhatRunsWasBakedFromIsKept looks at the roots of a collection.
func TestWhatRunsWasBakedFromIsKept(t *testing.T) {
	inWorld(t, func(t *testing.T, b *bench, w *world) {
		want := func(n int) {
			t.Helper()
			k, err := b.keep(t.Context(), keptReleases)
			check(t, err)
			if len(k.Origins) != n {
				t.Fatalf("%d origins are kept, want %d", len(k.Origins), n)
			}
			for _, d := range k.Origins {
				if ok, _ := w.originated(d); !ok {
					t.Fatalf("%s is no origin", d)
				}
			}
		}
		for _, version := range []string{"1", "2", "3"} {
			_, err := b.Up(t.Context(), shop("production", version).with("old"), nil)
			check(t, err)
			b.settled()
		}
		want(2) // of the live and the parked one
		kilntest.Pass(31 * time.Minute)
		want(1)
		if _, err := b.repave(RepaveRequest{}); err != nil {
			t.Fatal(err)
		}
	})
}

func TestRepaveSaysWhatItNeeds(t *testing.T) {
	inWorld(t, func(t *testing.T, b *bench, w *world) {
		a := shop("production", "1")
		_, err := b.Up(t.Context(), a.with("old"), nil)
		check(t, err)
		w.set(func() { w.tags["base:1"] = "new" })
		var kept map[kiln.Digest]kiln.Origin
		w.set(func() { kept, w.origins = w.origins, map[kiln.Digest]kiln.Origin{} })
		var failed *kiln.Error
		if _, err := b.repave(RepaveRequest{}); !errors.As(err, &failed) || failed.Code != kiln.CodeNotFound || !strings.Contains(failed.Hint, "kiln up production") {
			t.Fatalf("without the files: %v", err)
		}
		r, err := b.Up(t.Context(), a.with("old"), nil)
		if _, n := w.originated(""); err != nil || !r.Nothing || n != 1 {
			t.Fatalf("an up without a change sends the files again: %+v %v", r, err)
		}
		w.set(func() { w.origins = kept; w.refused = kiln.Errorf(kiln.CodeUnavailable, "", "no registry") })
		if _, err := b.repave(RepaveRequest{}); !errors.As(err, &failed) || failed.Code != kiln.CodeUnavailable {
			t.Fatalf("without a registry: %v", err)
		}
		w.set(func() { w.refused = nil })
		if _, err := b.repave(RepaveRequest{Environments: []string{"production"}, Reach: kiln.Reach{"qa"}}); !errors.As(err, &failed) || failed.Code != kiln.CodeRefused {
			t.Fatalf("out of reach: %v", err)
		}
		if _, err := b.repave(RepaveRequest{Reach: kiln.Reach{"qa"}}); !errors.As(err, &failed) || failed.Code != kiln.CodeNotFound {
			t.Fatalf("all within a reach that has none: %v", err)
		}
		w.learns("old", map[string]string{"CVE-1": "2"})
		w.learns("new", map[string]string{"CVE-1": "2"})
		if out, err := b.repave(RepaveRequest{Finding: "CVE-1"}); err != nil || out.Outcome != RepaveKept || !strings.Contains(out.Reason, "still has CVE-1") {
			t.Fatalf("a base that does not help: %+v %v", out, err)
		}
		b.wantBase("old")
	})
}

// auto is the shop, repaved by Kiln itself.
func auto() app {
	a := shop("production", "1")
	a.Environment.Repave, a.Environment.RepaveEvery = kiln.RepaveAuto, 6*time.Hour
	return a
}

func TestRepaveByItself(t *testing.T) {
	inWorld(t, func(t *testing.T, b *bench, w *world) {
		_, err := b.Up(t.Context(), auto().with("old"), nil)
		check(t, err)
		b.settled()
		// Nothing newer yet: it is tried, and not again for six hours.
		w.learns("old", map[string]string{"CVE-1": "2"})
		looked()
		if b.tally("repave.begun") != 1 || b.tally("repave.skipped") != 1 {
			t.Fatalf("events %v", b.kinds())
		}
		w.set(func() { w.tags["base:1"] = "new" })
		kilntest.Pass(4 * time.Hour)
		b.wantBase("old")
		if b.tally("repave.begun") != 1 || b.tally("repave.skipped") != 2 {
			t.Fatalf("tried again too early, or told again: %v", b.kinds())
		}
		kilntest.Pass(3 * time.Hour)
		b.settled()
		b.wantBase("new")
		if b.tally("repave.done") != 1 || b.tally("rollout.begun") != 2 {
			t.Fatalf("events %v", b.kinds())
		}
	})
}

func TestRepaveByItselfOnlyWhenItHelps(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*app)
		old    map[string]string
		fresh  map[string]string
		reason string
	}{
		"as many":     {old: map[string]string{"CVE-1": "2"}, fresh: map[string]string{"CVE-2": "3"}, reason: "as many findings"},
		"unfixable":   {old: map[string]string{"CVE-1": ""}, reason: "no version mends CVE-1"},
		"ends anyway": {change: func(a *app) { a.Environment.TTL = 100 * time.Hour }, old: map[string]string{"CVE-1": "2"}, reason: "it ends by itself"},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, b *bench, w *world) {
				a := auto()
				if c.change != nil {
					c.change(&a)
				}
				_, err := b.Up(t.Context(), a.with("old"), nil)
				check(t, err)
				b.settled()
				w.set(func() { w.tags["base:1"] = "new" })
				w.learns("new", c.fresh)
				w.learns("old", c.old)
				kilntest.Pass(3 * time.Hour)
				b.wantBase("old")
				if !slices.ContainsFunc(b.messages("repave.skipped"), func(m string) bool { return strings.Contains(m, c.reason) }) {
					t.Fatalf("messages %q", b.messages("repave.skipped"))
				}
			})
		})
	}
}

// messages are those of the events of a kind.
func (b *bench) messages(kind string) (out []string) {
	b.t.Helper()
	check(b.t, b.Events(b.t.Context(), EventQuery{Environment: "production"}, func(e kiln.Event) error {
		if e.Kind == kind {
			out = append(out, e.Message)
		}
		return nil
	}))
	return out
}

func TestRepaveByItselfNeverTwiceWithPinsThatWereRolledBack(t *testing.T) {
	inWorld(t, func(t *testing.T, b *bench, w *world) {
		_, err := b.Up(t.Context(), auto().with("old"), nil)
		check(t, err)
		b.settled()
		w.set(func() { w.tags["base:1"] = "new" })
		w.learns("old", map[string]string{"CVE-1": "2"})
		looked()
		b.settled()
		b.wantBase("new")
		_, err = b.Rollback(t.Context(), RollbackRequest{Environment: "production"}, nil)
		check(t, err)
		kilntest.Pass(24 * time.Hour)
		b.wantBase("old")
		if said := b.messages("repave.skipped"); b.tally("repave.failed") != 0 || !strings.Contains(said[len(said)-1], "it is what was rolled back") {
			t.Fatalf("skipped %q, failed %q", said, b.messages("repave.failed"))
		}
		if out, err := b.repave(RepaveRequest{}); err != nil || out.Outcome != RepaveKept {
			t.Fatalf("asked for: %+v %v", out, err)
		}
		w.set(func() { w.tags["base:1"] = "newer" })
		kilntest.Pass(8 * time.Hour)
		b.settled()
		b.wantBase("newer")
	})
}

func TestRepaveByItselfNotTwiceWhatDidNotGoLive(t *testing.T) {
	inWorld(t, func(t *testing.T, b *bench, w *world) {
		_, err := b.Up(t.Context(), auto().with("old"), nil)
		check(t, err)
		b.settled()
		b.engine.BehaveImage(kiln.DigestOf([]byte("web-1 new")), kilntest.Behaviour{NeverReady: true})
		w.set(func() { w.tags["base:1"] = "new" })
		w.learns("old", map[string]string{"CVE-1": "2"})
		kilntest.Pass(30 * time.Hour)
		b.wantBase("old")
		if b.tally("repave.failed") != 1 || b.tally("rollout.begun") != 2 {
			t.Fatalf("events %v", b.kinds())
		}
		// The pins of what did not go live do not count.
		if r, err := b.Up(t.Context(), auto().with("old"), nil); err != nil || !r.Nothing || len(r.Overlay) != 0 {
			t.Fatalf("up: %+v %v", r, err)
		}
	})
}

func TestRepaveByItselfWaitsForWhoeverChangesTheEnvironment(t *testing.T) {
	inWorld(t, func(t *testing.T, b *bench, w *world) {
		_, err := b.Up(t.Context(), auto().with("old"), nil)
		check(t, err)
		b.settled()
		h, err := b.hold(t.Context(), "production", "kiln up", "ada", newFeed(nil))
		check(t, err)
		w.set(func() { w.tags["base:1"] = "new" })
		w.learns("old", map[string]string{"CVE-1": "2"})
		kilntest.Pass(30 * time.Minute)
		if b.tally("repave.begun") != 0 {
			t.Fatal("it did not wait")
		}
		b.release("production", h)
		kilntest.Pass(2 * busyAgain)
		b.settled()
		b.wantBase("new")
	})
}

// TestOverlayProperties holds what an overlay is for against any history of
// repaves: what it replaced never comes back, what it did not know wins.
func TestOverlayProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := overlay{Environment: "production"}
		file := kiln.Lock{References: []kiln.LockedReference{locked("base:1", "0"), locked("other:1", "x")}}
		used, seen := file, []string{"0"}
		for n := range rapid.IntRange(1, 6).Draw(t, "repaves") {
			base := fmt.Sprint(n + 1)
			next := kiln.Lock{References: []kiln.LockedReference{locked("base:1", base), locked("other:1", "x")}}
			o = o.over(kiln.DigestOf([]byte(base)), file, used, moved(used, next))
			used, seen = next, append(seen, base)
			if rapid.Bool().Draw(t, "committed") {
				file = next
			}
		}
		for _, base := range seen {
			laid, said := o.lay(kiln.Lock{References: []kiln.LockedReference{locked("base:1", base), locked("other:1", "x")}})
			if kiln.DigestJSON(laid) != kiln.DigestJSON(used) || (len(said) == 0) != (base == seen[len(seen)-1]) {
				t.Fatalf("a lock with base %s becomes %v, said %q", base, laid, said)
			}
			if _, gone := o.without(laid); len(gone) > 0 {
				t.Fatalf("its own pins end it: %v", gone)
			}
		}
		decided := kiln.Lock{References: []kiln.LockedReference{locked("base:1", "decided"), locked("other:1", "x")}}
		if laid, said := o.lay(decided); kiln.DigestJSON(laid) != kiln.DigestJSON(decided) || len(said) > 0 {
			t.Fatalf("what was decided anew was replaced: %v", laid)
		}
		if left, gone := o.without(decided); len(left.Layers) != 0 || len(gone) != 1 {
			t.Fatalf("what was decided anew did not end it: %v", left)
		}
	})
}

func (p worldProver) AdmitBundle(context.Context, kiln.Digest) error { return nil }
