package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/gateway/http1"
)

const (
	clientRead  = 4 << 10
	maxBuffered = 64 << 10 // a request body up to this is read before it is sent on
	preface     = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
)

// conn is a client's connection that speaks HTTP/1.1, served by one goroutine.
type conn struct {
	g        *gateway
	nc       net.Conn
	listener string // "tcp://address:port"
	role     role
	client   netip.Addr
	sni      string // of a TLS connection
	hangup   uint64

	in    buffer
	out   []byte // what is to be written next
	req   http1.Request
	resp  http1.Response
	body  http1.Decoder // of the request
	reply http1.Decoder // of the response

	guard
	up atomic.Pointer[upstream]
	// cancel ends a request that goes through carry.
	cancel atomic.Pointer[context.CancelFunc]
	// idle says that no request has begun; see dismiss.
	idle atomic.Bool

	entry entry
	// sent says that bytes of an answer went to the client.
	sent bool
	// fast says that the last read of a body filled the buffer.
	fast bool
	// lingers says that the client may still be sending when the answer ends.
	lingers bool
	// blank says that an empty line came before the request.
	blank bool
}

func newConn(g *gateway, nc net.Conn, l *listener) *conn {
	return &conn{
		g: g, nc: nc, listener: l.name, role: l.role(), client: remoteAddr(nc),
		in: buffer{b: make([]byte, clientRead), budget: g.room},
	}
}

