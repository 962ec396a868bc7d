package local

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"net/netip"
	"path/filepath"
	"sync"
	"time"

	"github.com/kilnproject/kiln"
)

// unreadyWindows is how many windows of failing checks an instance that was
// ready may stay unready before it is replaced.
const unreadyWindows = 3

// keepQuarantined is how long a body in quarantine is kept.
const keepQuarantined = time.Hour

// instance is one running unit and what the engine knows of it. The fields
// are guarded by the engine's mu, but those set before its goroutine starts.
type instance struct {
	kiln.Instance
	template kiln.Template
	task     bool
	release  int
	leave    string // why it is to be replaced
	ended    bool   // its end was asked for
	away     bool   // the keeper did not live to see its start
	cause    kiln.Cause
	exit     *kiln.Exit
	link     string
	root     string
	stop     int
	hasInit  bool
	failing  time.Time // since when it is unready
	timeout  time.Duration
	writing  sync.Mutex // its record

	end    chan struct{} // closed when its end is asked for
	exited chan struct{} // closed when its process ended
	hold   chan struct{} // closed when it goes into quarantine
	gone   chan struct{} // closed when nothing is left of it
	nudge  chan struct{} // asks for a check at once
	fell   chan struct{} // holds one when it turned unready
}

func newInstance(environment string, t kiln.Template, reason string) *instance {
	now := time.Now()
	return wrapInstance(kiln.Instance{
		ID: newID(t.Service, now), Environment: environment, Service: t.Service, Fleet: kiln.FleetIDOf(environment, t),
		Image: t.Image, State: kiln.InstanceStarting, CreatedAt: now, Reason: reason,
	}, t)
}

func wrapInstance(i kiln.Instance, t kiln.Template) *instance {
	return &instance{
		Instance: i, template: t, hasInit: !t.Config.NoInit,
		end: make(chan struct{}), exited: make(chan struct{}), hold: make(chan struct{}), gone: make(chan struct{}), nudge: make(chan struct{}, 1),
		fell: make(chan struct{}, 1),
	}
}

// newID is "<service>-<time and chance>": 10 digits of time in milliseconds
// and 4 of chance, base 32, at most 40 characters together.
func newID(service string, now time.Time) string {
	var b [9]byte
	binary.BigEndian.PutUint64(b[:8], uint64(now.UnixMilli())<<14) // after 1970
	var chance [3]byte
	_, _ = rand.Read(chance[:])
	// 50 bits of time, which are whole digits, and 20 of chance.
	lower := base32.NewEncoding("0123456789abcdefghijklmnopqrstuv").WithPadding(base32.NoPadding)
	return service[:min(len(service), 25)] + "-" + lower.EncodeToString(b[:])[:10] + lower.EncodeToString(chance[:])[:4]
}

// counts says whether the instance counts towards what is desired.
func (in *instance) counts() bool {
	return !in.ended && in.State != kiln.InstanceDead && in.State != kiln.InstanceQuarantined
}

// record is the instance for the disk. e.mu is held.
func (in *instance) record() record {
	r := record{
		Phase: phaseRunning, Instance: in.Instance, Template: in.template, Task: in.task, Release: in.release,
		Link: in.link, Root: in.root, Stop: in.stop, Leave: in.leave,
	}
	switch {
	case in.ended:
		cause := in.cause
		r.Phase, r.End = phaseEnding, &cause
	case in.State == kiln.InstanceQuarantined:
		r.Phase = phaseQuarantined
	case in.PID == 0:
		r.Phase = phaseMaking
	}
	return r
}

// saveRecord writes the instance's record, if there is a folder for it yet.
func (e *Engine) saveRecord(in *instance) error {
	e.mu.Lock()
	r := in.record()
	e.mu.Unlock()
	if in.link == "" {
		return nil // nothing of it exists
	}
	in.writing.Lock()
	defer in.writing.Unlock()
	return writeQuick(filepath.Join(e.paths.instance(in.ID), "state.json"), r)
}

// report tells watchers of the instance as it is. e.mu is held.
func (e *Engine) report(in *instance) {
	if in.task {
		return
	}
	copied := in.Instance
	e.changes.send(kiln.Change{Instance: &copied})
}

