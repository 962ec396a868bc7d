// Package kilntest holds what tests share: a fake engine, the suite that every
// engine must pass, and labelled faults. Tests import it, nothing else does.
package kilntest

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/kilnproject/kiln"
)

// Behaviour is how the instances of a template of a fake engine behave. The
// zero value becomes ready after a millisecond, serves for ever and stops at
// once.
type Behaviour struct {
	Start       time.Duration // until ready; 0 means a millisecond
	NeverReady  bool          // dies of never_ready after the template's StartTimeout, 30 s when that is zero
	StartFailed string        // cannot be started, with this detail
	Exits       bool          // exits by itself with ExitCode, ExitAfter its start
	ExitAfter   time.Duration
	ExitCode    int
	IgnoresTerm bool          // ends only after the template's Grace
	Stop        time.Duration // from draining to dead
	Output      []string      // lines written at the start
	// Answer is the instance's reply to GET path. Nil answers "/" with the
	// variable VERSION, "/healthz" with "ok", and anything else with 404.
	Answer func(path string) (status int, body string)
}

// Call is one call of an engine's method.
type Call struct {
	At          time.Time
	Method      string // "Apply"
	Environment string
	Fleets      []kiln.Fleet
	Instance    string
	Reason      string
	Table       *kiln.RouteTable
	Task        *kiln.Task
}

// Fake is an engine in memory. It keeps time by the timers of package time
// only, has no goroutines at rest, and may be used inside a synctest bubble.
type Fake struct {
	mu           sync.Mutex
	rules        []rule
	room         int // instances; 0 is unlimited
	intercept    func(Call) error
	calls        []Call
	environments map[string]*fakeEnvironment
	table        kiln.RouteTable
	turns        int // of the choice among instances
	unrouted     int // requests without a route
	counts       map[kiln.Measurement]*kiln.Measurement
	lines        []kiln.LogLine
	owners       map[string]*fakeInstance // all that ever were, by ID
	readers      map[*logReader]bool
	watchers     map[chan kiln.Change]*watcher
	broken       map[Mutation]bool
	born         int
}

type rule struct {
	match func(kiln.Template) bool
	Behaviour
}

type fakeEnvironment struct {
	name   string
	fleets map[kiln.FleetID]*fakeFleet
}

type fakeFleet struct {
	kiln.Fleet
	desired   bool
	reason    string
	instances []*fakeInstance // not dead, oldest first
	deaths    []kiln.Instance
	failures  int // in a row without one that became ready
	waiting   bool
}

type fakeInstance struct {
	kiln.Instance
	Behaviour
	template kiln.Template
	fleet    *fakeFleet // nil for a task
	// leaving is why it ends as soon as another covers for it.
	leaving *kiln.Cause
}

// NewFake returns an engine that runs nothing.
func NewFake() *Fake {
	return &Fake{
		environments: map[string]*fakeEnvironment{},
		counts:       map[kiln.Measurement]*kiln.Measurement{},
		owners:       map[string]*fakeInstance{},
		readers:      map[*logReader]bool{},
		watchers:     map[chan kiln.Change]*watcher{},
		broken:       map[Mutation]bool{},
	}
}

// Behave sets the behaviour of instances that are started from now on of the
// templates that match; the last call that matches wins. A nil match is all.
func (f *Fake) Behave(match func(kiln.Template) bool, b Behaviour) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if match == nil {
		match = func(kiln.Template) bool { return true }
	}
	f.rules = append(f.rules, rule{match, b})
}

// BehaveService is Behave for all templates of a service.
func (f *Fake) BehaveService(service string, b Behaviour) {
	f.Behave(func(t kiln.Template) bool { return t.Service == service }, b)
}

// BehaveImage is Behave for all templates of an image.
func (f *Fake) BehaveImage(image kiln.Digest, b Behaviour) {
	f.Behave(func(t kiln.Template) bool { return t.Image == image }, b)
}

// SetRoom bounds the instances that Admit finds room for; 0 is unlimited.
func (f *Fake) SetRoom(instances int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.room = instances
}

// Intercept sets a function that sees each call before it is taken and may
// block it or fail it. Nil removes it.
func (f *Fake) Intercept(fn func(Call) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.intercept = fn
}

