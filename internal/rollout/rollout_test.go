package rollout

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kilnproject/kiln"
	"pgregory.net/rapid"
)

// world is an engine of numbers: what is applied is there, with as many ready
// instances as the test says.
type world struct {
	fleets map[kiln.FleetID]int
	view   View
}

func drawRelease(t *rapid.T, number int, state kiln.ReleaseState) *kiln.Release {
	r := &kiln.Release{Environment: "p", Number: number, State: state}
	park := rapid.SampledFrom([]time.Duration{0, time.Minute}).Draw(t, fmt.Sprint("park", number))
	for _, name := range []string{"api", "mailer", "web"} {
		if !rapid.Bool().Draw(t, fmt.Sprint("has", number, name)) {
			continue
		}
		s := kiln.ReleaseService{
			Template: kiln.Template{Service: name, Image: kiln.Digest(rapid.SampledFrom([]string{"1", "2", "3"}).Draw(t, fmt.Sprint("image", number, name)))},
			Count:    rapid.IntRange(0, 3).Draw(t, fmt.Sprint("count", number, name)),
			Rollout:  kiln.Strategy{Park: park},
		}
		if name != "mailer" {
			s.Template.Ports = []kiln.Port{{Name: "http", Number: 80}}
		}
		if rapid.Bool().Draw(t, fmt.Sprint("verify", number, name)) {
			s.Rollout.Verify = []kiln.Verify{{Name: "page", HTTP: "/"}}
		}
		r.Services = append(r.Services, s)
	}
	return r
}

func drawRollout(t *rapid.T) Rollout {
	r := Rollout{Environment: "p", Kind: rapid.SampledFrom([]Kind{Up, Rollback}).Draw(t, "kind")}
	if rapid.Bool().Draw(t, "from") {
		r.From = drawRelease(t, 3, kiln.ReleaseLive)
		if rapid.Bool().Draw(t, "parked") {
			r.Parked = drawRelease(t, 2, kiln.ReleaseParked)
		}
	}
	to, state := 4, kiln.ReleasePending
	if r.Kind == Rollback {
		to, state = 1, rapid.SampledFrom([]kiln.ReleaseState{kiln.ReleaseParked, kiln.ReleaseRetired, kiln.ReleaseCondemned}).Draw(t, "before")
	}
	if state == kiln.ReleaseParked {
		r.Parked = nil
	}
	r.To = *drawRelease(t, to, state)
	return r
}

// before is what runs when a rollout begins.
func before(r Rollout) (map[kiln.FleetID]int, View) {
	s := State{Kind: r.Kind, Step: Admit, Before: r.To.State}
	return applied(r, s), ViewOf(r, s)
}

func applied(r Rollout, s State) map[kiln.FleetID]int {
	out := map[kiln.FleetID]int{}
	for _, f := range Fleets(r, s) {
		out[f.ID()] = f.Count
	}
	return out
}

// observation says that of every fleet all instances are ready.
func (w world) observation() kiln.Observation {
	var o kiln.Observation
	for id, n := range w.fleets {
		f := kiln.FleetStatus{ID: id}
		for range n {
			f.Instances = append(f.Instances, kiln.Instance{State: kiln.InstanceReady})
		}
		o.Fleets = append(o.Fleets, f)
	}
	return o
}

// take takes actions, of which the nth fails when it is not negative.
func (w *world) take(r Rollout, s State, actions []Action, fail bool) *Result {
	for i, a := range actions {
		if fail && i == len(actions)-1 && a.Kind != ActWait {
			f := &Failure{Message: "asked for"}
			if a.Kind == ActAdmit {
				f.Code = kiln.CodeNoRoom
			}
			return &Result{Failure: f}
		}
		switch a.Kind {
		case ActApply:
			w.fleets = applied(r, s)
		case ActRoute:
			w.view = ViewOf(r, s)
		case ActAdmit, ActVerify, ActWait, ActPause:
		}
	}
	return &Result{}
}

// run drives a rollout; fail says whether a step's actions fail, or its wait
// finds a dead fleet. Undoing always succeeds in the end.
func run(t *rapid.T, r Rollout, s State, w *world, fail func(Step) bool, each func(State)) State {
	now := time.Unix(1000, 0)
	var result *Result
	for n := 0; !s.Ended(); n++ {
		if n > 200 {
			t.Fatalf("it does not end: %s", s.Step)
		}
		now = now.Add(time.Second)
		seen := Seen{Fleets: w.observation(), Result: result}
		broken := fail(s.Step)
		if broken && (s.Step == Ready || s.Step == Settle) {
			seen.Fleets = kiln.Observation{}
			now = now.Add(time.Hour)
		}
		next, actions := Next(r, s, seen, now)
		if next.Step != s.Step {
			s, result = next, nil
			each(s)
			continue
		}
		result = w.take(r, s, actions, broken)
		if onlyWaits(actions) {
			result = nil
		}
	}
	return s
}