// setState changes the state and tells of it. e.mu is held.
func (e *Engine) setState(in *instance, state kiln.InstanceState) {
	if in.State == state {
		return
	}
	e.Log.Info("instance", "instance", in.ID, "from", in.State, "to", state)
	in.State = state
	e.report(in)
}

// endLocked asks for an instance's end. It is out of the next table and no
// longer counts. e.mu is held.
func (e *Engine) endLocked(in *instance, cause kiln.Cause) {
	if in == nil || in.ended || in.State == kiln.InstanceDead {
		return
	}
	in.ended, in.cause = true, cause
	e.setState(in, kiln.InstanceDraining)
	close(in.end)
	e.traffic.mark()
}

// endOwn is endLocked for a failure of the instance's own, which counts
// against its fleet.
func (e *Engine) endOwn(in *instance, cause kiln.Cause) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if in.ended || in.State == kiln.InstanceDead {
		return
	}
	e.endLocked(in, cause)
	e.lose(in, cause)
}

// lose counts a failed instance against its fleet and wakes the environment
// to replace it. e.mu is held.
func (e *Engine) lose(in *instance, cause kiln.Cause) {
	if in.task {
		return
	}
	env := e.environment(in.Environment)
	f := e.fleetOf(env, in)
	now := time.Now()
	if in.ReadyAt.IsZero() || now.Sub(in.ReadyAt) < settled {
		f.backoff.failed(now, f.Count)
	} else {
		f.backoff.reset()
	}
	if in.leave == "" && f.desired {
		f.lost = append(f.lost, "replaces "+in.ID+": "+string(cause.Kind))
		f.lost = f.lost[max(0, len(f.lost)-maxCount):]
	}
	env.stir()
}

// live takes a new instance through its whole life.
func (e *Engine) live(ctx context.Context, in *instance) {
	err := e.start(ctx, in)
	e.busy.Add(-1)
	switch {
	case err == nil:
		e.tend(ctx, in)
	case ctx.Err() != nil: // the next engine removes what was made
	case errors.Is(err, errEnded):
		e.bury(ctx, in, in.cause)
	case errors.Is(err, errAway):
		e.giveUp(ctx, in, err)
	default:
		e.Failed(ctx, err)
		e.bury(ctx, in, e.startFailed(in, err))
	}
}

// giveUp ends an instance whose start the keeper did not live to see, once there
// is a keeper again. That is no failure of its fleet, which gets another one.
func (e *Engine) giveUp(ctx context.Context, in *instance, err error) {
	e.Log.Warn("instance is started anew", "instance", in.ID, "error", err)
	for ctx.Err() == nil {
		pause(ctx, reconnect)
		if _, err := e.Keeper.List(ctx); err == nil {
			break
		}
	}
	if ctx.Err() != nil {
		return // the next engine removes what was made
	}
	e.mu.Lock()
	if !in.ended {
		in.ended, in.cause = true, kiln.Cause{Kind: kiln.CauseStopped, Detail: "the keeper died while it was started"}
		in.away = true
	}
	cause := in.cause
	e.mu.Unlock()
	e.bury(ctx, in, cause)
}

// startFailed counts a failed start, unless its end had been asked for, and
// returns the cause of death.
func (e *Engine) startFailed(in *instance, err error) kiln.Cause {
	e.Log.Warn("instance did not start", "instance", in.ID, "error", err)
	cause := kiln.Cause{Kind: kiln.CauseStartFailed, Detail: err.Error(), LastLog: e.lastLog(in)}
	e.mu.Lock()
	defer e.mu.Unlock()
	// What it was made from may have gone; the next one makes it anew.
	delete(e.prepared, in.Fleet)
	if in.ended {
		return in.cause
	}
	in.ended, in.cause = true, cause
	e.lose(in, cause)
	return cause
}

