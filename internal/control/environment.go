package control

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

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
}

// holder is one change of an environment.
type holder struct {
	what, actor string
	since       time.Time
	tidying     bool          // the outcome stands, or it is short: others wait for the end
	done        chan struct{} // closed at the end
	decided     chan struct{} // closed when tidying is set
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

// hold makes the caller the only one who changes an environment. It waits for
// a change whose outcome stands and refuses to wait for any other. The
// returned holder must be given to release.
func (c *Control) hold(ctx context.Context, name, what, actor string, feed *feed) (*holder, error) {
	for {
		c.mu.Lock()
		e := c.environment(name)
		other := e.holder
		if other == nil {
			e.holder = c.newHolder(what, actor, c.now())
			c.mu.Unlock()
			return e.holder, nil
		}
		tidying := other.tidying
		c.mu.Unlock()
		if !tidying {
			return nil, held(name, other)
		}
		feed.send(kiln.Progress{Stage: "start", Subject: name, Step: "wait", Message: "waits for the end of " + other.what})
		select {
		case <-other.done:
			feed.send(kiln.Progress{Stage: "start", Subject: name, Step: "wait", Done: true})
		case <-ctx.Done():
			return nil, held(name, other)
		}
	}
}

// holdBriefly is hold for what others wait for instead of being refused.
func (c *Control) holdBriefly(ctx context.Context, name, what string) (*holder, error) {
	h, err := c.hold(ctx, name, what, "", newFeed(nil))
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	h.decide()
	return h, nil
}

func (c *Control) newHolder(what, actor string, since time.Time) *holder {
	return &holder{what: what, actor: actor, since: since, done: make(chan struct{}), decided: make(chan struct{})}
}

func held(name string, h *holder) error {
	by := ""
	if h.actor != "" {
		by = " by " + h.actor
	}
	return kiln.Errorf(kiln.CodeConflict, "wait for its end: kiln status "+name+" shows how far it is",
		"environment %s is being changed: %s%s, since %s", name, h.what, by, h.since.UTC().Format(time.RFC3339))
}

// release ends a hold.
func (c *Control) release(name string, h *holder) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.environment(name); e.holder == h {
		e.holder, e.rollout, e.claims = nil, nil, nil
	}
	h.decide()
	close(h.done)
}

// decide lets others wait for the end. c.mu must be held.
func (h *holder) decide() {
	if !h.tidying {
		h.tidying = true
		close(h.decided)
	}
}

// stand makes an environment stand for a view and its fleets; the engine is
// told by route and apply.
func (c *Control) stand(name string, view rollout.View, fleets []kiln.Fleet) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.environment(name)
	e.view, e.fleets, e.unsettled, e.released = view, fleets, true, true
	select {
	case c.parked <- struct{}{}:
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
	c.environment(name).unsettled = false
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

// claim gives host names and addresses to an environment for as long as it is
// held, and refuses those that belong to another one.
func (c *Control) claim(name string, routes []kiln.Route) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, other := range slices.Sorted(keys(c.environments)) {
		if other == name {
			continue
		}
		for _, theirs := range c.environments[other].routes() {
			for _, ours := range routes {
				if what := clash(ours, theirs); what != "" {
					return kiln.Errorf(kiln.CodeRefused,
						fmt.Sprintf("choose another one, or free it with kiln down %s", other),
						"route %q claims %s, which belongs to environment %s", ours.Name, what, other)
				}
			}
		}
	}
	c.environment(name).claims = routes
	return nil
}

// routes are those of all releases that an environment stands for or is about
// to.
func (e *environment) routes() []kiln.Route {
	out := slices.Clone(e.claims)
	if e.view.Live != nil {
		out = append(out, e.view.Live.Routes...)
	}
	for _, r := range e.view.Others {
		out = append(out, r.Routes...)
	}
	return out
}

// clash names what two routes cannot both have; "" for nothing.
func clash(a, b kiln.Route) string {
	if a.Host != "" && strings.EqualFold(a.Host, b.Host) {
		return "the host name " + a.Host
	}
	if a.Listen == "" || b.Listen == "" {
		return ""
	}
	hostA, portA, errA := net.SplitHostPort(a.Listen)
	hostB, portB, errB := net.SplitHostPort(b.Listen)
	if errA != nil || errB != nil || portA != portB {
		return ""
	}
	if hostA == hostB || everywhere(hostA) || everywhere(hostB) {
		return "the address " + a.Listen
	}
	return ""
}

func everywhere(host string) bool {
	ip := net.ParseIP(host)
	return host == "" || (ip != nil && ip.IsUnspecified())
}
