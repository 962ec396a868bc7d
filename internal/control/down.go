package control

import (
	"context"
	"fmt"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/rollout"
)

// Down ends an environment: its routes go first, requests in flight are
// answered, then its fleets end. Its releases are kept and its host names are
// free. It can be taken twice.
func (c *Control) Down(ctx context.Context, r DownRequest, emit func(kiln.Progress)) error {
	if err := c.changeable(ctx); err != nil {
		return err
	}
	if err := within(r.Reach, r.Environment); err != nil {
		return err
	}
	if _, err := c.Releases(ctx, r.Environment); err != nil {
		return err
	}
	feed := newFeed(emit)
	defer feed.close()
	if _, err := c.callOff(ctx, r.Environment, "kiln down", r.Actor); err != nil {
		return err
	}
	h, err := c.hold(ctx, r.Environment, "kiln down", r.Actor, feed)
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	c.spawn(func(ctx context.Context) {
		err := c.down(ctx, r, feed)
		c.release(r.Environment, h) // before the caller knows: what it asks for next must not be refused
		ended <- err
	})
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return kiln.Errorf(kiln.CodeUnavailable, "kiln status shows how far it is", "the end of %s goes on without you: %w", r.Environment, ctx.Err())
	case <-c.stopping():
		return kiln.Errorf(kiln.CodeUnavailable, "it goes on when the control plane is back", "the control plane stops")
	}
}

func (c *Control) down(ctx context.Context, r DownRequest, feed *feed) error {
	releases, err := c.ledger.Releases(ctx, r.Environment)
	if err != nil {
		return fmt.Errorf("list the releases of %s: %w", r.Environment, err)
	}
	err = c.end(ctx, r.Environment, releases, retiring{
		states: []kiln.ReleaseState{kiln.ReleaseLive, kiln.ReleaseParked}, actor: r.Actor,
		event:  kiln.Event{Kind: "environment.down", Subject: r.Environment, Message: "environment " + r.Environment + " was ended"},
		reason: "the environment was ended",
	}, feed)
	if err != nil {
		return err
	}
	return c.emptied(ctx, r.Environment, releases, feed)
}

// stopSlack is added to the time that instances may take to end.
const stopSlack = 10 * time.Second

// emptied waits until an environment's instances are gone, for as long as they
// may take.
func (c *Control) emptied(ctx context.Context, name string, releases []kiln.Release, feed *feed) error {
	limit := stopSlack
	for _, r := range releases {
		for _, s := range r.Services {
			limit = max(limit, s.Template.Config.Drain+s.Template.Config.Grace+stopSlack)
		}
	}
	end := c.now().Add(limit)
	for last := -1; ; {
		changed := c.changes(name)
		seen, err := c.engine.Observe(ctx, name)
		if err != nil {
			return fmt.Errorf("observe %s: %w", name, err)
		}
		left := 0
		for _, f := range seen.Fleets {
			left += len(f.Instances)
		}
		rest := end.Sub(c.now())
		switch {
		case left == 0:
			feed.send(kiln.Progress{Stage: "park", Subject: name, Step: "stop", Done: true})
			return nil
		case rest <= 0:
			return kiln.Errorf(kiln.CodeFailed, "kiln ps "+name+" shows them",
				"environment %s has no traffic any more, but %d of its instances have not ended after %s", name, left, limit)
		case left != last:
			last = left
			feed.send(kiln.Progress{Stage: "park", Subject: name, Step: "stop", Message: fmt.Sprintf("instances that are ending: %d", left)})
		}
		if err := await(ctx, changed, rest); err != nil {
			return err
		}
	}
}

// retiring is what ends releases outside a rollout.
type retiring struct {
	states []kiln.ReleaseState // those of the releases that end
	actor  string
	event  kiln.Event
	reason string
}

// end retires releases: the ledger first, so that a restart goes on with it,
// then routes, requests in flight, fleets.
func (c *Control) end(ctx context.Context, name string, releases []kiln.Release, what retiring, feed *feed) error {
	var marks []kiln.ReleaseMark
	var gone []kiln.Release
	kept := make([]kiln.Release, len(releases))
	for i, r := range releases {
		kept[i] = r
		for _, s := range what.states {
			if r.State != s {
				continue
			}
			kept[i].State = kiln.ReleaseRetired
			gone = append(gone, r)
			marks = append(marks, kiln.ReleaseMark{Environment: name, Number: r.Number, State: kiln.ReleaseRetired})
		}
	}
	what.event.At, what.event.Environment, what.event.Actor = c.now().UTC(), name, what.actor
	events := []kiln.Event{what.event}
	for _, m := range marks {
		events = append(events, kiln.Event{
			At: what.event.At, Environment: name, Kind: "release.retired", Subject: subject(m.Number), Message: standing(m), Actor: what.actor,
		})
	}
	if err := c.ledger.Commit(ctx, kiln.Record{Marks: marks, Events: events}); err != nil {
		return fmt.Errorf("record the end: %w", err)
	}
	view, fleets := rest(name, kept)
	feed.send(kiln.Progress{Stage: "park", Subject: name, Step: "drain", Message: "requests in flight are answered"})
	// Calls between the leaving fleets go on while they drain.
	c.stand(name, rollout.View{Live: view.Live, Others: append(view.Others, gone...)}, fleets)
	if err := c.route(ctx); err != nil {
		return err
	}
	if err := c.drained(ctx, name, gone, fleets); err != nil {
		return err
	}
	c.stand(name, view, fleets)
	if err := c.route(ctx); err != nil {
		return err
	}
	if err := c.apply(ctx, name, what.reason); err != nil {
		return err
	}
	feed.send(kiln.Progress{Stage: "park", Subject: name, Step: "drain", Done: true})
	return nil
}

// drained waits until fleets that are not kept have nothing in flight, for
// their drain limit at most.
func (c *Control) drained(ctx context.Context, name string, gone []kiln.Release, kept []kiln.Fleet) error {
	leaving := map[kiln.FleetID]bool{}
	for _, r := range gone {
		for _, s := range r.Services {
			leaving[kiln.FleetIDOf(name, s.Template)] = true
		}
	}
	for _, f := range kept {
		delete(leaving, f.ID())
	}
	end := c.now().Add(rollout.DrainLimit(gone...))
	for {
		measured, err := c.engine.Measure(ctx)
		if err != nil {
			return fmt.Errorf("measure: %w", err)
		}
		var flying int64
		for _, m := range measured {
			if m.Instance == "" && leaving[m.Fleet] {
				flying += m.InFlight
			}
		}
		if flying == 0 || !c.now().Before(end) {
			return nil
		}
		if err := pause(ctx, rollout.DrainPoll); err != nil {
			return err
		}
	}
}