func onlyWaits(actions []Action) bool {
	return !slices.ContainsFunc(actions, func(a Action) bool { return a.Kind != ActWait })
}

func sameFleets(a, b map[kiln.FleetID]int) bool {
	for id, n := range a {
		if b[id] != n {
			return false
		}
	}
	for id, n := range b {
		if a[id] != n {
			return false
		}
	}
	return true
}

func sameView(a, b View) bool {
	numbers := func(v View) []int {
		out := []int{0}
		if v.Live != nil {
			out[0] = v.Live.Number
		}
		for _, r := range v.Others {
			out = append(out, r.Number)
		}
		slices.Sort(out[1:])
		return out
	}
	return slices.Equal(numbers(a), numbers(b))
}

// TestAFailedRolloutEndsAtTheOldRelease fails any one step and demands what
// was before, or what was wanted, and nothing between.
func TestAFailedRolloutEndsAtTheOldRelease(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := drawRollout(t)
		fleets, view := before(r)
		w := &world{fleets: fleets, view: view}
		bad := rapid.SampledFrom(Steps()).Draw(t, "bad")
		failures, times := 0, rapid.IntRange(1, 3).Draw(t, "times")
		end := run(t, r, Begin(r, false, time.Unix(1000, 0)), w, func(s Step) bool {
			if s == bad {
				failures++
			}
			return s == bad && failures <= times
		}, func(State) {})
		wantFleets, wantView := before(r)
		if end.Evicted {
			wantFleets, wantView = applied(r, end), ViewOf(r, end)
			if r.Parked == nil || slices.ContainsFunc(wantView.Others, func(o kiln.Release) bool { return o.Number == r.Parked.Number }) {
				t.Fatal("evicted and still parked")
			}
			if end.Step == Failed && wantView.Live.Number != r.From.Number {
				t.Fatal("failed, and the old release is not live")
			}
		}
		if end.Step == Done {
			wantFleets, wantView = applied(r, end), ViewOf(r, end)
			if wantView.Live.Number != r.To.Number {
				t.Fatal("done, and another release is live")
			}
		}
		if !sameFleets(w.fleets, wantFleets) || !sameView(w.view, wantView) {
			t.Fatalf("%s after a failure at %s: runs %v, want %v", end.Step, bad, w.fleets, wantFleets)
		}
		if end.Step == Failed && (end.Failure == nil || end.Failure.Step != bad) {
			t.Fatalf("failed without the cause at %s: %+v", bad, end.Failure)
		}
	})
}

// TestTheOldReleaseServesUntilTheNewOneIsReady checks at every step that what
// has the traffic is not told to go, and that the new release has its serving
// fleets before it gets any: start before stop.
func TestTheOldReleaseServesUntilTheNewOneIsReady(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := drawRollout(t)
		fleets, view := before(r)
		w := &world{fleets: fleets, view: view}
		run(t, r, Begin(r, false, time.Unix(1000, 0)), w, func(Step) bool { return false }, func(s State) {
			have := applied(r, s)
			for _, v := range []View{w.view, ViewOf(r, s)} {
				if v.Live == nil {
					continue
				}
				for _, one := range v.Live.Services {
					id := kiln.FleetIDOf("p", one.Template)
					if !one.Template.Worker() && have[id] < one.Count && v.Live.Number == ViewOf(r, s).Live.Number {
						t.Fatalf("at %s release %d has the traffic and %s has %d instances", s.Step, v.Live.Number, id, have[id])
					}
				}
			}
			marks := map[kiln.ReleaseState]int{}
			for _, m := range Marks(r, s) {
				marks[m.State]++
			}
			if marks[kiln.ReleaseLive] > 1 || marks[kiln.ReleaseParked] > 1 {
				t.Fatalf("at %s: %v", s.Step, Marks(r, s))
			}
		})
	})
}

