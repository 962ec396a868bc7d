package local

import (
	"cmp"
	"slices"
	"time"

	"github.com/kilnproject/kiln"
)

// settled is how long an instance must be ready for its fleet's failures to
// be forgotten; the delays before a new start after failures in a row.
const (
	settled    = 5 * time.Second
	firstDelay = 100 * time.Millisecond
	lastDelay  = 30 * time.Second
)

// backoff slows down the starts of a fleet whose instances die early. The
// zero value starts at once.
type backoff struct {
	failures int // in a row
	until    time.Time
}

// failed counts an instance of a fleet of count that died early. As many as
// the fleet has are replaced at once, for it may be that each died once; the
// next waits 100 ms, then twice as long each time, up to 30 s.
func (b *backoff) failed(now time.Time, count int) {
	b.failures++
	free := max(1, count)
	if b.failures <= free {
		return
	}
	delay := lastDelay
	if shift := b.failures - free - 1; shift < 9 {
		delay = min(firstDelay<<shift, lastDelay)
	}
	b.until = now.Add(delay)
}

func (b *backoff) reset() { *b = backoff{} }

// view is what converging needs to know of an instance.
type view struct {
	id      string
	created time.Time
	ready   bool
	leaving bool // to be replaced: another first
}

// step is what to do for one fleet.
type step struct {
	create  int
	destroy []string // no longer wanted
	replace []string // their replacement is ready
}

// converge compares one fleet's count with its instances that neither end nor
// are in quarantine. Instances that leave count as extra until enough others
// are ready. Those that are not ready go first, then the youngest.
func converge(count int, instances []view) step {
	var staying, leaving []view
	ready := 0
	for _, v := range instances {
		if v.leaving {
			leaving = append(leaving, v)
			continue
		}
		staying = append(staying, v)
		if v.ready {
			ready++
		}
	}
	s := step{create: max(0, count-len(staying))}
	if extra := len(staying) - count; extra > 0 {
		slices.SortFunc(staying, func(a, b view) int {
			if a.ready != b.ready {
				if a.ready {
					return 1
				}
				return -1
			}
			return cmp.Or(b.created.Compare(a.created), cmp.Compare(b.id, a.id))
		})
		for _, v := range staying[:extra] {
			s.destroy = append(s.destroy, v.id)
		}
	}
	// One that leaves and is not ready serves nobody: nothing to wait for.
	spare := max(0, count-ready)
	for _, v := range leaving {
		if v.ready && spare > 0 {
			spare--
			continue
		}
		s.replace = append(s.replace, v.id)
	}
	return s
}

// views are a fleet's instances as converge sees them. e.mu is held.
func (e *Engine) views(id kiln.FleetID) []view {
	var out []view
	for _, in := range e.instances {
		if in.Fleet != id || in.task || !in.counts() {
			continue
		}
		out = append(out, view{id: in.ID, created: in.CreatedAt, ready: in.State == kiln.InstanceReady, leaving: in.leave != ""})
	}
	slices.SortFunc(out, func(a, b view) int { return cmp.Or(a.created.Compare(b.created), cmp.Compare(a.id, b.id)) })
	return out
}