func remoteAddr(nc net.Conn) netip.Addr {
	if a, ok := nc.RemoteAddr().(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}

// serve answers requests until the connection ends, and closes it.
func (c *conn) serve() {
	c.g.conns.add(c)
	defer c.g.conns.remove(c)
	socket := c.nc
	if t, ok := c.nc.(*tls.Conn); ok {
		socket = t.NetConn()
		c.sni = hostKey(t.ConnectionState().ServerName)
	}
	c.hangup = c.g.hangups.add(socket, c.left)
	defer func() {
		c.g.hangups.remove(c.hangup)
		_ = c.nc.Close()
		c.in.free()
	}()
	for c.next() {
	}
	if c.lingers { // once it is logged
		c.linger()
	}
}

// next serves one request and says whether another may follow.
func (c *conn) next() bool {
	head, err := c.readHead()
	if err != nil {
		return false
	}
	if head == nil { // HTTP/2 with prior knowledge
		c.hangUpOff()
		c.g.serveHTTP2(&prefixConn{Conn: c.nc, prefix: c.in.bytes()[len(preface):]}, c.listener, c.role, true)
		return false
	}
	out := c.g.pieces.getHead()
	c.out = (*out)[:0]
	again := c.handle(head)
	*out = c.out
	c.g.pieces.putHead(out)
	c.out = nil
	c.in.release(clientRead)
	return again
}

// dismiss ends a connection on which no request has begun.
func (c *conn) dismiss() {
	for {
		until := c.until.Load()
		if !c.idle.Load() {
			return
		}
		// A request that begins now sets another deadline after idle.
		if c.until.CompareAndSwap(until, 1) {
			c.expire(1)
			return
		}
	}
}

// hangUpOff ends the watch and the deadline: another protocol takes over.
func (c *conn) hangUpOff() {
	c.g.hangups.remove(c.hangup)
	c.g.conns.remove(c)
	c.until.Store(0)
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.nc.SetDeadline(time.Time{})
}

// readHead waits for a request and returns its head, which stays in c.in; nil
// for HTTP/2's preface. What is no HTTP is refused here.
func (c *conn) readHead() ([]byte, error) {
	c.arm(c.g.limits.Idle)
	c.idle.Store(true)
	defer c.idle.Store(false)
	if c.g.late.Load() { // after idle was set: dismiss may have looked before
		return nil, errEnding
	}
	c.blank = false
	if len(c.in.bytes()) > 0 { // it came with the request before
		c.idle.Store(false)
		c.arm(c.g.limits.HeadTime)
	}
	for scanned := 0; ; {
		end, err := c.headEnd(&scanned)
		if err != nil {
			c.refuseHead(nil, err)
			return nil, err
		}
		if end > 0 {
			head := c.in.bytes()[:end]
			if string(head) == preface[:len(preface)-6] && c.h2Allowed() {
				return nil, c.readPreface()
			}
			return head, nil
		}
		if err := c.receiveHead(); err != nil {
			return nil, err
		}
	}
}

// headEnd returns the length of the head that c.in begins with, 0 when it is
// not whole yet; scanned is how far it was searched.
func (c *conn) headEnd(scanned *int) (end int, err error) {
	b := c.in.bytes()
	if len(b) == 0 {
		return 0, nil
	}
	if bytes.HasPrefix(b, []byte("\r\n")) && !c.blank { // RFC 9112, section 2.2: one is ignored
		c.blank = true
		c.in.skip(2)
		return c.headEnd(scanned)
	}
	if len(b) == 1 && b[0] == '\r' {
		return 0, nil
	}
	end, *scanned, err = http1.HeadEnd(b, *scanned)
	if err == nil && end == 0 && len(b) >= c.g.limits.Head.Head {
		err = &http1.Error{Status: 431, Reason: "the head is too large"}
	}
	return end, err
}

// receiveHead reads more of a head; its time runs from the first byte.
func (c *conn) receiveHead() error {
	first := len(c.in.bytes()) == 0
	if err := c.in.fill(c.nc, c.g.limits.Head.Head); err != nil {
		switch {
		case errors.Is(err, errNoRoom):
			c.refuseHead(nil, &http1.Error{Status: 503, Reason: err.Error()})
		case !first && c.timedOut():
			c.refuseHead(nil, &http1.Error{Status: 408, Reason: "the request's head took too long"})
		}
		return err
	}
	if first {
		c.idle.Store(false)
		c.arm(c.g.limits.HeadTime)
	}
	return nil
}

func (c *conn) h2Allowed() bool { return c.role == roleHTTP || c.role == rolePrivate }

func (c *conn) readPreface() error {
	for len(c.in.bytes()) < len(preface) {
		if err := c.in.fill(c.nc, c.g.limits.Head.Head); err != nil {
			return err
		}
	}
	if !bytes.HasPrefix(c.in.bytes(), []byte(preface)) {
		return errors.New("the HTTP/2 preface is malformed")
	}
	return nil
}

// refuseHead answers what could not be understood, and is not kept. req is as
// far as it was parsed, nil for not at all.
func (c *conn) refuseHead(req *http1.Request, err error) {
	e := &http1.Error{Status: 400, Reason: err.Error()}
	errors.As(err, &e)
	if c.begin(req); req != nil {
		c.entry.path, c.entry.query = req.Target, nil
	}
	c.refuse(refusal{status: e.Status, text: "Bad request: " + e.Reason + ".", close: true})
	c.finish()
}

// handle serves the request whose head was read.
func (c *conn) handle(head []byte) bool {
	err := c.req.Parse(head, c.g.limits.Head)
	if err != nil {
		c.refuseHead(&c.req, err)
		return false
	}
	c.in.r += len(head)
	c.in.hold()
	c.body.Reset(c.req.Length)
	c.begin(&c.req)
	defer c.finish()
	if err := c.checkBody(); err != nil {
		return c.refuseBody(err)
	}
	if c.role == roleHTTP && c.g.tls.challenged(c) {
		return c.keeps()
	}
	t, no := c.find()
	if no != nil {
		return c.refuse(*no)
	}
	if t == nil {
		return c.redirect()
	}
	c.entry.environment, c.entry.route = t.environment, t.name
	if t.protocol == kiln.ProtocolH2C {
		return c.viaHandler(t)
	}
	return c.forward(t)
}

// keeps says whether the client's connection can serve another request: its
// body was read, and it did not ask to close.
// A client that closed its side may have sent others before.
func (c *conn) keeps() bool { return !c.req.Close && c.body.Done() }

// begin starts the record of a request; req is nil for one that could not be
// parsed.
func (c *conn) begin(req *http1.Request) {
	c.sent = false
	c.entry.begin(c.g.now(), c.client)
	c.entry.id = c.entry.id[:0]
	if req != nil {
		c.entry.method, c.entry.path, c.entry.query, c.entry.host = req.Method, req.Path, req.Query, req.Host
		c.entry.minor = req.Minor
		for i := range req.Fields {
			switch f := &req.Fields[i]; f.Kind {
			case http1.RequestID:
				if wellFormedID(f.Value) {
					c.entry.id = append(c.entry.id, f.Value...)
				}
			case http1.UserAgent:
				c.entry.agent = f.Value
			case http1.Referer:
				c.entry.referer = f.Value
			default:
			}
		}
	}
	if len(c.entry.id) == 0 {
		c.entry.id = appendID(c.entry.id)
	}
}

// finish writes the record.
func (c *conn) finish() { c.g.log.add(&c.entry, c.g.now()) }