// TestAStepCanBeTakenTwice dies after every step's actions, before that is
// recorded, and demands the same end.
func TestAStepCanBeTakenTwice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := drawRollout(t)
		fleets, view := before(r)
		once, twice := &world{fleets: fleets, view: view}, &world{fleets: fleets, view: view}
		never := func(Step) bool { return false }
		a := run(t, r, Begin(r, false, time.Unix(1000, 0)), once, never, func(State) {})
		s := run(t, r, Begin(r, false, time.Unix(1000, 0)), twice, never, func(s State) {
			_, actions := Next(r, Resume(s, time.Unix(1000, 0)), Seen{Fleets: twice.observation()}, time.Unix(1000, 0))
			twice.take(r, s, actions, false) // and the control plane dies
		})
		if a.Step != s.Step || !sameFleets(once.fleets, twice.fleets) || !sameView(once.view, twice.view) {
			t.Fatalf("%s and %s differ", a.Step, s.Step)
		}
	})
}

func TestJudgeByDeaths(t *testing.T) {
	now := time.Unix(1000, 0)
	s := State{Since: now, Began: now}
	fleet := kiln.Fleet{Environment: "p", Count: 2, Template: kiln.Template{Service: "web", Ports: []kiln.Port{{}}}}
	dead := func(kind kiln.CauseKind, ready bool, age time.Duration) kiln.Instance {
		i := kiln.Instance{ID: "web-1", CreatedAt: now.Add(age), Cause: &kiln.Cause{Kind: kind, LastLog: []string{"oops"}}}
		if ready {
			i.ReadyAt = now
		}
		return i
	}
	for name, c := range map[string]struct {
		deaths []kiln.Instance
		fails  bool
	}{
		"none":             {nil, false},
		"one":              {[]kiln.Instance{dead(kiln.CauseExited, false, 1)}, false},
		"two, never ready": {[]kiln.Instance{dead(kiln.CauseExited, false, 1), dead(kiln.CauseExited, false, 1)}, true},
		"two, one ready":   {[]kiln.Instance{dead(kiln.CauseExited, true, 1), dead(kiln.CauseExited, false, 1)}, false},
		"three":            {[]kiln.Instance{dead(kiln.CauseExited, true, 1), dead(kiln.CauseExited, true, 1), dead(kiln.CauseExited, true, 1)}, true},
		"never ready once": {[]kiln.Instance{dead(kiln.CauseNeverReady, false, 1)}, true},
		"burned":           {[]kiln.Instance{dead(kiln.CauseBurned, false, 1), dead(kiln.CauseBurned, false, 1)}, false},
		"of an older time": {[]kiln.Instance{dead(kiln.CauseExited, false, -1), dead(kiln.CauseExited, false, -1)}, false},
	} {
		seen := kiln.Observation{Fleets: []kiln.FleetStatus{{ID: fleet.ID(), Deaths: c.deaths}}}
		ready, failure, left := judge(s, []kiln.Fleet{fleet}, seen, now)
		if ready || (failure != nil) != c.fails || (!c.fails && left <= 0) {
			t.Errorf("%s: ready %v, failure %+v, left %s", name, ready, failure, left)
		}
		if failure != nil && !slices.Contains(failure.Evidence, "log: oops") {
			t.Errorf("%s: evidence %q", name, failure.Evidence)
		}
	}
}

func TestALargeFleetHasTimeWhileItMakesProgress(t *testing.T) {
	now := time.Unix(1000, 0)
	s := State{Since: now, Began: now}
	fleet := kiln.Fleet{Environment: "p", Count: 2, Template: kiln.Template{Service: "web", Config: kiln.Config{StartTimeout: 10 * time.Second}}}
	late := now.Add(14 * time.Second)
	seen := kiln.Observation{Fleets: []kiln.FleetStatus{{ID: fleet.ID(), Instances: []kiln.Instance{{State: kiln.InstanceReady, CreatedAt: now, ReadyAt: late}}}}}
	if _, failure, _ := judge(s, []kiln.Fleet{fleet}, seen, late.Add(10*time.Second)); failure != nil {
		t.Fatalf("gave up: %+v", failure)
	}
	if _, failure, _ := judge(s, []kiln.Fleet{fleet}, seen, late.Add(15*time.Second)); failure == nil {
		t.Fatal("waits for ever")
	}
}

