package control

import (
	"context"
	"time"

	"github.com/kilnproject/kiln"
)

// holder is one change of an environment.
type holder struct {
	what, actor string
	since       time.Time
	tidying     bool          // the outcome stands, or it is short: others wait for the end
	done        chan struct{} // closed at the end
	decided     chan struct{} // closed when tidying is set
	drive       *drive        // the rollout that it began; nil before that and for what is none
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

// release ends a hold. What was left unsettled under it is looked at soon.
func (c *Control) release(name string, h *holder) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.environment(name); e.holder == h {
		e.holder, e.rollout, e.claims = nil, nil, nil
	}
	h.decide()
	close(h.done)
	c.poke()
}

// decide lets others wait for the end. c.mu must be held.
func (h *holder) decide() {
	if !h.tidying {
		h.tidying = true
		close(h.decided)
	}
}
