package gateway

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

const (
	sweepEvery = 500 * time.Millisecond
	// goneGrace is how long a request goes on whose client closed its side: a
	// client that only half-closed gets its answer, one that left is noticed.
	goneGrace = time.Second
	expired   = int64(-1)
)

// guard is the deadline of whatever a connection waits for. Setting it costs
// one atomic store; a sweep of all connections enforces it.
type guard struct {
	until atomic.Int64 // gateway time; 0 for none; expired once it passed
	gone  atomic.Bool  // the client closed its side

	mu sync.Mutex // held while deadlines of sockets are changed
}

// arm sets the deadline; d of 0 takes it away.
func (c *conn) arm(d time.Duration) {
	until := int64(0)
	if d > 0 {
		until = c.g.now() + int64(d)
	}
	if c.gone.Load() {
		until = c.g.now() + int64(min(goneGrace, max(d, 1)))
		if d == 0 {
			until = c.g.now() + int64(goneGrace)
		}
	}
	if c.until.Swap(until) == expired {
		c.mu.Lock()
		_ = c.nc.SetDeadline(time.Time{})
		c.mu.Unlock()
	}
}

// left is called when the client closed its side.
func (c *conn) left() {
	c.gone.Store(true)
	soon := c.g.now() + int64(goneGrace)
	for {
		until := c.until.Load()
		if until == expired || until != 0 && until <= soon || c.until.CompareAndSwap(until, soon) {
			return
		}
	}
}

// expire wakes whoever waits on the connection when its deadline passed.
func (c *conn) expire(now int64) {
	until := c.until.Load()
	if until <= 0 || until > now {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.until.CompareAndSwap(until, expired) {
		return
	}
	past := time.Unix(1, 0)
	_ = c.nc.SetDeadline(past)
	if u := c.up.Load(); u != nil {
		_ = u.SetDeadline(past)
	}
	if cancel := c.cancel.Load(); cancel != nil {
		(*cancel)()
	}
}

// timedOut says whether the deadline passed.
func (c *conn) timedOut() bool { return c.until.Load() == expired }

// sweep enforces the deadlines until ctx ends.
func (g *gateway) sweep(ctx context.Context) {
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		now := g.now()
		g.conns.each(func(c *conn) { c.expire(now) })
		if n%20 == 0 {
			g.registry.expire(now)
		}
	}
}

// conns is the set of client connections that speak HTTP/1.1.
type conns struct {
	mu  sync.Mutex
	all map[*conn]struct{}
}

func (s *conns) add(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all == nil {
		s.all = map[*conn]struct{}{}
	}
	s.all[c] = struct{}{}
}

func (s *conns) remove(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, c)
}

// each calls f, which must not block, for every connection.
func (s *conns) each(f func(*conn)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.all {
		f(c)
	}
}
