package gateway

import (
	"context"
	"io"
	"net"
	"sync"
	"time"
)

// pipes is what a tunnel counts as, besides its client: the kernel moves its
// bytes through two pipes, which have four descriptors.
const pipes = 2

// halfOpen is how long a client may go on sending to an instance that has
// ended its side.
const halfOpen = 30 * time.Second

// upgrade passes 101 on and then copies both ways until either side ends.
func (x *exchange) upgrade() bool {
	c, i := x.c, x.m.instance
	defer i.finish()
	defer x.up.close()
	r := &c.resp
	out := append(c.out[:0], "HTTP/1.1 101 "...)
	out = append(out, r.Reason...)
	out = append(out, "\r\nConnection: Upgrade\r\nUpgrade: "...)
	out = append(out, r.Upgrade...)
	out = append(out, '\r', '\n')
	c.out = append(c.appendFields(out), '\r', '\n')
	c.out = append(c.out, x.up.in.bytes()...)
	i.stats.answered(101, time.Duration(c.g.now()-c.entry.start), 0, 0)
	if c.flush() != nil {
		return false
	}
	c.hangUpOff()
	if _, err := x.up.Write(c.in.bytes()); err != nil {
		return false
	}
	in, sent := c.g.tunnel(c.nc, x.up.TCPConn)
	c.entry.in, c.entry.out = in, sent
	i.stats.bytesIn.Add(uint64(in))
	i.stats.bytesOut.Add(uint64(sent))
	return false
}

// tunnel copies both ways until both sides ended; a side that ends is told to
// the other (half-close). It returns the bytes that the client sent and got.
func (g *gateway) tunnel(client net.Conn, up *net.TCPConn) (in, out int64) {
	stop := context.AfterFunc(g.hard, func() {
		_ = client.Close()
		_ = up.Close()
	})
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() {
		var err error
		in, err = io.Copy(up, client)
		if err != nil {
			_ = up.Close()
			return
		}
		_ = up.CloseWrite()
	})
	var err error
	out, err = io.Copy(client, up)
	half, ok := client.(interface{ CloseWrite() error })
	if err != nil || !ok || half.CloseWrite() != nil {
		_ = client.Close()
	} else {
		_ = client.SetReadDeadline(time.Now().Add(halfOpen))
	}
	wg.Wait()
	return in, out
}

// serveTCP carries one connection of a TCP route and closes it.
func (g *gateway) serveTCP(nc net.Conn, find func() (*target, *refusal)) {
	defer func() { _ = nc.Close() }()
	e := entry{start: g.now(), client: remoteAddr(nc), method: []byte("TCP"), tcp: true, id: appendID(nil)}
	defer func() { g.log.add(&e, g.now()) }()
	t, no := find()
	if no != nil {
		e.note = no.text
		return
	}
	e.environment, e.route = t.environment, t.name
	if !g.ports.enter(e.client, pipes, g.limits.Connections) {
		e.note = refuseFull().text
		return
	}
	defer g.ports.leave(e.client, pipes)
	m, up := g.connect(t, find, &e)
	if up == nil {
		return
	}
	defer m.instance.finish()
	defer up.close()
	g.hangups.remove(up.hangup)
	s := &m.instance.stats
	s.requests.Add(1)
	e.in, e.out = g.tunnel(nc, up.TCPConn)
	s.bytesIn.Add(uint64(e.in))
	s.bytesOut.Add(uint64(e.out))
}

// connect finds an instance that takes the connection, which counts as in
// flight from then on.
func (g *gateway) connect(t *target, find func() (*target, *refusal), e *entry) (*member, *upstream) {
	var avoid *member
	for e.tries = 1; e.tries <= maxTries; e.tries++ {
		m := t.choose(g.now(), avoid)
		if m == nil {
			if next := g.again(t, find); next != nil {
				t = next
				continue
			}
			e.note = refuseBusy().text
			return nil, nil
		}
		e.instance = m.instance
		if m == avoid {
			m.instance.finish()
			break
		}
		up, err := m.pool.get(g.hard, false, true)
		if err == nil {
			return m, up
		}
		e.note = err.Error()
		if isOurs(err) {
			m.instance.finish()
			t.missed()
			return nil, nil
		}
		g.suspect(m)
		m.instance.stats.failed()
		m.instance.finish()
		avoid = m
	}
	return nil, nil
}
