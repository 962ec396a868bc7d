package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln/internal/handoff"
)

// handshakeTime bounds a TLS handshake.
const handshakeTime = 10 * time.Second

// Listeners gives a gateway its sockets.
type Listeners interface {
	// Serve calls take with each listener, by its name in
	// kiln.Traffic.Listeners, and with no file for one that is withdrawn,
	// until the other side ends. take owns f.
	Serve(take func(name string, f *os.File) error) error
	// Close ends Serve.
	Close() error
}

// received are the keeper's listeners.
type received struct{ conn *net.UnixConn }

func (r received) Serve(take func(string, *os.File) error) error { return handoff.Serve(r.conn, take) }
func (r received) Close() error                                  { return r.conn.Close() }

// listener is one socket of the gateway's.
type listener struct {
	g     *gateway
	name  string // "tcp://address:port"
	close func() error
}

// role is what the present table uses the listener for.
func (l *listener) role() role { return l.g.table.Load().roles[l.name] }

// listeners are the sockets by name, and the connections that they accepted.
type listeners struct {
	mu      sync.Mutex
	open    map[string]*listener
	closed  bool
	clients map[netip.Addr]int
	total   int

	accepting sync.WaitGroup
	serving   sync.WaitGroup
}

// receive takes listeners until ctx ends. A keeper that died is no reason to
// stop: what was given is served on, until the gateway is abandoned.
func (g *gateway) receive(ctx context.Context, from Listeners) error {
	stop := context.AfterFunc(ctx, func() { _ = from.Close() })
	defer stop()
	err := from.Serve(g.take)
	switch {
	case ctx.Err() != nil:
	case !g.ports.any():
		// No keeper knows of it: the next one starts another, and takes the
		// sockets from the one before.
		g.slog.Warn("the keeper died before it gave any listener, the gateway ends")
		g.quit()
	default:
		g.slog.Warn("no more listeners will come", "error", err)
		if abandoned(ctx, g.dir, g.limits.Abandoned) {
			g.slog.Warn("keeper and directory are gone, the gateway ends")
			g.quit()
		}
	}
	_ = from.Close()
	return nil
}

// abandoned waits until a directory is gone and says true, or until ctx ends.
// What has neither keeper nor state can never be told anything again, and only
// holds sockets that others want.
func abandoned(ctx context.Context, dir string, every time.Duration) bool {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
		if removed(dir) {
			return true
		}
	}
}

// removed says whether a directory was deleted, also when it is the working
// directory, which then still exists, without a name.
func removed(dir string) bool {
	var st unix.Stat_t
	err := unix.Stat(dir, &st)
	return errors.Is(err, unix.ENOENT) || err == nil && st.Nlink == 0
}

// take adds, replaces or closes a listener.
func (g *gateway) take(name string, f *os.File) error {
	var l *listener
	if f != nil {
		defer func() { _ = f.Close() }()
		var err error
		if l, err = g.open(name, f); err != nil {
			return err
		}
	}
	p := &g.ports
	p.mu.Lock()
	old := p.open[name]
	if p.closed {
		old, l = l, nil
	} else if delete(p.open, name); l != nil {
		if p.open == nil {
			p.open = map[string]*listener{}
		}
		p.open[name] = l
	}
	p.mu.Unlock()
	if old != nil {
		_ = old.close()
	}
	return nil
}

// open begins to serve on a socket.
func (g *gateway) open(name string, f *os.File) (*listener, error) {
	l := &listener{g: g, name: name}
	switch network, _, _ := strings.Cut(name, "://"); network {
	case "tcp":
		tcp, err := net.FileListener(f)
		if err != nil {
			return nil, fmt.Errorf("listen on %s: %w", name, err)
		}
		l.close = tcp.Close
		g.ports.accepting.Go(func() { l.accept(tcp) })
	case "udp":
		udp, err := net.FilePacketConn(f)
		if err != nil {
			return nil, fmt.Errorf("listen on %s: %w", name, err)
		}
		l.close = udp.Close
		g.ports.accepting.Go(func() { g.dns.serveUDP(l, udp) })
	default:
		return nil, fmt.Errorf("listen on %s: the network is neither tcp nor udp", name)
	}
	return l, nil
}

// accept serves connections until the listener is closed.
func (l *listener) accept(tcp net.Listener) {
	for well := true; ; {
		nc, err := tcp.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // no file descriptors, or a client that is gone already
			if !l.g.pause(l.name, err, well) {
				return
			}
			well = false
			continue
		}
		well = true
		l.admit(nc)
	}
}

// pause waits a little after an error of a listener, so as not to spin, and
// says whether to go on. Of errors in a row the first is told.
func (g *gateway) pause(listener string, err error, tell bool) bool {
	if tell {
		g.slog.Warn("a listener had an error", "listener", listener, "error", err)
	}
	t := time.NewTimer(10 * time.Millisecond)
	defer t.Stop()
	select {
	case <-g.soft.Done():
		return false
	case <-t.C:
		return true
	}
}

