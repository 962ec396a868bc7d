package control

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/plan"
)

const (
	reconcileEvery = 30 * time.Second
	// reconcileGap bounds how often engine events lead to a reconcile.
	reconcileGap = time.Second
)

// reconcile compares what the engine was told with what it should have been
// told, every 30 seconds and soon after every engine event. (Dead and unready
// instances are the engine's own to replace.)
func (c *Control) reconcile(ctx context.Context) {
	for {
		if await(ctx, c.kick, reconcileEvery) != nil {
			return
		}
		c.recallAgain(ctx)
		within, end := c.begins(ctx, workReconcile)
		end(c.settle(within))
		if pause(ctx, reconcileGap) != nil {
			return
		}
	}
}

// settle tells the engine what it was not told yet, or forgot. It is tried
// again soon where that failed, which is logged.
func (c *Control) settle(ctx context.Context) error {
	var failed error
	for _, name := range c.names() {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := c.settleOne(ctx, name); err != nil {
			failed = err
			c.troubled(name, err)
			c.complain(ctx, "environment could not be reconciled", name, err)
		} else {
			c.calm("environment could not be reconciled", name)
		}
		c.lookAgain(ctx, name)
	}
	if failed != nil {
		c.poke()
	}
	return failed
}

// troubled notes why an environment could not be reconciled, for its status.
func (c *Control) troubled(name string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.environment(name).problem = err.Error()
}

// settleOne brings one environment back to what it stands for, unless somebody
// changes it.
func (c *Control) settleOne(ctx context.Context, name string) error {
	c.mu.Lock()
	e := c.environment(name)
	busy, unsettled, fleets := e.holder != nil || !e.released, e.unsettled, e.fleets
	c.mu.Unlock()
	if busy {
		return nil
	}
	seen, err := c.engine.Observe(ctx, name)
	if err != nil {
		return err
	}
	drift := plan.Drift(fleets, seen)
	if len(drift) == 0 && !unsettled {
		return nil
	}
	h, err := c.holdBriefly(ctx, name, "reconcile")
	if err != nil {
		return nil // somebody else changes it, which settles it as well
	}
	defer c.release(name, h)
	if len(drift) > 0 && !unsettled {
		c.log.WarnContext(ctx, "drift is mended", "environment", name, "drift", drift)
		err := c.ledger.Commit(ctx, kiln.Record{Events: []kiln.Event{{
			At: c.now().UTC(), Environment: name, Kind: "drift.mended", Subject: name, Message: strings.Join(drift, "; "),
		}}})
		// What the ledger does not take now must not keep drift from being mended.
		c.complain(ctx, "drift that is mended is not recorded", name, err)
	}
	if err := c.route(ctx); err != nil {
		return err
	}
	return c.apply(ctx, name, "reconcile")
}

// poke asks for a reconcile soon.
func (c *Control) poke() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// names are all environments, sorted.
func (c *Control) names() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Sorted(maps.Keys(c.environments))
}
