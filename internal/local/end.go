package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
)

const (
	// restOfAddress is how long an address of an ended instance is not given
	// out again: longer than the kernel takes what looks like one of its flows
	// for an answer (nf_conntrack_udp_timeout_stream, 120 s), so that nobody
	// inherits what was declared by another.
	restOfAddress = 130 * time.Second
	// killLimit bounds the wait for processes that got SIGKILL. The kernel may
	// hold one in a system call, but not the engine.
	killLimit = 10 * time.Second
	// tableLimit bounds the wait for the gateway to leave an instance alone.
	tableLimit = 3 * time.Second
)

// exited takes the news that an instance's process ended.
func (e *Engine) exited(id string, exit kiln.Exit) {
	e.mu.Lock()
	defer e.mu.Unlock()
	in, ok := e.instances[id]
	if !ok || in.exit != nil {
		return
	}
	in.exit = &exit
	if !in.ended {
		in.State = kiln.InstanceDead // out of the table, and not counted, at once
		in.DiedAt = exit.At
		e.traffic.mark()
	}
	close(in.exited)
}

// findExit returns how the process ended; alive when it did not.
func (e *Engine) findExit(in *instance) (exit *kiln.Exit, alive bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return in.exit, in.exit == nil
}

// died buries an instance whose process ended without having been asked to.
func (e *Engine) died(ctx context.Context, in *instance) {
	exit, _ := e.findExit(in)
	cause := e.causeOf(in, *exit)
	e.mu.Lock()
	if in.ended { // its end was asked for in the same moment
		cause = in.cause
	} else {
		in.ended, in.cause = true, cause
		e.lose(in, cause)
	}
	e.mu.Unlock()
	e.bury(ctx, in, cause)
}

// causeOf reads an exit. Its control group must still be there.
func (e *Engine) causeOf(in *instance, exit kiln.Exit) kiln.Cause {
	c := kiln.Cause{Kind: kiln.CauseExited, ExitCode: exit.Code, LastLog: e.lastLog(in)}
	signal := exit.Signal
	if signal == 0 && in.hasInit && exit.Code > 128 && exit.Code <= 128+64 {
		signal = exit.Code - 128 // the init passes on how its child ended
	}
	switch {
	case e.groups.MemoryKilled(in.ID):
		c.Kind, c.Signal = kiln.CauseOutOfMemory, "SIGKILL"
		c.Detail = "its limit is " + kiln.Size(in.template.Config.Limits.Memory)
		c.Hint = "raise limits { memory }, which counts what is written to tmpfs paths too, or mend what grows"
	case exit.Lost:
		c.Kind, c.ExitCode = kiln.CauseLost, 0
	case signal != 0:
		c.Kind, c.Signal = kiln.CauseSignalled, signalName(signal)
	default:
		c = readLog(c, in.hasInit)
	}
	if c.Failure() && c.Detail == "" && (c.ExitCode != 0 || signal != 0) && e.groups.ProcessesRefused(in.ID) {
		c.Detail = fmt.Sprintf("it wanted more processes and threads than its limit of %d", in.template.Config.Limits.PIDs)
		c.Hint = "raise limits { pids }, or mend what starts so many"
	}
	return c
}

func signalName(n int) string {
	if name := unix.SignalName(unix.Signal(n)); name != "" {
		return name
	}
	return fmt.Sprintf("signal %d", n)
}

// finish ends an instance that runs: out of traffic, drained, asked, killed,
// buried.
func (e *Engine) finish(ctx context.Context, in *instance) {
	if err := e.saveRecord(in); err != nil {
		e.Log.Warn("record instance", "instance", in.ID, "error", err)
	}
	e.drain(ctx, in)
	if !e.stop(ctx, in) {
		return // ctx ended; the next engine goes on
	}
	e.mu.Lock()
	cause, wasReady := in.cause, !in.ReadyAt.IsZero()
	e.mu.Unlock()
	if cause.Failure() || !wasReady {
		cause.LastLog = e.lastLog(in)
	}
	e.bury(ctx, in, cause)
}

// drain waits until nothing is in flight on the instance, its drain time is
// over, or it ended.
func (e *Engine) drain(ctx context.Context, in *instance) {
	e.mu.Lock()
	never := in.ReadyAt.IsZero()
	e.mu.Unlock()
	if in.template.Worker() || never || in.task {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, tableLimit+in.template.Config.Drain)
	defer cancel()
	stop := afterClose(in.exited, cancel)
	defer stop()
	table, done := context.WithTimeout(ctx, tableLimit)
	err := e.traffic.publish(table)
	done()
	if err == nil {
		err = e.Gateway.Drain(ctx, in.ID, in.template.Config.Drain)
	}
	if err != nil && ctx.Err() == nil {
		e.Log.Warn("drain", "instance", in.ID, "error", err)
	}
}

// afterClose calls f once c is closed, unless stopped before.
func afterClose(c <-chan struct{}, f func()) (stop func()) {
	end := make(chan struct{})
	go func() {
		select {
		case <-c:
			f()
		case <-end:
		}
	}()
	return func() { close(end) }
}