// Calls returns all calls so far that change something, and Run and Check, in
// order: Observe, Watch, Measure and Logs are left out.
func (f *Fake) Calls() []Call {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

// Methods returns the methods of Calls.
func (f *Fake) Methods() []string {
	var out []string
	for _, c := range f.Calls() {
		out = append(out, c.Method)
	}
	return out
}

// Table returns the traffic table that holds.
func (f *Fake) Table() kiln.RouteTable {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.table
}

// called records a call and asks the interceptor.
func (f *Fake) called(ctx context.Context, c Call) error {
	c.At = time.Now()
	f.mu.Lock()
	f.calls = append(f.calls, c)
	intercept := f.intercept
	f.mu.Unlock()
	if intercept != nil {
		if err := intercept(c); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// Admit implements kiln.Engine.
func (f *Fake) Admit(ctx context.Context, fleets []kiln.Fleet) error {
	if err := f.called(ctx, Call{Method: "Admit", Fleets: fleets}); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	need, running := 0, 0
	for _, fleet := range fleets {
		need += fleet.Count
	}
	for _, e := range f.environments {
		for _, fleet := range e.fleets {
			running += len(fleet.instances)
		}
	}
	if f.room > 0 && need+running > f.room {
		return kiln.Errorf(kiln.CodeNoRoom, "lower a count", "no room for %d instances beside %d: there is room for %d", need, running, f.room)
	}
	return nil
}

// Apply implements kiln.Engine.
func (f *Fake) Apply(ctx context.Context, environment string, fleets []kiln.Fleet, reason string) error {
	if err := f.called(ctx, Call{Method: "Apply", Environment: environment, Fleets: fleets, Reason: reason}); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	e := f.environments[environment]
	if e == nil {
		e = &fakeEnvironment{name: environment, fleets: map[kiln.FleetID]*fakeFleet{}}
		f.environments[environment] = e
	}
	if f.broken[IgnoreEmpty] && len(fleets) == 0 {
		return nil
	}
	for _, fleet := range e.fleets {
		fleet.desired = false
	}
	for _, want := range fleets {
		have := e.fleets[want.ID()]
		if have == nil {
			have = &fakeFleet{}
			e.fleets[want.ID()] = have
		}
		changed := have.Count != want.Count
		have.Fleet, have.desired, have.reason = want, true, reason
		f.breakApply(have, changed)
	}
	f.converge(e)
	return nil
}

// Observe implements kiln.Engine.
func (f *Fake) Observe(ctx context.Context, environment string) (kiln.Observation, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	o := kiln.Observation{Environment: environment}
	if e := f.environments[environment]; e != nil {
		for id, fleet := range e.fleets {
			o.Fleets = append(o.Fleets, fleet.status(id))
		}
	}
	slices.SortFunc(o.Fleets, func(a, b kiln.FleetStatus) int { return cmp.Compare(a.ID, b.ID) })
	f.breakObservation(&o)
	return o, ctx.Err()
}

func (fl *fakeFleet) status(id kiln.FleetID) kiln.FleetStatus {
	s := kiln.FleetStatus{ID: id, Fleet: fl.Fleet, Deaths: slices.Clone(fl.deaths)}
	for _, i := range fl.instances {
		s.Instances = append(s.Instances, i.Instance)
	}
	return s
}

// Replace implements kiln.Engine.
func (f *Fake) Replace(ctx context.Context, instance, reason string) error {
	return f.treat(ctx, Call{Method: "Replace", Instance: instance, Reason: reason}, func(i *fakeInstance) {
		i.leaving = &kiln.Cause{Kind: kiln.CauseBurned, Detail: reason}
		if f.broken[StopBeforeStart] {
			f.stop(i, *i.leaving)
		}
	})
}

// Quarantine implements kiln.Engine.
func (f *Fake) Quarantine(ctx context.Context, instance, reason string) error {
	return f.treat(ctx, Call{Method: "Quarantine", Instance: instance, Reason: reason}, func(i *fakeInstance) {
		i.Note = reason
		f.breakQuarantine(i)
		f.setState(i, kiln.InstanceQuarantined)
	})
}

// treat makes a call that is about one living instance.
func (f *Fake) treat(ctx context.Context, c Call, do func(*fakeInstance)) error {
	if err := f.called(ctx, c); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	i := f.living(c.Instance)
	if i == nil {
		return notFound(c.Instance)
	}
	do(i)
	f.converge(f.environments[i.Environment])
	return nil
}

func notFound(instance string) error {
	return kiln.Errorf(kiln.CodeNotFound, "kiln ps shows what runs", "no instance %s runs", instance)
}

// living finds an instance of a fleet that is not on its way out.
func (f *Fake) living(id string) *fakeInstance {
	i := f.owners[id]
	if i == nil || i.fleet == nil || i.State == kiln.InstanceDead || i.State == kiln.InstanceDraining {
		return nil
	}
	return i
}

// Route implements kiln.Engine.
func (f *Fake) Route(ctx context.Context, table kiln.RouteTable) error {
	if err := f.called(ctx, Call{Method: "Route", Table: &table}); err != nil {
		return err
	}
	for _, r := range table.Public {
		sum := 0
		for _, w := range r.Fleets {
			sum += w.Percent
		}
		if sum != 100 {
			return kiln.Errorf(kiln.CodeInvalid, "", "the weights of route %s sum to %d", r.Route.Name, sum)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.breakRoute(table)
	return nil
}

// Kill ends an instance as if by itself, with the cause.
func (f *Fake) Kill(instance string, cause kiln.Cause) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := f.owners[instance]
	if i == nil || i.State == kiln.InstanceDead {
		return notFound(instance)
	}
	f.die(i, cause)
	return nil
}

// Unready makes a ready instance fail its probe with the note; it is replaced,
// and ended once another covers for it.
func (f *Fake) Unready(instance, note string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := f.living(instance)
	if i == nil {
		return notFound(instance)
	}
	i.Note = note
	i.leaving = &kiln.Cause{Kind: kiln.CauseUnready, Detail: note}
	f.setState(i, kiln.InstanceUnready)
	f.converge(f.environments[i.Environment])
	return nil
}

// Emit reports an event to all watchers.
func (f *Fake) Emit(e kiln.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.publish(kiln.Change{At: time.Now(), Event: &e})
}

// address is what the nth instance gets.
func address(n int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)})
}

func (f *Fake) behaviour(t kiln.Template) Behaviour {
	for _, r := range slices.Backward(f.rules) {
		if r.match(t) {
			return r.Behaviour
		}
	}
	return Behaviour{}
}

func (f *Fake) newInstance(environment string, t kiln.Template, reason string) *fakeInstance {
	f.born++
	i := &fakeInstance{template: t, Behaviour: f.behaviour(t)}
	i.Instance = kiln.Instance{
		ID: fmt.Sprintf("%s-%08d", t.Service, f.born), Environment: environment, Service: t.Service,
		Fleet: kiln.FleetIDOf(environment, t), Image: t.Image, State: kiln.InstanceStarting,
		Address: address(f.born), CreatedAt: time.Now(), Reason: reason,
	}
	f.owners[i.ID] = i
	return i
}
