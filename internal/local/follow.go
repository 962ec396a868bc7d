package local

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/local/nflog"
)

// reconnect is how long to wait before asking again for a stream that ended.
const reconnect = 100 * time.Millisecond

// followKeeper takes the ends of processes from the keeper until ctx ends.
func (e *Engine) followKeeper(ctx context.Context) {
	for ctx.Err() == nil {
		if err := e.followKeeperOnce(ctx); err != nil && ctx.Err() == nil {
			e.Log.Warn("follow the keeper", "error", err)
		}
		pause(ctx, reconnect)
	}
}

func (e *Engine) followKeeperOnce(ctx context.Context) error {
	changes, err := e.Keeper.Watch(ctx)
	if err != nil {
		return err
	}
	// After the watch began: nothing is lost in between. What starts from here
	// on need not be in the list.
	running := e.running()
	known, err := e.Keeper.List(ctx)
	if err != nil {
		return err
	}
	e.takeList(ctx, running, known)
	for s := range changes {
		e.takeStatus(ctx, s)
	}
	return nil
}

// running are the instances that have a process.
func (e *Engine) running() []*instance {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []*instance
	for _, in := range e.instances {
		if in.PID != 0 && in.exit == nil {
			out = append(out, in)
		}
	}
	return out
}

// takeList compares all that the keeper knows with the instances that ran when
// it was asked.
func (e *Engine) takeList(ctx context.Context, running []*instance, known []kiln.ProcessStatus) {
	listed := map[string]bool{}
	for _, s := range known {
		listed[s.ID] = true
		e.takeStatus(ctx, s)
	}
	for _, in := range running {
		if _, alive := e.findExit(in); listed[in.ID] || !alive {
			continue
		}
		if e.owns(in.ID, in.PID) {
			e.work.Go(func() { e.awaitOrphan(ctx, in) })
			continue
		}
		e.exited(in.ID, kiln.Exit{At: time.Now(), Lost: true})
	}
}

// takeStatus takes one process's news. One that nobody knows came from a
// start that was cut short, and is removed.
func (e *Engine) takeStatus(ctx context.Context, s kiln.ProcessStatus) {
	e.mu.Lock()
	_, ours := e.instances[s.ID]
	e.mu.Unlock()
	switch {
	case ours && s.Exit != nil:
		e.exited(s.ID, *s.Exit)
	case !ours && safeName.MatchString(s.ID):
		e.work.Go(func() { e.removeAll(ctx, s.ID) })
	}
}

// followGateway has instances checked at once that the gateway had trouble
// with.
func (e *Engine) followGateway(ctx context.Context) {
	for ctx.Err() == nil {
		failures, err := e.Gateway.Failures(ctx)
		if err == nil {
			// A gateway that was away may have an old table.
			e.traffic.mark()
			for id := range failures {
				e.nudge(id)
			}
		}
		pause(ctx, reconnect)
	}
}

func (e *Engine) nudge(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	in, ok := e.instances[id]
	if !ok {
		return
	}
	select {
	case in.nudge <- struct{}{}:
	default:
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// quiet is how long repeats of one blocked attempt are only counted.
const quiet = 10 * time.Second

// maxAttempts bounds how many different attempts are remembered at once.
const maxAttempts = 10_000

// attempts counts what was blocked, so that each is told once per quiet time.
type attempts struct {
	mu   sync.Mutex
	seen map[attempt]*tally
}

type attempt struct {
	instance string
	target   netip.AddrPort
	protocol string
}

type tally struct {
	told  time.Time
	count int // since then, this one included
}

// take counts one attempt. tell says that it is to be told now; before is how
// many were counted and not told since the last time.
func (a *attempts) take(key attempt, now time.Time) (tell bool, before int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if t, ok := a.seen[key]; ok && now.Sub(t.told) < quiet {
		t.count++
		return false, 0
	}
	if len(a.seen) >= maxAttempts {
		for k, t := range a.seen {
			if now.Sub(t.told) >= quiet {
				delete(a.seen, k)
			}
		}
		if len(a.seen) >= maxAttempts {
			return false, 0
		}
	}
	if a.seen == nil {
		a.seen = map[attempt]*tally{}
	}
	if t, ok := a.seen[key]; ok {
		before = t.count
	}
	a.seen[key] = &tally{told: now}
	return true, before
}

// followAttempts tells of blocked attempts until ctx ends.
func (e *Engine) followAttempts(ctx context.Context) {
	var counts attempts
	err := e.tap.Run(ctx, func(a nflog.Attempt) {
		e.mu.Lock()
		in := e.byAddress(a.From)
		var who kiln.Instance
		if in != nil {
			who = in.Instance
		}
		e.mu.Unlock()
		if in == nil {
			return
		}
		now := time.Now()
		if tell, before := counts.take(attempt{who.ID, a.To, a.Protocol}, now); tell {
			e.changes.send(kiln.Change{At: now, Event: blockedEvent(who, a, before, now)})
		}
	})
	if err != nil {
		e.Log.Error("blocked attempts are no longer reported", "error", err)
	}
}

func blockedEvent(who kiln.Instance, a nflog.Attempt, before int, now time.Time) *kiln.Event {
	target := a.To.String()
	if a.To.Port() == 0 {
		target = a.To.Addr().String()
	}
	ev := &kiln.Event{
		At: now, Environment: who.Environment, Kind: "egress.blocked", Subject: who.ID,
		Message: fmt.Sprintf("%s tried to reach %s by %s, which service %q does not declare as egress", who.ID, target, a.Protocol, who.Service),
		Data: map[string]string{
			"instance": who.ID, "service": who.Service, "fleet": string(who.Fleet),
			"target": target, "protocol": a.Protocol,
		},
	}
	if before > 0 {
		ev.Data["repeated"] = strconv.Itoa(before)
	}
	return ev
}

// byAddress finds an instance. e.mu is held.
func (e *Engine) byAddress(a netip.Addr) *instance {
	for _, in := range e.instances {
		if in.Address == a {
			return in
		}
	}
	return nil
}
