package probe

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/kilnproject/kiln"
)

// The pace of checks while an instance is not ready: it starts at firstDelay,
// and doubles up to the probe's interval, at most slowest.
const (
	firstDelay = time.Millisecond
	slowest    = 250 * time.Millisecond
)

// Watch checks an instance until ctx ends and calls report after each check
// that says something: a change between ready and not, a failure while not
// ready, and every answer to a nudge. err is nil exactly when the instance is
// ready. It starts at once with a back-off of 1, 1, 2, 4, 8 ms and so on up
// to the probe's interval, and goes on at the interval, with a tenth of
// jitter, once ready. A ready instance turns unready after p.Failures failed
// checks in a row.
//
// A nudge makes it check at once; a failure of that check counts as enough,
// because somebody else saw one too.
func (q Prober) Watch(ctx context.Context, address netip.AddrPort, p kiln.Probe, protocol kiln.Protocol, nudge <-chan struct{}, report func(err error)) {
	w := watcher{pace: newPace(p)}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		nudged := false
		select {
		case <-ctx.Done():
			return
		case <-nudge:
			nudged = true
		case <-timer.C:
		}
		err := q.Check(ctx, address, p, protocol)
		if ctx.Err() != nil {
			return
		}
		if w.observe(err, nudged) {
			report(err)
		}
		timer.Reset(w.pace.next(w.ready))
	}
}

// watcher turns single checks into a verdict.
type watcher struct {
	pace  pace
	ready bool
	fails int // in a row, while ready
}

// observe takes the outcome of one check and says whether to report it.
func (w *watcher) observe(err error, nudged bool) bool {
	if err == nil {
		changed := !w.ready
		w.ready, w.fails = true, 0
		return changed || nudged
	}
	if !w.ready {
		return true
	}
	w.fails++
	if w.fails < w.pace.failures && !nudged {
		return false
	}
	w.ready, w.fails = false, 0
	w.pace.restart()
	return true
}

// pace says how long to wait before the next check.
type pace struct {
	interval time.Duration
	failures int
	delay    time.Duration // the last one while not ready; 0 before the first
	first    bool
}

func newPace(p kiln.Probe) pace {
	failures := p.Failures
	if failures <= 0 {
		failures = DefaultFailures
	}
	return pace{interval: orDefault(p.Interval, DefaultInterval), failures: failures}
}

func (p *pace) restart() { p.delay, p.first = 0, false }

// next returns the time to the next check: 1, 1, 2, 4, ... ms while not
// ready, and the interval with a tenth of jitter once ready.
func (p *pace) next(ready bool) time.Duration {
	if ready {
		p.restart()
		jitter := float64(p.interval) / 10
		return p.interval + time.Duration(jitter*(2*rand.Float64()-1)) //nolint:gosec // spreads load
	}
	switch {
	case p.delay == 0:
		p.delay, p.first = firstDelay, true
	case p.first:
		p.first = false
	default:
		p.delay *= 2
	}
	p.delay = min(p.delay, p.interval, slowest)
	return p.delay
}
