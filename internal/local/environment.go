package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/kilnproject/kiln"
)

// maxDeaths is how many deaths of late an observation shows.
const maxDeaths = 20

// maxCount is the largest count of one fleet.
const maxCount = 1000

// environment is what is desired of one environment and what was learnt while
// converging to it. Guarded by the engine's mu.
type environment struct {
	name   string
	fleets map[kiln.FleetID]*fleet
	reason string
	wake   chan struct{}
}

// fleet is a desired fleet, or one that was and whose deaths are still shown.
type fleet struct {
	kiln.Fleet
	desired bool
	backoff backoff
	deaths  []kiln.Instance
	// lost are the deaths whose replacement has not been started yet, as the
	// reason of that start.
	lost []string
}

func (env *environment) stir() {
	select {
	case env.wake <- struct{}{}:
	default:
	}
}

// desire takes a whole desired set.
func (env *environment) desire(d desired) {
	env.reason = d.Reason
	for _, f := range env.fleets {
		f.desired = false
	}
	for _, f := range d.Fleets {
		known, ok := env.fleets[f.ID()]
		if !ok {
			known = &fleet{}
			env.fleets[f.ID()] = known
		}
		known.Fleet, known.desired = f, true
	}
}

// environment returns an environment, made when it is new. e.mu is held,
// except before Serve.
//
//nolint:contextcheck // an environment outlives the call that names it first
func (e *Engine) environment(name string) *environment {
	env, ok := e.environments[name]
	if !ok {
		env = &environment{name: name, fleets: map[kiln.FleetID]*fleet{}, wake: make(chan struct{}, 1)}
		e.environments[name] = env
		e.goAlong(func(ctx context.Context) { e.tendEnvironment(ctx, env) })
	}
	return env
}

// Apply implements kiln.Engine.
func (e *Engine) Apply(_ context.Context, name string, fleets []kiln.Fleet, reason string) error {
	if err := checkFleets(name, fleets); err != nil {
		return err
	}
	d := desired{Fleets: slices.Clone(fleets), Reason: reason}
	e.applying.Lock() // the order on disk is the order in memory
	defer e.applying.Unlock()
	if err := writeDurable(e.desiredFile(name), d); err != nil {
		return err
	}
	e.mu.Lock()
	env := e.environment(name)
	env.desire(d)
	e.forgetPrepared(name)
	e.mu.Unlock()
	e.names.stir()
	e.filter.mark()
	env.stir()
	return nil
}

