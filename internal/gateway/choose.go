package gateway

import (
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/kilnproject/kiln"
)

// suspicion is how long an instance that refused or dropped is left out of
// the choice when no table comes to say better: the control plane may be away.
const suspicion = 5 * time.Second

// target is where the requests of one route go.
type target struct {
	table       *table // that it is of
	environment string
	name        string // of the route or service
	protocol    kiln.Protocol
	shares      []share
	order       []uint16 // indexes of shares, turn by turn
	turn        atomic.Uint32
}

// share is a fleet's part of a target.
type share struct {
	fleet   *fleet
	percent int
	members []*member
}

// member is an instance's port, as one table has it.
type member struct {
	instance *instance
	pool     *pool
	// suspect is when it may be chosen again, as time since the gateway's
	// start; 0 for one that never failed.
	suspect atomic.Int64
}

// fleetByWeight is the share whose turn it is, or the next that has members.
func (t *target) byWeight() *share {
	if len(t.order) == 0 {
		return nil
	}
	i := int(t.order[int(t.turn.Add(1))%len(t.order)])
	for range t.shares {
		if s := &t.shares[i]; len(s.members) > 0 && s.percent > 0 {
			return s
		}
		i = (i + 1) % len(t.shares)
	}
	return nil
}

// choose returns the least loaded member that is not avoided, counted in; the
// caller must call finish on its instance. Suspects are taken only when there
// is nobody else: the last one of a fleet is always tried. Nil means that no
// member is ready.
func (t *target) choose(now int64, avoid *member) *member {
	s := t.byWeight()
	if s == nil {
		return nil
	}
	for range 4 {
		m := s.pick(now, avoid)
		if m == nil {
			return nil
		}
		if m.instance.start() {
			return m
		}
	}
	return s.any()
}

// any takes whoever lets a request start: instances leave while we choose.
func (s *share) any() *member {
	for _, m := range s.members {
		if m.instance.start() {
			return m
		}
	}
	return nil
}

// pick finds the least loaded, from a random start so that ties are spread.
// Among many it compares two at random, which is nearly as good.
func (s *share) pick(now int64, avoid *member) *member {
	n := len(s.members)
	if n == 1 {
		return s.members[0]
	}
	start := int(rand.Uint32N(uint32(n))) //nolint:gosec // spreads load, guards nothing
	if n > 16 {
		other := (start + 1 + int(rand.Uint32N(uint32(n-1)))) % n //nolint:gosec // as above
		a, b := s.members[start], s.members[other]
		if a.ready(now, avoid) && b.ready(now, avoid) {
			return lighter(a, b)
		}
	}
	var best, last *member
	for i := range n {
		m := s.members[(start+i)%n]
		if m.instance.leaving.Load() {
			continue
		}
		if last == nil || last == avoid {
			last = m
		}
		if m.ready(now, avoid) && (best == nil || lighter(best, m) == m) {
			best = m
		}
	}
	if best == nil {
		best = last
	}
	return best
}

func (m *member) ready(now int64, avoid *member) bool {
	return m != avoid && !m.instance.leaving.Load() && m.suspect.Load() <= now
}

// lighter prefers a when both are equal.
func lighter(a, b *member) *member {
	if b.instance.stats.inFlight.Load() < a.instance.stats.inFlight.Load() {
		return b
	}
	return a
}

// missed counts a request that found no instance ready.
func (t *target) missed() {
	if len(t.shares) > 0 {
		t.shares[0].fleet.gone.failed()
	}
}
