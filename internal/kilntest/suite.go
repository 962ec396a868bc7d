package kilntest

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kilnproject/kiln"
)

// EngineUnderTest is an engine that runs nothing yet, and what the suite needs
// to know of it. The templates are of different services, or of the same one
// where only the argument differs.
type EngineUnderTest struct {
	Engine      kiln.Engine
	Environment string
	// Serve is a template with an http port that answers GET / with version,
	// which is its variable VERSION, and GET /healthz with 200.
	Serve func(version string) kiln.Template
	// Exit is a template without ports that writes the line "bye" and exits
	// with the code.
	Exit func(code int) kiln.Template
	// NeverReady is a template whose probe fails, with a short StartTimeout.
	NeverReady func() kiln.Template
	// IgnoresTerm is a template that becomes ready and ignores its stop
	// signal, with a short Grace.
	IgnoresTerm func() kiln.Template
	// Kill ends an instance from outside, as if by itself.
	Kill func(i kiln.Instance) error
	// Host is a name that Get sends requests to, through the engine's public
	// routes. Without Get what needs traffic is left out.
	Host string
	Get  func(ctx context.Context, path string) (status int, body string, err error)
	// Storm causes more changes at once than a watcher may fall behind;
	// without it that is left out.
	Storm func()
	// Patience is how long anything may take; 0 means 30 s.
	Patience time.Duration
}

// suiteCase is one promise of kiln.Engine.
type suiteCase struct {
	name string
	run  func(r *run)
}

// RunEngineSuite checks what kiln.Engine promises, each promise on an engine
// of its own.
func RunEngineSuite(t *testing.T, newEngine func(t *testing.T) EngineUnderTest) {
	t.Helper()
	for _, c := range suiteCases() {
		t.Run(c.name, func(t *testing.T) { c.check(t, newEngine(t)) })
	}
}

func (c suiteCase) check(t testing.TB, e EngineUnderTest) {
	t.Helper()
	if e.Patience == 0 {
		e.Patience = 30 * time.Second
	}
	ctx, cancel := context.WithCancel(t.Context())
	r := &run{TB: t, EngineUnderTest: e, ctx: ctx, changes: e.Engine.Watch(ctx)}
	defer r.end(cancel)
	c.run(r)
}

// run is one check of one promise.
type run struct {
	testing.TB
	EngineUnderTest

	ctx     context.Context // the check's
	changes <-chan kiln.Change
	seen    []kiln.Change // all changes so far that await has read
}

// end ends the environment, so that nothing is left of the check.
func (r *run) end(cancel context.CancelFunc) {
	r.Helper()
	defer cancel()
	if r.Failed() {
		_ = r.Engine.Apply(r.ctx, r.Environment, nil, "the check failed")
		return
	}
	r.apply()
	r.await("the environment is empty", func(o kiln.Observation) bool { return living(o) == 0 })
}

func living(o kiln.Observation) int {
	n := 0
	for _, f := range o.Fleets {
		n += len(f.Instances)
	}
	return n
}

func (r *run) fleet(t kiln.Template, count int) kiln.Fleet {
	return kiln.Fleet{Environment: r.Environment, Template: t, Count: count}
}

func (r *run) apply(fleets ...kiln.Fleet) {
	r.Helper()
	if err := r.Engine.Admit(r.ctx, fleets); err != nil {
		r.Fatalf("Admit: %v", err)
	}
	if err := r.Engine.Apply(r.ctx, r.Environment, fleets, "the check"); err != nil {
		r.Fatalf("Apply: %v", err)
	}
}

func (r *run) observe() kiln.Observation {
	r.Helper()
	o, err := r.Engine.Observe(r.ctx, r.Environment)
	if err != nil {
		r.Fatalf("Observe: %v", err)
	}
	return o
}

func (r *run) status(f kiln.Fleet) kiln.FleetStatus {
	r.Helper()
	s, _ := r.observe().Fleet(f.ID())
	return s
}

// await observes until the condition holds: at each change, and now and then
// in case that a change is not reported.
func (r *run) await(what string, holds func(kiln.Observation) bool) kiln.Observation {
	r.Helper()
	limit := time.NewTimer(r.Patience)
	defer limit.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		o := r.observe()
		if holds(o) {
			return o
		}
		select {
		case c, ok := <-r.changes:
			if !ok {
				r.Fatal("Watch closed its channel before the end of its context")
			}
			r.seen = append(r.seen, c)
		case <-tick.C:
		case <-limit.C:
			r.Fatalf("within %s it did not come true that %s: %+v", r.Patience, what, o)
		}
	}
}

// awaitChange reads changes until one is as wanted.
func (r *run) awaitChange(what string, wanted func(kiln.Change) bool) kiln.Change {
	r.Helper()
	if i := slices.IndexFunc(r.seen, wanted); i >= 0 {
		return r.seen[i]
	}
	limit := time.NewTimer(r.Patience)
	defer limit.Stop()
	for {
		select {
		case c, ok := <-r.changes:
			if !ok {
				r.Fatal("Watch closed its channel before the end of its context")
			}
			r.seen = append(r.seen, c)
			if wanted(c) {
				return c
			}
		case <-limit.C:
			r.Fatalf("within %s Watch did not report %s", r.Patience, what)
		}
	}
}

// up applies fleets and waits until all of each, and no others, are ready.
func (r *run) up(fleets ...kiln.Fleet) kiln.Observation {
	r.Helper()
	r.apply(fleets...)
	return r.await("all are ready, and nothing else runs", func(o kiln.Observation) bool {
		want := 0
		for _, f := range fleets {
			s, _ := o.Fleet(f.ID())
			if s.Ready() != f.Count {
				return false
			}
			want += f.Count
		}
		return living(o) == want
	})
}

func ids(s kiln.FleetStatus) []string {
	var out []string
	for _, i := range s.Instances {
		out = append(out, i.ID)
	}
	slices.Sort(out)
	return out
}

func (r *run) sameIDs(what string, before, after []string) {
	r.Helper()
	if !slices.Equal(before, after) {
		r.Fatalf("%s: instances were %v and are %v", what, before, after)
	}
}

// states are what Watch reported of an instance, in order, without repeats.
func (r *run) states(id string) []kiln.InstanceState {
	var out []kiln.InstanceState
	for _, c := range r.seen {
		if c.Instance != nil && c.Instance.ID == id {
			out = append(out, c.Instance.State)
		}
	}
	return slices.Compact(out)
}

// isDead says whether a change is an instance's death.
func isDead(id string) func(kiln.Change) bool {
	return func(c kiln.Change) bool {
		return c.Instance != nil && c.Instance.ID == id && c.Instance.State == kiln.InstanceDead
	}
}

func contains(lines []string, text string) bool {
	return slices.ContainsFunc(lines, func(l string) bool { return strings.Contains(l, text) })
}