var safeName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$`)

func checkFleets(environment string, fleets []kiln.Fleet) error {
	if !safeName.MatchString(environment) {
		return kiln.Errorf(kiln.CodeInvalid, "use letters, digits, dots and dashes", "%q is not a name of an environment", environment)
	}
	seen := map[kiln.FleetID]bool{}
	for _, f := range fleets {
		id := f.ID()
		switch {
		case f.Environment != environment:
			return kiln.Errorf(kiln.CodeInvalid, "", "fleet %s is not of environment %s", id, environment)
		case seen[id]:
			return kiln.Errorf(kiln.CodeInvalid, "", "fleet %s is there twice", id)
		case !safeName.MatchString(f.Template.Service):
			return kiln.Errorf(kiln.CodeInvalid, "use letters, digits and dashes", "%q is not a name of a service", f.Template.Service)
		case f.Count < 0 || f.Count > maxCount:
			return kiln.Errorf(kiln.CodeInvalid, "", "fleet %s: count %d is not between 0 and %d", id, f.Count, maxCount)
		}
		seen[id] = true
	}
	return nil
}

// tendEnvironment converges whenever something changed, until ctx ends.
func (e *Engine) tendEnvironment(ctx context.Context, env *environment) {
	for {
		wait := e.convergeOnce(env)
		var later <-chan time.Time
		if wait > 0 {
			later = time.After(wait)
		}
		select {
		case <-ctx.Done():
			return
		case <-env.wake:
		case <-later:
		}
	}
}

// convergeOnce takes the steps that can be taken now and returns after how
// long to look again, 0 for when something changes.
func (e *Engine) convergeOnce(env *environment) time.Duration {
	now := time.Now()
	wait := time.Duration(0)
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(env.fleets)) {
		f := env.fleets[id]
		count := 0
		if f.desired {
			count = f.Count
		}
		s := converge(count, e.views(id))
		if delay := f.backoff.until.Sub(now); s.create > 0 && delay > 0 {
			s.create = 0
			if wait == 0 || delay < wait {
				wait = delay
			}
		}
		for range s.create {
			e.create(env, f)
		}
		for _, name := range s.destroy {
			e.endLocked(e.instances[name], kiln.Cause{Kind: kiln.CauseStopped, Detail: env.reason})
		}
		for _, name := range s.replace {
			in := e.instances[name]
			e.endLocked(in, kiln.Cause{Kind: kiln.CauseBurned, Detail: in.leave})
		}
		if !f.desired {
			e.endQuarantined(id, env.reason)
		}
	}
	e.retire(env)
	return wait
}

// endQuarantined ends the kept bodies of a fleet that is no longer desired.
// e.mu is held.
func (e *Engine) endQuarantined(id kiln.FleetID, reason string) {
	for _, in := range e.instances {
		if in.Fleet == id && in.State == kiln.InstanceQuarantined {
			e.endLocked(in, kiln.Cause{Kind: kiln.CauseStopped, Detail: reason})
		}
	}
}

// create makes a new instance of a fleet. e.mu is held.
func (e *Engine) create(env *environment, f *fleet) {
	reason := env.reason
	if len(f.lost) > 0 {
		reason, f.lost = f.lost[0], f.lost[1:]
	}
	in := newInstance(env.name, f.Template, reason)
	e.instances[in.ID] = in
	e.busy.Add(1)
	e.report(in)
	e.goAlong(func(ctx context.Context) { e.live(ctx, in) })
}

// retire forgets fleets that are neither desired nor there, and an
// environment without any. e.mu is held.
func (e *Engine) retire(env *environment) {
	living := map[kiln.FleetID]bool{}
	tasks := false
	for _, in := range e.instances {
		if in.Environment == env.name {
			living[in.Fleet] = true
			tasks = tasks || in.task
		}
	}
	for id, f := range env.fleets {
		if !f.desired && !living[id] {
			delete(env.fleets, id)
			delete(e.prepared, id)
		}
	}
	used := slices.ContainsFunc(e.table.Private, func(r kiln.PrivateRoute) bool { return r.Environment == env.name })
	if len(env.fleets) > 0 || tasks || len(living) > 0 || used {
		return
	}
	if _, ok := e.plan.Environments[env.name]; !ok {
		return
	}
	e.closeEnvironment(env)
}

// closeEnvironment gives back what an environment had that holds nothing any
// more. e.mu is held.
func (e *Engine) closeEnvironment(env *environment) {
	err := os.Remove(e.desiredFile(env.name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		e.Log.Warn("forget environment", "environment", env.name, "error", err)
	}
	e.forgetPrepared(env.name)
	base := e.plan.Environments[env.name].UIDBase
	e.plan.Close(env.name)
	if err := e.savePlan(); err != nil {
		e.Log.Warn("forget environment", "environment", env.name, "error", err)
	}
	e.traffic.mark()
	e.filter.mark()
	e.goAlong(func(context.Context) { e.collectRoots(env.name, base) })
}

// Observe implements kiln.Engine.
func (e *Engine) Observe(_ context.Context, name string) (kiln.Observation, error) {
	out := kiln.Observation{Environment: name, Fleets: []kiln.FleetStatus{}}
	e.mu.Lock()
	defer e.mu.Unlock()
	env, ok := e.environments[name]
	if !ok {
		return out, nil
	}
	for id, f := range env.fleets {
		out.Fleets = append(out.Fleets, kiln.FleetStatus{ID: id, Fleet: f.Fleet, Deaths: slices.Clone(f.deaths)})
	}
	slices.SortFunc(out.Fleets, func(a, b kiln.FleetStatus) int { return strings.Compare(string(a.ID), string(b.ID)) })
	for i := range out.Fleets {
		out.Fleets[i].Instances = e.living(out.Fleets[i].ID)
	}
	return out, nil
}

// living are a fleet's instances that are not dead, oldest first. e.mu is
// held.
func (e *Engine) living(id kiln.FleetID) []kiln.Instance {
	var out []kiln.Instance
	for _, in := range e.instances {
		if in.Fleet == id && !in.task && in.State != kiln.InstanceDead {
			out = append(out, in.Instance)
		}
	}
	slices.SortFunc(out, func(a, b kiln.Instance) int {
		return strings.Compare(a.CreatedAt.UTC().Format(time.RFC3339Nano)+a.ID, b.CreatedAt.UTC().Format(time.RFC3339Nano)+b.ID)
	})
	return out
}

// Replace implements kiln.Engine.
func (e *Engine) Replace(_ context.Context, id, reason string) error {
	e.mu.Lock()
	in, env, err := e.find(id)
	if err == nil && in.leave == "" {
		in.leave = reason
		e.fleetOf(env, in).lost = append(e.fleetOf(env, in).lost, fmt.Sprintf("replaces %s: %s", id, reason))
	}
	e.mu.Unlock()
	if err != nil {
		return err
	}
	if err := e.saveRecord(in); err != nil {
		return err
	}
	env.stir()
	return nil
}

// find returns an instance that is there to be acted on. e.mu is held.
func (e *Engine) find(id string) (*instance, *environment, error) {
	in, ok := e.instances[id]
	if !ok || in.task || in.State == kiln.InstanceDead || in.ended {
		return nil, nil, kiln.Errorf(kiln.CodeNotFound, "kiln ps", "there is no living instance %s", id)
	}
	return in, e.environment(in.Environment), nil
}

// fleetOf returns the fleet of an instance, made for one whose fleet was
// forgotten. e.mu is held.
func (e *Engine) fleetOf(env *environment, in *instance) *fleet {
	f, ok := env.fleets[in.Fleet]
	if !ok {
		f = &fleet{Fleet: kiln.Fleet{Environment: env.name, Template: in.template}}
		env.fleets[in.Fleet] = f
	}
	return f
}
