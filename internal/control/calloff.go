package control

import (
	"context"
	"fmt"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/rollout"
)

// drives lets a rollout run under its holder.
func (c *Control) drives(h *holder, d *drive) {
	c.mu.Lock()
	h.drive = d
	c.mu.Unlock()
	c.spawn(d.run)
}

// callOff makes the rollout of an environment go back to where it began, when
// one runs whose outcome is open, and waits until it is undone. It returns
// nil when there is none, or when it came too late.
func (c *Control) callOff(ctx context.Context, name, what, actor string) (*drive, error) {
	c.mu.Lock()
	h := c.environment(name).holder
	var d *drive
	if h != nil {
		d = h.drive
	}
	c.mu.Unlock()
	if d == nil || !d.callOff(what, actor) {
		return nil, nil
	}
	select {
	case <-h.decided:
		if d.failed("") == nil {
			return nil, nil // the outcome was journalled at that moment: it went through
		}
		return d, nil
	case <-d.stuck:
		return nil, d.failed(notUndone)
	case <-d.refused:
		return nil, d.waiting()
	case <-ctx.Done():
		return nil, kiln.Errorf(kiln.CodeUnavailable, "kiln status "+name+" shows how far it is",
			"the rollout of release %d is being undone, and goes on without you: %w", d.record.To, ctx.Err())
	case <-c.stopping():
		return nil, kiln.Errorf(kiln.CodeUnavailable, "it goes on when the control plane is back", "the control plane stops")
	}
}

// callOff ends the present step's actions and has the rollout undone. It
// reports whether the outcome was open still.
func (d *drive) callOff(what, actor string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.state.Open() {
		return false
	}
	d.off = &rollout.Failure{Code: kiln.CodeConflict, Message: fmt.Sprintf("%s by %s called it off", what, actor)}
	if d.cease != nil {
		d.cease()
	}
	return true
}

// calledOff says why the rollout is called off, while its outcome is open.
func (d *drive) calledOff() *rollout.Failure {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.state.Open() {
		return nil
	}
	return d.off
}

// ceaseWith sets what ends the actions that are about to be taken.
func (d *drive) ceaseWith(cancel context.CancelFunc) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cease = cancel
	if d.off != nil && d.state.Open() {
		cancel()
	}
}

// undoPatience is how long those who asked for a rollout wait for an undoing
// that does not work.
const undoPatience = 15 * time.Second

// struggle says that an action failed in a step that is taken until it works.
func (d *drive) struggle(ctx context.Context, err error) {
	if d.state.Failure == nil {
		return
	}
	d.c.log.WarnContext(ctx, "undoing is tried again", "environment", d.rollout.Environment, "step", d.state.Step, "error", err)
	select {
	case <-d.stuck:
	default:
		if d.c.now().Sub(d.state.Began) >= undoPatience {
			close(d.stuck)
		}
	}
}
