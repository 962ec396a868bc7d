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

// expire retires parked releases whose time has passed.
func (c *Control) expire(ctx context.Context) {
	for {
		next := time.Minute
		for _, name := range c.names() {
			until := c.parkedUntil(name)
			if until.IsZero() {
				continue
			}
			left := until.Sub(c.now())
			if left <= 0 {
				left = time.Second // after an attempt that was in vain
				if err := c.unpark(ctx, name); err != nil && ctx.Err() == nil && !errors.Is(err, kiln.ErrConflict) {
					c.log.ErrorContext(ctx, "parked release could not be retired", "environment", name, "error", err)
				}
			}
			next = min(next, left)
		}
		if await(ctx, c.parked, next) != nil {
			return
		}
	}
}

// parkedUntil is when an environment's parked release is retired; zero for
// none.
func (c *Control) parkedUntil(name string) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.environment(name).view.Others {
		if r.State == kiln.ReleaseParked {
			return r.ParkedUntil
		}
	}
	return time.Time{}
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
	if parked == nil || c.now().Before(parked.ParkedUntil) {
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