func TestAWorkerHasToRunForAWhile(t *testing.T) {
	now := time.Unix(1000, 0)
	s := State{Since: now, Began: now}
	worker := kiln.Fleet{Environment: "p", Count: 1, Template: kiln.Template{Service: "mail"}}
	running := func(readyAt time.Time) kiln.Observation {
		return kiln.Observation{Fleets: []kiln.FleetStatus{{ID: worker.ID(), Instances: []kiln.Instance{{State: kiln.InstanceReady, CreatedAt: now, ReadyAt: readyAt}}}}}
	}
	if ready, failure, left := judge(s, []kiln.Fleet{worker}, running(now), now.Add(steady/4)); ready || failure != nil || left != steady*3/4 {
		t.Fatalf("at once: ready %v, failure %v, left %s", ready, failure, left)
	}
	if ready, _, _ := judge(s, []kiln.Fleet{worker}, running(now), now.Add(steady)); !ready {
		t.Fatal("a worker that runs on is not ready")
	}
	if ready, _, _ := judge(s, []kiln.Fleet{worker}, running(now.Add(-time.Hour)), now); !ready {
		t.Fatal("a worker that was carried over is waited for")
	}

	again := running(now)
	for range 3 {
		again.Fleets[0].Deaths = append(again.Fleets[0].Deaths, kiln.Instance{CreatedAt: now, ReadyAt: now, Cause: &kiln.Cause{Kind: kiln.CauseExited}})
	}
	_, failure, _ := judge(s, []kiln.Fleet{worker}, again, now.Add(steady/4))
	if failure == nil || !strings.Contains(failure.Hint, "foreground") {
		t.Fatalf("one that ends again and again: %+v", failure)
	}
}

func TestAServerHasToBeReadyForAWhile(t *testing.T) {
	now := time.Unix(1000, 0)
	s := State{Since: now, Began: now}
	web := kiln.Fleet{Environment: "p", Count: 1, Template: kiln.Template{Service: "web", Ports: []kiln.Port{{}}}}
	seen := kiln.Observation{Fleets: []kiln.FleetStatus{{ID: web.ID(), Instances: []kiln.Instance{{State: kiln.InstanceReady, CreatedAt: now, ReadyAt: now}}}}}
	if ready, failure, left := judge(s, []kiln.Fleet{web}, seen, now.Add(settled/3)); ready || failure != nil || left != settled*2/3 {
		t.Fatalf("at once: ready %v, failure %v, left %s", ready, failure, left)
	}
	if ready, _, _ := judge(s, []kiln.Fleet{web}, seen, now.Add(settled)); !ready {
		t.Fatal("one that stays ready does not count")
	}
}

// What an adopted instance's record says is of the clock before.
func TestAClockThatWasSetBackHoldsNobodyUp(t *testing.T) {
	now := time.Unix(1000, 0)
	s := State{Since: now, Began: now}
	for _, f := range []kiln.Fleet{
		{Environment: "p", Count: 2, Template: kiln.Template{Service: "web", Ports: []kiln.Port{{}}}},
		{Environment: "p", Count: 2, Template: kiln.Template{Service: "mail"}},
	} {
		before := kiln.Instance{State: kiln.InstanceReady, CreatedAt: now.Add(time.Hour), ReadyAt: now.Add(time.Hour)}
		seen := kiln.Observation{Fleets: []kiln.FleetStatus{{ID: f.ID(), Instances: []kiln.Instance{before, before}}}}
		if ready, _, left := judge(s, []kiln.Fleet{f}, seen, now); !ready {
			t.Errorf("%s: waits for %s", f.Template.Service, left)
		}
		seen.Fleets[0].Instances = seen.Fleets[0].Instances[:1]
		if _, failure, _ := judge(s, []kiln.Fleet{f}, seen, now.Add(defaultStart+startSlack)); failure == nil {
			t.Errorf("%s: waits for the old clock's time", f.Template.Service)
		}
	}
}

func TestTheLastCheckOfOneThatExitedIsNoEvidence(t *testing.T) {
	f := kiln.Fleet{Environment: "p", Template: kiln.Template{Service: "web"}}
	for kind, want := range map[kiln.CauseKind]int{kiln.CauseExited: 0, kiln.CauseNeverReady: 1} {
		d := kiln.Instance{ID: "web-1", Note: "no route to host", Cause: &kiln.Cause{Kind: kind}}
		if got := died(f, d, 1).Evidence; len(got) != want {
			t.Errorf("%s: %q", kind, got)
		}
	}
}

func TestAWorkerDoesNotKeepAReleaseParked(t *testing.T) {
	serving := kiln.ReleaseService{Template: kiln.Template{Service: "web", Ports: []kiln.Port{{}}}, Rollout: kiln.Strategy{Park: 5 * time.Second}}
	worker := kiln.ReleaseService{Template: kiln.Template{Service: "mail"}, Rollout: kiln.Strategy{Park: time.Hour}}
	for want, services := range map[time.Duration][]kiln.ReleaseService{
		5 * time.Second: {serving, worker}, time.Hour: {worker}, 0: nil,
	} {
		if got := parkTime(kiln.Release{Services: services}); got != want {
			t.Errorf("%d services: %s, want %s", len(services), got, want)
		}
	}
}