// stop sends the stop signal, and SIGKILL to all when the grace is over. It
// returns false when ctx ended first.
func (e *Engine) stop(ctx context.Context, in *instance) bool {
	if _, alive := e.findExit(in); alive {
		if err := e.groups.Thaw(in.ID); err != nil {
			e.Log.Debug("thaw", "instance", in.ID, "error", err)
		}
		if err := e.signal(in, unix.Signal(in.stop)); err != nil {
			e.Log.Warn("send the stop signal", "instance", in.ID, "error", err)
		}
	}
	select {
	case <-in.exited:
		return true
	case <-ctx.Done():
		return false
	case <-time.After(in.template.Config.Grace):
	}
	if err := e.groups.Kill(in.ID); err != nil {
		e.Log.Warn("kill", "instance", in.ID, "error", err)
	}
	select {
	case <-in.exited:
	case <-ctx.Done():
		return false
	case <-time.After(killLimit):
		e.Log.Error("processes outlive SIGKILL", "instance", in.ID)
	}
	return true
}

// signal sends a signal to process 1 of the instance, if the process of that
// number still is that.
func (e *Engine) signal(in *instance, s unix.Signal) error {
	if s == 0 {
		s = unix.SIGTERM
	}
	fd, err := unix.PidfdOpen(in.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	// The descriptor pins the process; what it is can be asked now.
	if !e.owns(in.ID, in.PID) {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, s, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

// bury removes all that is left of an instance and tells of its death.
func (e *Engine) bury(ctx context.Context, in *instance, cause kiln.Cause) {
	e.mu.Lock()
	in.State, in.Cause = kiln.InstanceDead, &cause
	if in.DiedAt.IsZero() {
		in.DiedAt = time.Now()
	}
	env := e.environment(in.Environment)
	if !in.task {
		f := e.fleetOf(env, in)
		if cause.Kind != kiln.CauseStopped {
			f.deaths = append(f.deaths, in.Instance)
			f.deaths = f.deaths[max(0, len(f.deaths)-maxDeaths):]
		}
	}
	e.Log.Info("instance", "instance", in.ID, "to", kiln.InstanceDead, "cause", cause.Kind, "detail", cause.Detail)
	e.report(in)
	e.mu.Unlock()

	e.removeAll(ctx, in.ID)
	e.mu.Lock()
	delete(e.instances, in.ID)
	if in.Address.IsValid() {
		e.plan.Release(in.Address, time.Now().Add(restOfAddress))
	}
	env.stir()
	base := uint32(0)
	if share, ok := e.plan.Environments[in.Environment]; ok {
		base = share.UIDBase
	}
	e.mu.Unlock()
	if len(in.template.Config.Egress) > 0 {
		e.filter.mark()
	}
	if in.root != "" && base != 0 {
		e.collectRoots(in.Environment, base)
	}
	close(in.gone)
}

// The pauses before a removal is tried again.
const (
	removeAgain = 50 * time.Millisecond
	removeLast  = 10 * time.Second
)

// removeAll removes until nothing is left, or ctx ends: the keeper may be away,
// or a process in the hands of the kernel. Until then the instance keeps its
// address.
func (e *Engine) removeAll(ctx context.Context, id string) {
	for again := removeAgain; ; again = min(2*again, removeLast) {
		err := e.remove(ctx, id)
		if err == nil || ctx.Err() != nil {
			return
		}
		e.Log.Warn("remove instance", "instance", id, "error", err)
		pause(ctx, again)
	}
}

// remove deletes everything of an instance but its logs, whatever of it
// exists. Its link goes away with its namespace.
func (e *Engine) remove(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, killLimit)
	defer cancel()
	errs := []error{e.groups.Kill(id), e.groups.Remove(ctx, id)}
	errs = append(errs, os.RemoveAll(filepath.Join(e.paths.runtime, id)))
	if err := e.Keeper.Forget(ctx, id); err != nil && !errors.Is(err, kiln.ErrNotFound) {
		errs = append(errs, err)
	}
	// Last: while the folder is there, the rest is looked for.
	if errors.Join(errs...) == nil {
		errs = append(errs, os.RemoveAll(e.paths.instance(id)))
	}
	return errors.Join(errs...)
}

// Quarantine implements kiln.Engine.
func (e *Engine) Quarantine(ctx context.Context, id, reason string) error {
	e.mu.Lock()
	in, env, err := e.find(id)
	if err == nil && in.PID == 0 {
		err = kiln.Errorf(kiln.CodeConflict, "wait until it runs", "instance %s does not run yet", id)
	}
	if err == nil && in.State != kiln.InstanceQuarantined {
		e.setState(in, kiln.InstanceQuarantined)
		in.Note = reason
		f := e.fleetOf(env, in)
		f.lost = append(f.lost, fmt.Sprintf("replaces %s: quarantined: %s", id, reason))
		close(in.hold)
	}
	e.mu.Unlock()
	if err != nil {
		return err
	}
	env.stir()
	if err := e.saveRecord(in); err != nil {
		return err
	}
	return e.traffic.publish(ctx)
}

// freeze stops the processes of an instance in quarantine once its requests
// in flight are done.
func (e *Engine) freeze(ctx context.Context, in *instance) {
	e.drain(ctx, in)
	if err := e.groups.Freeze(in.ID); err != nil && ctx.Err() == nil {
		e.Log.Warn("freeze", "instance", in.ID, "error", err)
	}
}
