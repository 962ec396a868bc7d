package server

import (
	"container/list"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

// crowd bounds the connections that are open at once, all and from one place.
// When there are too many, the oldest that serves nobody goes: clients that
// hang are what makes way for one that does not.
type crowd struct {
	total, each int

	mu     sync.Mutex
	guests *list.List // of *guest, the oldest first
	from   map[netip.Prefix]int
}

func newCrowd(total, each int) *crowd {
	return &crowd{total: total, each: each, guests: list.New(), from: map[netip.Prefix]int{}}
}

// guest is a connection of a crowd.
type guest struct {
	net.Conn
	crowd  *crowd
	source netip.Prefix
	place  *list.Element
	serves atomic.Int32 // requests of a known caller that run
	out    bool         // it has given its place away; the crowd's mu guards it
}

// Close closes the connection and gives its place away.
func (g *guest) Close() error {
	g.crowd.mu.Lock()
	g.crowd.leave(g)
	g.crowd.mu.Unlock()
	return g.Conn.Close()
}

// admit takes a connection in. It returns nil when there is no room, and
// closes the connection then.
func (c *crowd) admit(conn net.Conn) *guest {
	g := &guest{Conn: conn, crowd: c}
	if at, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		g.source = sourceOf(at.AddrPort().Addr())
	}
	c.mu.Lock()
	var leaves *guest
	full := true
	switch {
	case c.from[g.source] >= c.each:
		leaves = c.idle(func(one *guest) bool { return one.source == g.source })
	case c.guests.Len() >= c.total:
		leaves = c.idle(func(*guest) bool { return true })
	default:
		full = false
	}
	if full && leaves == nil {
		c.mu.Unlock()
		_ = conn.Close()
		return nil
	}
	if leaves != nil {
		c.leave(leaves)
	}
	g.place = c.guests.PushBack(g)
	c.from[g.source]++
	c.mu.Unlock()
	if leaves != nil {
		_ = leaves.Conn.Close()
	}
	return g
}

// idle is the oldest guest of some that serves nobody. c.mu is held.
func (c *crowd) idle(of func(*guest) bool) *guest {
	for e := c.guests.Front(); e != nil; e = e.Next() {
		if g, ok := e.Value.(*guest); ok && g.serves.Load() == 0 && of(g) {
			return g
		}
	}
	return nil
}

// leave gives a guest's place away, once. c.mu is held.
func (c *crowd) leave(g *guest) {
	if g.out {
		return
	}
	g.out = true
	c.guests.Remove(g.place)
	if c.from[g.source]--; c.from[g.source] == 0 {
		delete(c.from, g.source)
	}
}

// size is how many are in.
func (c *crowd) size() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.guests.Len()
}

// door is a listener whose connections are of a crowd.
type door struct {
	net.Listener
	crowd *crowd
}

// Accept waits for a connection that finds room.
func (d door) Accept() (net.Conn, error) {
	for {
		conn, err := d.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if g := d.crowd.admit(conn); g != nil {
			return g, nil
		}
	}
}

// guestOf finds the guest below the layers of a connection, or nil.
func guestOf(conn net.Conn) *guest {
	for {
		switch c := conn.(type) {
		case *guest:
			return c
		case interface{ NetConn() net.Conn }: // *tls.Conn
			conn = c.NetConn()
		default:
			return nil
		}
	}
}
