package control

import (
	"context"
	"fmt"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/plan"
	"github.com/kilnproject/kiln/internal/rollout"
)

// environment is what the control plane knows of one environment beyond the
// ledger: the routes and fleets that it stands for, and who changes it. It is
// guarded by Control.mu.
type environment struct {
	name   string
	view   rollout.View
	fleets []kiln.Fleet
	// holder is who changes it; nil when nobody does.
	holder  *holder
	rollout *RolloutStatus
	// changed is closed, and replaced, when the engine reports a change.
	changed chan struct{}
	// claims are the routes of a change that did not begin its rollout yet.
	claims []kiln.Route
	// released means that it has releases; others were only heard of.
	released bool
	// unsettled means that the engine was not told the present set yet.
	unsettled bool
	// problem is why the last reconcile did not work; empty when it did.
	problem string
	// refused is why nothing of one of its releases starts; empty when all may.
	refused string
}

// environment returns the named one, made when it is new. c.mu must be held.
func (c *Control) environment(name string) *environment {
	e, ok := c.environments[name]
	if !ok {
		e = &environment{name: name, changed: make(chan struct{})}
		c.environments[name] = e
	}
	return e
}

// stand makes an environment stand for a view and its fleets; the engine is
// told by route and apply.
func (c *Control) stand(name string, view rollout.View, fleets []kiln.Fleet) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.environment(name)
	e.view, e.fleets, e.unsettled, e.released = view, fleets, true, true
	signal(c.parked)
	signal(c.again)
}

// signal asks whoever waits on a channel to look, and does not wait.
func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// apply tells the engine the present set of an environment.
func (c *Control) apply(ctx context.Context, name, reason string) error {
	c.mu.Lock()
	fleets := c.environment(name).fleets
	c.mu.Unlock()
	if err := c.engine.Apply(ctx, name, fleets, reason); err != nil {
		return fmt.Errorf("apply the fleets of %s: %w", name, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.environment(name)
	e.unsettled, e.problem = false, ""
	return nil
}

// route sends the whole table to the engine. Tables are sent one after the
// other, so that an older one never replaces a newer one.
func (c *Control) route(ctx context.Context) error {
	select {
	case c.router <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-c.router }()
	if err := c.sees(); err != nil {
		return err
	}
	c.mu.Lock()
	views := make(map[string]rollout.View, len(c.environments))
	for name, e := range c.environments {
		views[name] = e.view
	}
	c.mu.Unlock()
	if err := c.engine.Route(ctx, table(views)); err != nil {
		return fmt.Errorf("route: %w", err)
	}
	return nil
}

// wake tells those who wait for an environment that it changed.
func (c *Control) wake(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.environment(name)
	close(e.changed)
	e.changed = make(chan struct{})
}

// rest is what an environment stands for when no rollout runs.
func rest(name string, releases []kiln.Release) (rollout.View, []kiln.Fleet) {
	var view rollout.View
	var parts []plan.Part
	for i := range releases {
		r := &releases[i]
		switch r.State {
		case kiln.ReleaseLive:
			view.Live = r
			parts = append(parts, plan.Part{Release: r, Workers: true})
		case kiln.ReleaseParked:
			view.Others = append(view.Others, *r)
			parts = append(parts, plan.Part{Release: r, Spare: true})
		case kiln.ReleasePending, kiln.ReleaseRetired, kiln.ReleaseCondemned, kiln.ReleaseFailed:
		}
	}
	return view, plan.Fleets(name, parts...)
}