// tend looks after an instance that runs until nothing is left of it, or ctx
// ends.
func (e *Engine) tend(ctx context.Context, in *instance) {
	probing, stop := context.WithCancel(ctx)
	defer stop()
	if !in.task {
		e.work.Go(func() { e.watchReadiness(probing, in) })
	}
	limit := time.NewTimer(e.timeLeft(in))
	defer limit.Stop()
	hold := in.hold
	for {
		select {
		case <-ctx.Done():
			return
		case <-in.exited:
			e.died(ctx, in)
			return
		case <-in.end:
			stop()
			e.finish(ctx, in)
			return
		case <-hold:
			stop()
			e.freeze(ctx, in)
			hold = nil
			limit.Reset(keepQuarantined)
		case <-in.fell:
			if hold != nil { // a body in quarantine is kept, whatever it was before
				limit.Reset(unreadyWindow(in.template.Config.Ready))
			}
		case <-limit.C:
			e.expire(in, limit)
		}
	}
}

// timeLeft is how long until an instance must be looked at again without
// news: its start timeout, a task's timeout.
func (e *Engine) timeLeft(in *instance) time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case in.task:
		return in.timeout
	case in.State == kiln.InstanceQuarantined:
		return keepQuarantined
	}
	return startTimeout(in.template)
}

func startTimeout(t kiln.Template) time.Duration {
	if t.Config.StartTimeout > 0 {
		return t.Config.StartTimeout
	}
	return time.Minute
}

// expire ends an instance that took too long to become ready, was in quarantine
// for long enough, or is unready for too long. One that is ready is looked at
// again once it turns unready.
func (e *Engine) expire(in *instance, again *time.Timer) {
	e.mu.Lock()
	state, note, failing := in.State, in.Note, in.failing
	window := unreadyWindow(in.template.Config.Ready)
	e.mu.Unlock()
	switch {
	case in.task:
		e.endOwn(in, kiln.Cause{Kind: kiln.CauseNeverReady, Detail: "it did not end within " + in.timeout.String()})
	case state == kiln.InstanceStarting:
		e.endOwn(in, kiln.Cause{Kind: kiln.CauseNeverReady, Detail: note})
	case state == kiln.InstanceQuarantined:
		e.mu.Lock()
		e.endLocked(in, kiln.Cause{Kind: kiln.CauseBurned, Detail: "its quarantine was over"})
		e.mu.Unlock()
	case state == kiln.InstanceUnready:
		if left := window - time.Since(failing); left > 0 {
			again.Reset(left)
			return
		}
		e.endOwn(in, kiln.Cause{Kind: kiln.CauseUnready, Detail: note})
	}
}

func unreadyWindow(p kiln.Probe) time.Duration {
	interval, failures := p.Interval, p.Failures
	if interval <= 0 {
		interval = time.Second
	}
	return unreadyWindows * interval * time.Duration(max(failures, 1))
}

// watchReadiness reports readiness until ctx ends. A worker without a probe
// is ready as long as it runs.
func (e *Engine) watchReadiness(ctx context.Context, in *instance) {
	e.mu.Lock()
	state := in.State
	e.mu.Unlock()
	if state == kiln.InstanceQuarantined || state == kiln.InstanceDraining {
		return
	}
	p := in.template.Config.Ready
	port, ok := in.template.Port(p.Port)
	if !ok {
		e.observed(in, nil)
		return
	}
	e.Prober.Watch(ctx, netip.AddrPortFrom(in.Address, port.Number), p, port.Protocol, in.nudge, func(err error) { e.observed(in, err) })
}

// observed takes the outcome of a check.
func (e *Engine) observed(in *instance, err error) {
	e.mu.Lock()
	first := false
	switch {
	case in.ended || in.State == kiln.InstanceDead || in.State == kiln.InstanceQuarantined:
	case err == nil:
		first = in.ReadyAt.IsZero()
		if first {
			in.ReadyAt = time.Now()
		}
		in.Note = ""
		e.setState(in, kiln.InstanceReady)
		e.traffic.mark() // also when it was ready: the gateway had dropped it
		e.environment(in.Environment).stir()
	default:
		in.Note = clip(err.Error()) // it may quote what the instance answered
		if in.State == kiln.InstanceReady {
			in.failing = time.Now()
			e.setState(in, kiln.InstanceUnready)
			e.traffic.mark()
			select {
			case in.fell <- struct{}{}:
			default:
			}
		}
	}
	e.mu.Unlock()
	if first {
		if err := e.saveRecord(in); err != nil {
			e.Log.Warn("record instance", "instance", in.ID, "error", err)
		}
	}
}
