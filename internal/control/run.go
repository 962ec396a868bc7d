package control

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kilnproject/kiln"
)

// Run restores every environment from the ledger, goes on with the rollouts
// that did not end, and then keeps everything as it should be until ctx ends.
// It may be called once.
func (c *Control) Run(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	c.mu.Lock()
	c.base, c.stopAll, c.begun = ctx, stop, c.now().UTC()
	c.mu.Unlock()
	changes := c.engine.Watch(ctx)
	if err := c.restore(ctx); err != nil {
		stop(err)
		c.work.Wait()
		return fmt.Errorf("restore: %w", err)
	}
	close(c.restored)
	c.spawn(func(ctx context.Context) { c.record(ctx, changes) })
	c.spawn(c.reconcile)
	c.spawn(c.expire)
	c.spawn(c.collect)
	if c.prover != nil {
		c.spawn(c.rescan)
		c.spawn(c.repaveByItself)
	}
	<-ctx.Done()
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.work.Wait()
	if err := context.Cause(ctx); errors.Is(err, errStopped) {
		return err
	}
	return nil
}

// spawn runs f until the control plane ends; Run waits for it.
//
//nolint:contextcheck // what it runs outlives the call that began it
func (c *Control) spawn(f func(context.Context)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	ctx := c.base
	c.work.Go(func() { f(ctx) })
}

// stop ends Run with an error.
func (c *Control) stop(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopAll(err)
}

// stopping is closed when the control plane ends.
func (c *Control) stopping() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.base.Done()
}

// changes is closed at the next change of an environment.
func (c *Control) changes(name string) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.environment(name).changed
}

// expire retires parked releases whose time has passed, and ends environments
// whose last release has been live for as long as it may.
func (c *Control) expire(ctx context.Context) {
	for {
		next := time.Minute
		for _, name := range c.names() {
			if left, ok := c.parkLeft(name); ok {
				next = min(next, c.due(ctx, name, left, c.unpark))
			}
			if left, ok := c.liveLeft(ctx, name); ok {
				next = min(next, c.due(ctx, name, left, c.outlived))
			}
		}
		if await(ctx, c.parked, next) != nil {
			return
		}
	}
}

// due does what is to be done when no time is left, and returns after how long
// to look again.
func (c *Control) due(ctx context.Context, name string, left time.Duration, do func(context.Context, string) error) time.Duration {
	if left > 0 {
		return left
	}
	if err := do(ctx, name); !errors.Is(err, kiln.ErrConflict) {
		c.complain(ctx, "release could not be retired", name, err)
	}
	return time.Second // after an attempt that was in vain
}

// alarm is a time of the history as a time of this process: the clock of the
// wall may jump, and is asked once.
type alarm struct {
	at   time.Time     // as the history has it
	left time.Duration // of it, when it was seen
	seen time.Time     // by the clock that does not jump
}

// left is how long until a time of the history, which is at most longest away,
// whatever the clock said when it was written or says now. The key is whose
// time it is. Only expire may call it.
func (c *Control) left(key string, at time.Time, longest time.Duration) time.Duration {
	a, known := c.alarms[key]
	if !known || !a.at.Equal(at) {
		a = alarm{at: at, left: min(at.Sub(c.now()), longest), seen: time.Now()}
		c.alarms[key] = a
	}
	return a.left - time.Since(a.seen)
}

// liveLeft is how long until an environment ends by itself, if it does.
func (c *Control) liveLeft(ctx context.Context, name string) (time.Duration, bool) {
	c.mu.Lock()
	live := c.environment(name).view.Live
	c.mu.Unlock()
	if live == nil || live.TTL <= 0 {
		return 0, false
	}
	recorded, err := c.ledger.Release(ctx, name, live.Number) // only the ledger knows since when
	if err != nil {
		c.log.ErrorContext(ctx, "the age of a release is not known", "environment", name, "error", err)
		return 0, false
	}
	return c.lifeLeft(name, recorded)
}

// lifeLeft is how long until a live release ends its environment, if it does.
func (c *Control) lifeLeft(name string, live kiln.Release) (time.Duration, bool) {
	end := endOf(live)
	if end.IsZero() {
		return 0, false
	}
	return c.left(name+" live", end, live.TTL), true
}

// endOf is when a live release's environment ends by itself; zero for never.
func endOf(r kiln.Release) time.Time {
	if r.TTL <= 0 || r.LiveAt.IsZero() {
		return time.Time{}
	}
	return r.LiveAt.Add(r.TTL)
}

// outlived ends an environment whose live release has outlived it.
func (c *Control) outlived(ctx context.Context, name string) error {
	h, err := c.holdBriefly(ctx, name, "the end of the environment")
	if err != nil {
		return err
	}
	defer c.release(name, h)
	releases, err := c.ledger.Releases(ctx, name)
	if err != nil {
		return fmt.Errorf("list the releases of %s: %w", name, err)
	}
	live := findState(releases, kiln.ReleaseLive)
	if live == nil {
		return nil
	}
	if left, ok := c.lifeLeft(name, *live); !ok || left > 0 {
		return nil
	}
	return c.end(ctx, name, releases, retiring{
		states: []kiln.ReleaseState{kiln.ReleaseLive, kiln.ReleaseParked},
		event: kiln.Event{
			Kind: "environment.expired", Subject: name,
			Message: fmt.Sprintf("environment %s was ended: its last release, %d, went live %s ago, which is its ttl", name, live.Number, live.TTL),
		},
		reason: "the environment has reached its ttl",
	}, newFeed(nil))
}

// parkLeft is how long until an environment's parked release is retired, if
// there is one.
func (c *Control) parkLeft(name string) (time.Duration, bool) {
	c.mu.Lock()
	view := c.environment(name).view
	c.mu.Unlock()
	longest := time.Duration(0)
	if view.Live != nil {
		longest = longestPark(*view.Live)
	}
	for _, r := range view.Others {
		longest = max(longest, longestPark(r))
	}
	for _, r := range view.Others {
		if r.State == kiln.ReleaseParked && !r.ParkedUntil.IsZero() {
			return c.left(name+" parked", r.ParkedUntil, longest), true
		}
	}
	return 0, false
}

// longestPark is the longest that a release says the one before it is parked.
func longestPark(r kiln.Release) (longest time.Duration) {
	for _, s := range r.Services {
		longest = max(longest, s.Rollout.Park)
	}
	return longest
}

// unpark retires the parked releases whose time has passed.
func (c *Control) unpark(ctx context.Context, name string) error {
	h, err := c.holdBriefly(ctx, name, "the end of a parked release")
	if err != nil {
		return err
	}
	defer c.release(name, h)
	releases, err := c.ledger.Releases(ctx, name)
	if err != nil {
		return fmt.Errorf("list the releases of %s: %w", name, err)
	}
	parked := findState(releases, kiln.ReleaseParked)
	if left, ok := c.parkLeft(name); parked == nil || !ok || left > 0 {
		return nil
	}
	return c.end(ctx, name, releases, retiring{
		states: []kiln.ReleaseState{kiln.ReleaseParked},
		event: kiln.Event{
			Kind: "park.ended", Subject: subject(parked.Number),
			Message: fmt.Sprintf("release %d was parked for as long as its release says", parked.Number),
		},
		reason: fmt.Sprintf("release %d is no longer parked", parked.Number),
	}, newFeed(nil))
}