// admit serves a connection unless there are too many.
func (l *listener) admit(nc net.Conn) {
	p := &l.g.ports
	client := remoteAddr(nc)
	if !p.enter(client, 1, l.g.limits.Connections) {
		if l.role() == roleHTTP {
			_ = nc.SetWriteDeadline(time.Now().Add(time.Second))
			_, _ = nc.Write(refuseFull().appendTo(nil, appendID(nil), l.g.date(), false, false, false))
		}
		_ = nc.Close()
		return
	}
	boundClient(nc)
	p.serving.Go(func() {
		defer p.leave(client, 1)
		l.serve(nc)
	})
}

// any says whether anything is listened on.
func (p *listeners) any() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.open) > 0
}

// enter counts a client in as n of Limits.Connections, unless there are too
// many; leave counts it out.
func (p *listeners) enter(client netip.Addr, n, limit int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.total+n > limit || p.clients[client]+n > max(limit/2, 1) {
		return false
	}
	if p.clients == nil {
		p.clients = map[netip.Addr]int{}
	}
	p.total += n
	p.clients[client] += n
	return true
}

func (p *listeners) leave(client netip.Addr, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.total -= n
	if p.clients[client] -= n; p.clients[client] <= 0 {
		delete(p.clients, client)
	}
}

// serve speaks what the listener is for.
func (l *listener) serve(nc net.Conn) {
	g := l.g
	defer func() {
		if v := recover(); v != nil { // one client must not end all
			g.slog.Error("a connection met a defect", "listener", l.name, "panic", v, "stack", string(debug.Stack()))
			_ = nc.Close()
		}
	}()
	switch l.role() {
	case roleHTTP:
		newConn(g, nc, l).serve()
	case roleHTTPS:
		g.serveTLS(nc, l)
	case roleTCP:
		g.serveTCP(nc, func() (*target, *refusal) {
			if t := g.table.Load().tcp[l.name]; t != nil {
				return t, nil
			}
			return nil, refuseBusy()
		})
	case rolePrivate:
		g.servePrivate(nc, l)
	case roleDNS:
		g.dns.serveTCP(l, nc)
	default:
		_ = nc.Close()
	}
}

// servePrivate serves instances' calls to a service.
func (g *gateway) servePrivate(nc net.Conn, l *listener) {
	client := remoteAddr(nc)
	t := g.table.Load()
	if p := t.private[l.name]; p != nil && p.protocol == "tcp" {
		g.serveTCP(nc, func() (*target, *refusal) { return g.table.Load().privately(l.name, client) })
		return
	}
	newConn(g, nc, l).serve()
}

// serveTLS ends TLS and serves the protocol that was agreed on.
func (g *gateway) serveTLS(nc net.Conn, l *listener) {
	t := tls.Server(nc, g.tls.config)
	ctx, cancel := context.WithTimeout(g.hard, handshakeTime)
	err := t.HandshakeContext(ctx)
	cancel()
	if err != nil {
		g.slog.Debug("a TLS handshake did not succeed", "client", remoteAddr(nc), "error", err)
		g.explainTLS(err)
		_ = nc.Close()
		return
	}
	switch t.ConnectionState().NegotiatedProtocol {
	case "h2":
		g.serveHTTP2(t, l.name, roleHTTPS, false)
	case acmeProtocol:
		_ = t.Close()
	default:
		newConn(g, t, l).serve()
	}
}

// explainTLS answers a client that speaks HTTP where TLS is spoken.
func (g *gateway) explainTLS(err error) {
	var plain tls.RecordHeaderError
	if !errors.As(err, &plain) || plain.Conn == nil || plain.RecordHeader[0] < 'A' || plain.RecordHeader[0] > 'Z' {
		return
	}
	no := refusal{status: 400, text: "This port speaks HTTPS, and the request came as plain HTTP."}
	_ = plain.Conn.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = plain.Conn.Write(no.appendTo(nil, appendID(nil), g.date(), false, false, false))
}

// closeAll closes the listeners; no other will be opened.
func (p *listeners) closeAll() {
	p.mu.Lock()
	p.closed = true
	open := p.open
	p.open = nil
	p.mu.Unlock()
	for _, l := range open {
		_ = l.close()
	}
	p.accepting.Wait()
}

// served is closed when all connections have ended; call it after closeAll.
func (p *listeners) served() <-chan struct{} {
	done := make(chan struct{})
	go func() {
		p.serving.Wait()
		close(done)
	}()
	return done
}

func (p *listeners) wait() { <-p.served() }

// connections are those that clients hold.
func (p *listeners) connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.total
}

// names lists the listeners that are open.
func (p *listeners) names() map[string]bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := map[string]bool{}
	for name := range p.open {
		out[name] = true
	}
	return out
}

// maxConnections leaves two descriptors for each client: its own and its
// upstream's.
func maxConnections() int {
	const most, reserve = 32768, 128
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return 1024
	}
	return int(min(most, max(64, (int64(min(r.Cur, 1<<20))-reserve)/2)))
}
