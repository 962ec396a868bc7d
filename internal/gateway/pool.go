package gateway

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

const (
	connectTimeout = time.Second
	maxIdle        = 1024 // connections kept per instance and port
	idleUpstream   = time.Minute
	// freshFor is how long an idle connection is trusted with a request that
	// must not be sent twice; many servers close after five seconds.
	freshFor     = 2 * time.Second
	upstreamRead = 8 << 10
)

// pool is the HTTP/1.1 connections to one port of one instance.
type pool struct {
	g        *gateway
	instance *instance
	address  netip.AddrPort
	h2       h2cPool

	mu   sync.Mutex
	idle []*upstream // the last used at the end
	open map[*upstream]struct{}
}

func newPool(g *gateway, i *instance, address netip.AddrPort) *pool {
	return &pool{g: g, instance: i, address: address, open: map[*upstream]struct{}{}}
}

// upstream is one connection, used by one request at a time.
type upstream struct {
	*net.TCPConn
	pool    *pool
	in      buffer
	asker   asker
	reused  bool
	since   int64 // idle since, gateway time
	hangup  uint64
	dead    atomic.Bool // the peer closed it
	removed bool        // under the pool's lock
}

// get returns an idle connection, or a new one. A request that must not be
// repeated gets only one that was used a moment ago.
func (p *pool) get(ctx context.Context, repeatable, fresh bool) (*upstream, error) {
	if !fresh {
		if u := p.take(repeatable); u != nil {
			return u, nil
		}
	}
	c, err := connectTo(ctx, p.address)
	if err != nil {
		return nil, err
	}
	u := &upstream{TCPConn: c, pool: p, in: buffer{b: make([]byte, upstreamRead)}}
	p.mu.Lock()
	p.open[u] = struct{}{}
	p.mu.Unlock()
	if p.instance.ended.Err() != nil {
		u.close()
		return nil, context.Cause(p.instance.ended) //nolint:contextcheck // the instance's end, not the request's
	}
	u.hangup = p.g.hangups.add(c, u.hungUp)
	return u, nil
}

func (p *pool) take(repeatable bool) *upstream {
	now := p.g.now()
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.idle) > 0 {
		u := p.idle[len(p.idle)-1]
		if !repeatable && now-u.since > int64(freshFor) {
			return nil
		}
		p.idle[len(p.idle)-1] = nil
		p.idle = p.idle[:len(p.idle)-1]
		if !u.dead.Load() {
			u.reused = true
			return u
		}
	}
	return nil
}

// put keeps u for the next request, or closes it. Whoever sets leaving and
// then closes the idle ones can be sure that none is kept after.
func (p *pool) put(u *upstream) {
	u.since = p.g.now()
	p.mu.Lock()
	keep := !p.instance.leaving.Load() && len(p.idle) < maxIdle && !u.dead.Load() && u.in.r == u.in.w
	if keep {
		u.in.release(upstreamRead)
		p.idle = append(p.idle, u)
	}
	p.mu.Unlock()
	if !keep {
		u.close()
	}
}

// close ends the connection; it may be called by anyone and again.
func (u *upstream) close() {
	p := u.pool
	p.mu.Lock()
	done := u.removed
	u.removed = true
	delete(p.open, u)
	p.mu.Unlock()
	if !done {
		p.g.hangups.remove(u.hangup)
		_ = u.Close()
	}
}

// hungUp is called when the instance closed its side: an idle connection is
// closed at once, one in use when its request finds out.
func (u *upstream) hungUp() {
	u.dead.Store(true)
	p := u.pool
	p.mu.Lock()
	found := false
	for i, one := range p.idle {
		if one == u {
			p.idle = append(p.idle[:i], p.idle[i+1:]...)
			found = true
			break
		}
	}
	p.mu.Unlock()
	if found {
		u.close()
	}
}

// closeIdle closes the idle connections; closeAll also those in use.
func (p *pool) closeIdle() {
	p.mu.Lock()
	idle := p.idle
	p.idle = nil
	p.mu.Unlock()
	for _, u := range idle {
		u.close()
	}
	p.h2.closeIdle()
}

func (p *pool) closeAll() {
	p.mu.Lock()
	p.idle = nil
	all := make([]*upstream, 0, len(p.open))
	for u := range p.open {
		all = append(all, u)
	}
	p.mu.Unlock()
	for _, u := range all {
		u.close()
	}
	p.h2.closeIdle()
}

// expire closes what is idle for long.
func (p *pool) expire(now int64) {
	p.mu.Lock()
	n := 0
	for n < len(p.idle) && now-p.idle[n].since > int64(idleUpstream) {
		n++
	}
	old := append([]*upstream(nil), p.idle[:n]...)
	p.idle = append(p.idle[:0], p.idle[n:]...)
	p.mu.Unlock()
	for _, u := range old {
		u.close()
	}
}
