package gateway

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/kilnproject/kiln"
)

var errDrained = errors.New("the instance's time to drain is over")

// drain waits until nothing is in flight on an instance, which the table must
// not have any more, and closes what is left when the limit passes. Idle
// connections to it are closed at once. An unknown instance is drained.
func (g *gateway) drain(ctx context.Context, id string, limit time.Duration) error {
	t := g.table.Load().source
	for _, endpoints := range t.Fleets {
		if slices.ContainsFunc(endpoints, func(e kiln.Endpoint) bool { return e.Instance == id }) {
			return kiln.Errorf(kiln.CodeConflict, "", "instance %s is in table %d and cannot be drained", id, t.Generation)
		}
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for _, i := range g.registry.find(id) {
		i.leave()
		select {
		case <-i.wait():
			continue
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		}
		if !g.endDrained(i) {
			return kiln.Errorf(kiln.CodeConflict, "", "instance %s came back while it was drained", id)
		}
		select {
		case <-i.wait():
		case <-ctx.Done():
			return ctx.Err()
		}
		timer.Reset(0)
	}
	g.setting.Lock()
	defer g.setting.Unlock()
	g.registry.depart(g.table.Load().source, g.clock())
	return nil
}

// endDrained closes what is left on an instance, unless a table brought it
// back meanwhile.
func (g *gateway) endDrained(i *instance) bool {
	g.setting.Lock()
	defer g.setting.Unlock()
	if !i.leaving.Load() {
		return false
	}
	i.kill(errDrained)
	return true
}
