package control

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/kilnproject/kiln"
)

// itself is the actor of what nobody asked for.
const itself = "kiln"

// busyAgain is after how long to look again at an environment that somebody
// changes.
const busyAgain = time.Minute

// attempts are what the control plane remembers of repaves of its own.
type attempts struct {
	Last time.Time `json:"last,omitzero"`
	// Said is the decision that was told last, so that the same is not told again.
	Said string `json:"said,omitempty"`
}

func attemptsOf(name string) string { return "repave/" + name }

// repaveByItself repaves environments whose definition says so, after what runs
// was judged again: one after the other, and none while somebody changes it.
func (c *Control) repaveByItself(ctx context.Context) {
	next := rescanEvery
	for await(ctx, c.stale, next) == nil {
		next = rescanEvery
		for _, name := range c.names() {
			if ctx.Err() != nil {
				return
			}
			again, err := c.consider(ctx, name)
			c.complain(ctx, "environment could not be repaved", name, err)
			if again > 0 {
				next = min(next, again)
			}
		}
	}
}

// consider repaves an environment, or tells why not. It returns after how long
// to look again, 0 for when what runs was judged again.
func (c *Control) consider(ctx context.Context, name string) (time.Duration, error) {
	found := c.findings(name)
	if found.policy.Repave != kiln.RepaveAuto || len(found.open()) == 0 {
		return 0, nil
	}
	var tried attempts
	if err := c.setting(ctx, attemptsOf(name), &tried); err != nil {
		return 0, err
	}
	live, err := c.live(ctx, name)
	if err != nil || live == nil {
		return 0, err
	}
	every := found.policy.RepaveEvery
	switch {
	case live.TTL > 0:
		return 0, c.decide(ctx, name, tried, "it ends by itself, "+live.TTL.String()+" after its last release")
	case len(found.fixable()) == 0:
		return 0, c.decide(ctx, name, tried, "no version mends "+listed(found.open()))
	case !tried.Last.IsZero() && c.now().Sub(tried.Last) < every:
		left := every - c.now().Sub(tried.Last)
		return min(left, every), c.decide(ctx, name, tried, fmt.Sprintf("it was tried at %s, and is tried again %s later", stamp(tried.Last), every))
	case c.busy(name):
		return busyAgain, nil
	}
	return 0, c.attempt(ctx, name, found)
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }

// busy says whether somebody changes an environment.
func (c *Control) busy(name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.environment(name).holder != nil
}

// attempt repaves an environment once. That it was tried is recorded before, so
// that a control plane that dies of it does not try again at once.
func (c *Control) attempt(ctx context.Context, name string, found findings) error {
	tried := attempts{Last: c.now().UTC()}
	err := c.noteAttempt(ctx, name, tried, "repave.begun", "it is baked again by itself because of "+listed(found.fixable()))
	if err != nil {
		return err
	}
	out, err := c.repaveOne(ctx, repave{environment: name, alone: true, actor: itself}, newFeed(nil))
	switch {
	case ctx.Err() != nil:
		return nil // the rollout goes on with the next control plane
	case err != nil:
		shown := asError(err)
		return c.noteAttempt(ctx, name, tried, "repave.failed", "it could not be repaved: "+shown.Message)
	case out.Outcome == RepaveDone:
		return nil // it is told
	}
	return c.decide(ctx, name, tried, out.Reason)
}

// decide tells why an environment is not repaved, when that is another reason
// than the last time.
func (c *Control) decide(ctx context.Context, name string, tried attempts, reason string) error {
	if tried.Said == reason {
		return nil
	}
	tried.Said = reason
	return c.noteAttempt(ctx, name, tried, "repave.skipped", "it is not repaved by itself: "+reason)
}

func (c *Control) noteAttempt(ctx context.Context, name string, tried attempts, kind, message string) error {
	value, err := json.Marshal(tried)
	if err != nil {
		return err
	}
	err = c.ledger.Commit(ctx, kiln.Record{
		Events:   []kiln.Event{{At: c.now().UTC(), Environment: name, Kind: kind, Subject: name, Message: "environment " + name + ": " + message, Actor: itself}},
		Settings: map[string][]byte{attemptsOf(name): value},
	})
	if err != nil {
		return fmt.Errorf("record a decision about repaving %s: %w", name, err)
	}
	return nil
}
