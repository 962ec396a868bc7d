package control

import (
	"context"
	"fmt"
	"slices"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/rollout"
)

// Status is all environments that have a release, by name.
func (c *Control) Status(ctx context.Context) (Status, error) {
	if err := c.ready(ctx); err != nil {
		return Status{}, err
	}
	c.mu.Lock()
	var names []string
	for name, e := range c.environments {
		if e.released {
			names = append(names, name)
		}
	}
	c.mu.Unlock()
	slices.Sort(names)
	out := Status{Version: c.version, StartedAt: c.begun, Environments: []EnvironmentStatus{}, Problems: c.problems()}
	for _, name := range names {
		one, err := c.environmentStatus(ctx, name)
		if err != nil {
			return Status{}, err
		}
		out.Environments = append(out.Environments, one)
	}
	out.Problems = append(out.Problems, c.unadvised(ctx, out.Environments)...)
	return out, nil
}

func (c *Control) environmentStatus(ctx context.Context, name string) (EnvironmentStatus, error) {
	seen, err := c.engine.Observe(ctx, name)
	if err != nil {
		return EnvironmentStatus{}, fmt.Errorf("observe %s: %w", name, err)
	}
	c.mu.Lock()
	e := c.environment(name)
	out := EnvironmentStatus{Name: name, Live: e.view.Live, Services: []ServiceStatus{}, URLs: []string{}}
	if e.rollout != nil {
		running := *e.rollout
		out.Rollout = &running
	}
	for _, r := range e.view.Others {
		if r.State == kiln.ReleaseParked {
			out.Parked, out.ParkedUntil = &r, r.ParkedUntil
		}
	}
	if e.problem != "" {
		out.Problems = append(out.Problems, "what is desired could not be brought about, and is tried again: "+e.problem)
	}
	if e.refused != "" {
		out.Problems = append(out.Problems, e.refused)
	}
	out.Problems = append(out.Problems, c.found[name].problems(name)...)
	c.mu.Unlock()
	if out.Live != nil {
		out.URLs = c.urls(*out.Live)
		for _, s := range out.Live.Services {
			status, problem := serviceStatus(name, s, seen)
			out.Services = append(out.Services, status)
			if problem != "" {
				out.Problems = append(out.Problems, problem)
			}
		}
	}
	return out, nil
}

// serviceStatus counts a service's instances, and says in a sentence when they
// are fewer than wanted.
func serviceStatus(name string, s kiln.ReleaseService, seen kiln.Observation) (ServiceStatus, string) {
	id := kiln.FleetIDOf(name, s.Template)
	out := ServiceStatus{Name: s.Template.Service, Fleet: id, Image: s.Template.Image, Desired: s.Count}
	fleet, _ := seen.Fleet(id)
	out.Ready, out.Running = fleet.Ready(), len(fleet.Instances)
	var last *kiln.Instance
	for i, d := range fleet.Deaths {
		if d.Cause != nil && d.Cause.Failure() {
			out.Deaths++
			last = &fleet.Deaths[i]
		}
	}
	if out.Ready >= out.Desired {
		return out, ""
	}
	problem := fmt.Sprintf("service %s: %d of %d instances are ready", out.Name, out.Ready, out.Desired)
	if last != nil {
		problem += fmt.Sprintf("; %s %s", last.ID, rollout.Death(*last.Cause))
		if n := len(last.Cause.LastLog); n > 0 && last.Cause.Detail == "" {
			problem += ", and wrote last: " + last.Cause.LastLog[n-1]
		}
	}
	return out, problem
}

// urls are where a release's routes answer.
func (c *Control) urls(r kiln.Release) []string {
	out := []string{}
	for _, route := range r.Routes {
		if u := c.url(route); u != "" && !slices.Contains(out, u) {
			out = append(out, u)
		}
	}
	return out
}
