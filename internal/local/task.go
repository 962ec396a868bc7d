package local

import (
	"context"
	"fmt"
	"time"

	"github.com/kilnproject/kiln"
)

// taskTimeout is for tasks that do not say.
const taskTimeout = 10 * time.Minute

// Run implements kiln.Engine.
func (e *Engine) Run(ctx context.Context, task kiln.Task) (kiln.TaskResult, error) {
	began := time.Now()
	f := kiln.Fleet{Environment: task.Environment, Template: task.Template, Count: 1}
	if err := checkFleets(task.Environment, []kiln.Fleet{f}); err != nil {
		return kiln.TaskResult{}, err
	}
	e.names.resolveNow(ctx, task.Template)
	for {
		cause, again, err := e.runOnce(ctx, task)
		switch {
		case err != nil:
			return kiln.TaskResult{}, err
		case again: // the keeper died before the task was known to run
			continue
		case cause.Kind == kiln.CauseStartFailed:
			return kiln.TaskResult{}, &kiln.Error{
				Code: kiln.CodeFailed, Message: "the task could not be started: " + cause.Detail, Hint: "kiln doctor", Evidence: cause.LastLog,
			}
		}
		return kiln.TaskResult{Cause: cause, Took: time.Since(began)}, nil
	}
}

// runOnce runs a task's instance to its end and returns its cause, or again
// where it has to be started once more.
func (e *Engine) runOnce(ctx context.Context, task kiln.Task) (cause kiln.Cause, again bool, err error) {
	in := newInstance(task.Environment, task.Template, fmt.Sprintf("task of release %d", task.Release))
	in.task, in.release, in.timeout = true, task.Release, task.Timeout
	if in.timeout <= 0 {
		in.timeout = taskTimeout
	}
	select {
	case <-e.begun:
	case <-ctx.Done():
		return cause, false, ctx.Err()
	}
	e.mu.Lock()
	e.environment(task.Environment)
	e.instances[in.ID] = in
	e.busy.Add(1)
	life := e.life
	e.goAlong(func(ctx context.Context) { e.live(ctx, in) })
	e.mu.Unlock()

	select {
	case <-in.gone:
	case <-life.Done():
		return cause, false, kiln.Errorf(kiln.CodeUnavailable, "", "the engine was stopped")
	case <-ctx.Done():
		e.mu.Lock()
		e.endLocked(in, kiln.Cause{Kind: kiln.CauseStopped, Detail: "its caller went away"})
		e.mu.Unlock()
		return cause, false, ctx.Err()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return *in.Cause, in.away, nil
}
