package gateway

import (
	"context"
	"errors"
	"io"
	"strconv"
	"time"

	"github.com/kilnproject/kiln/internal/gateway/http1"
)

// maxTries bounds how often a request is begun; nearly all are begun once.
const maxTries = 6

var (
	errEnding    = errors.New("the gateway ends")
	errGone      = errors.New("the instance left")
	errUnsent    = errors.New("nothing was sent")
	errNoAnswer  = errors.New("the connection closed before an answer")
	errMalformed = errors.New("the answer is malformed")
)

// forward carries a request to an instance over HTTP/1.1 and its answer back.
// It says whether the client's connection can go on.
func (c *conn) forward(t *target) bool {
	if c.upgradable() {
		if !c.g.ports.enter(c.client, pipes, c.g.limits.Connections) {
			return c.refuse(*refuseFull())
		}
		defer c.g.ports.leave(c.client, pipes)
	}
	stream := c.req.Length < 0 || c.req.Length > maxBuffered ||
		c.req.Expect && int64(len(c.in.bytes())) < c.req.Length
	if !stream && c.req.Length > 0 {
		err := c.readBody()
		if stream = errors.Is(err, errNoRoom); err != nil && !stream {
			return c.refuseBody(err)
		}
	}
	c.appendRequest()
	if !stream && c.req.Length > 0 {
		c.out = append(c.out, c.in.bytes()[:c.req.Length]...)
		c.in.skip(int(c.req.Length))
		c.body.Skip(c.req.Length)
		c.entry.in = c.req.Length
	}
	x := exchange{c: c, target: t, stream: stream}
	if no := x.begin(); no != nil {
		return c.refuse(*no)
	}
	return x.end()
}

// checkBody looks at what has come of a chunked body: one that is malformed
// already is not forwarded at all.
func (c *conn) checkBody() error {
	trial := c.body
	for b := c.in.bytes(); ; {
		data, used, err := trial.Next(b)
		if err != nil || len(data) == 0 {
			return err
		}
		b = b[used:]
	}
}

// readBody reads a body of known length into c.in.
func (c *conn) readBody() error {
	for int64(len(c.in.bytes())) < c.req.Length {
		c.arm(c.g.limits.Body)
		if err := c.in.fill(c.nc, c.g.limits.Head.Head+maxBuffered+clientRead); err != nil {
			return err
		}
	}
	return nil
}

// refuseBody answers a request whose body did not come as it should.
func (c *conn) refuseBody(err error) bool { return c.refuse(*c.bodyRefusal(err)) }

func (c *conn) bodyRefusal(err error) *refusal {
	var malformed *http1.Error
	switch {
	case errors.As(err, &malformed):
		return &refusal{status: 400, text: "Bad request: " + malformed.Reason + ".", close: true}
	case c.timedOut() && !c.gone.Load():
		return &refusal{status: 408, text: "The request's body took too long.", close: true}
	case errors.Is(err, errNoRoom):
		no := refuseFull()
		no.close = true
		return no
	}
	return &refusal{status: 499}
}

// appendRequest builds the head that an instance gets.
func (c *conn) appendRequest() {
	r := &c.req
	out := append(c.out[:0], r.Method...)
	out = append(out, ' ')
	out = append(out, r.Path...)
	out = append(out, r.Query...)
	out = append(out, " HTTP/1.1\r\nHost: "...)
	out = append(out, r.Host...)
	out = append(out, '\r', '\n')
	private := c.role == rolePrivate
	for i := range r.Fields {
		switch f := &r.Fields[i]; f.Kind {
		case http1.Other, http1.Date, http1.UserAgent, http1.Referer, http1.Trailer:
			out = http1.AppendField(out, f.Name, f.Value)
		case http1.Forwarded:
			if private {
				out = http1.AppendField(out, f.Name, f.Value)
			}
		default:
		}
	}
	if !private {
		out = c.appendForwarded(out)
	}
	out = append(out, "X-Request-Id: "...)
	out = append(out, c.entry.id...)
	out = append(out, '\r', '\n')
	if r.Length != 0 || r.HasLength {
		out = http1.AppendLength(out, r.Length)
	}
	if r.Expect && int64(len(c.in.bytes())) < r.Length || r.Expect && r.Length < 0 {
		out = http1.AppendText(out, "Expect", "100-continue")
	}
	if c.upgradable() {
		out = append(out, "Connection: Upgrade\r\nUpgrade: "...)
		out = append(out, r.Upgrade...)
		out = append(out, '\r', '\n')
	}
	c.out = append(out, '\r', '\n')
}

// upgradable says that the client offered a protocol to change to. HTTP/2 is
// not changed to: its requests would pass by unread.
func (c *conn) upgradable() bool {
	return c.req.Upgrade != nil && !http1.EqualFold(c.req.Upgrade, "h2c")
}

// appendForwarded appends what the instance is told of its client; the
// client's own words on it were left out.
func (c *conn) appendForwarded(out []byte) []byte {
	out = append(out, "X-Forwarded-For: "...)
	out = c.client.AppendTo(out)
	out = append(out, "\r\nX-Forwarded-Proto: "...)
	out = append(out, c.scheme()...)
	out = append(out, "\r\nX-Forwarded-Host: "...)
	out = append(out, c.req.Host...)
	return append(out, '\r', '\n')
}

func (c *conn) scheme() string {
	if c.role == roleHTTPS {
		return "https"
	}
	return "http"
}

// repeatable says that a request may be sent twice: it asks for nothing to be
// done, and has no body.
func repeatable(method []byte, length int64) bool {
	switch string(method) {
	case "GET", "HEAD", "OPTIONS":
		return length == 0
	}
	return false
}

// exchange is one request under way to an instance.
type exchange struct {
	c      *conn
	target *target
	stream bool // the body is sent while the answer may come

	m        *member
	up       *upstream
	upload   *upload // of a stream
	repeated bool    // a repeatable request was sent to a second instance
	interims int
}

// begin sends the request until an instance has begun to answer; the head of
// the answer is then in c.resp.
func (x *exchange) begin() *refusal {
	c := x.c
	safe := repeatable(c.req.Method, c.req.Length) && c.req.Upgrade == nil
	fresh := false // a connection was stale: the same instance, on a new one
	var avoid *member
	for c.entry.tries = 1; c.entry.tries <= maxTries; c.entry.tries++ {
		if !fresh {
			if no := x.choose(avoid); no != nil {
				return no
			}
		}
		err := x.connect(safe, fresh)
		if isOurs(err) {
			return x.full(err)
		}
		if err != nil {
			avoid, fresh = x.m, false
			x.refused(err)
			continue
		}
		if err = x.attempt(); err == nil {
			return nil
		}
		no, again := x.failed(err, safe)
		if !again {
			return no
		}
		if fresh = x.up.reused; !fresh {
			avoid = x.m
			x.refused(err)
		}
	}
	c.entry.tries = maxTries
	if x.m != nil {
		x.m.instance.finish()
	}
	return refuseDown()
}

// full lets the instance go, which has no part in that it was not asked.
func (x *exchange) full(err error) *refusal {
	x.c.entry.note = err.Error()
	x.m.instance.finish()
	x.m = nil
	x.target.missed()
	return refuseFull()
}

// choose finds an instance, by the newest table when the one that the request
// was routed by has none left.
func (x *exchange) choose(avoid *member) *refusal {
	c := x.c
	m := x.target.choose(c.g.now(), avoid)
	if m == nil {
		if next := c.g.again(x.target, c.find); next != nil {
			x.target = next
			m = next.choose(c.g.now(), nil)
		}
	}
	switch m {
	case nil:
		x.target.missed()
		return refuseBusy()
	case avoid:
		m.instance.finish()
		return refuseDown()
	}
	x.m, c.entry.instance = m, m.instance
	return nil
}

// connect takes a connection for the request.
func (x *exchange) connect(safe, fresh bool) error {
	up, err := x.m.pool.get(context.Background(), safe, fresh)
	if err != nil {
		return err
	}
	x.up = up
	x.c.up.Store(up)
	return nil
}

// refused counts an attempt at an instance that refused or dropped it.
func (x *exchange) refused(err error) {
	x.c.entry.note = err.Error()
	x.c.g.suspect(x.m)
	x.m.instance.stats.failed()
	x.m.instance.finish()
	x.m = nil
}

// failed closes the connection and decides whether the request is sent once
// more. When it is not, the instance is let go.
func (x *exchange) failed(err error, safe bool) (no *refusal, again bool) {
	c := x.c
	late, gone := c.timedOut() && !c.gone.Load(), c.gone.Load()
	begun := c.sent || x.up.in.r != x.up.in.w
	c.up.Store(nil)
	x.up.close()
	bodyErr := x.stopUpload()
	malformed, unsent := errors.Is(err, errMalformed), errors.Is(err, errUnsent) && bodyErr == nil
	if unsent && !late && !gone {
		return nil, true
	}
	if safe && !begun && !late && !gone && !malformed && (x.up.reused || !x.repeated) {
		if !x.up.reused {
			x.repeated = true
		}
		return nil, true
	}
	c.entry.note = err.Error()
	m := x.m
	x.m = nil
	defer m.instance.finish()
	if gone || bodyErr != nil {
		c.entry.status = 499
		return c.bodyRefusal(bodyErr), false
	}
	m.instance.stats.failed()
	switch {
	case late:
		return refuseLate(), false
	case malformed:
		return refuseOdd(), false
	}
	if !x.up.reused {
		c.g.suspect(m)
	}
	return refuseDown(), false
}

// attempt sends the request on x.up and reads the head of its answer.
func (x *exchange) attempt() error {
	if err := x.send(); err != nil {
		return err
	}
	c := x.c
	for {
		if err := x.readHead(); err != nil {
			return err
		}
		if c.resp.Status >= 200 || c.resp.Status == 101 && c.resp.Upgrade != nil && c.upgradable() {
			return nil
		}
		if c.resp.Status == 101 {
			return errors.Join(errMalformed, errors.New("it switches protocols, unasked"))
		}
		if err := x.interim(); err != nil {
			return err
		}
	}
}

// send sends the request, of one with a long body the head.
func (x *exchange) send() error {
	c, up := x.c, x.up
	if !x.stream {
		c.arm(c.g.limits.Answer)
		err := up.ask(c.out)
		if errors.Is(err, io.EOF) {
			err = errNoAnswer
		}
		return err
	}
	c.arm(c.g.limits.Body)
	if n, err := up.Write(c.out); err != nil {
		if n == 0 {
			err = errors.Join(errUnsent, err)
		}
		return err
	}
	x.upload = c.startUpload(up)
	return nil
}

// readHead reads the head of an answer into c.resp, and holds it.
func (x *exchange) readHead() error {
	c := x.c
	if err := x.up.readHead(&c.resp, c.g.limits.Head, string(c.req.Method) == "HEAD"); err != nil {
		return err
	}
	x.up.in.hold()
	return nil
}

// maxInterims is how many answers of 1xx may come before the answer.
const maxInterims = 100

func errInterims() error { return errors.Join(errMalformed, errors.New("too many interim answers")) }

// interim passes 100 on to a client that waits for it and 103 to any; others
// are dropped, nothing is known that needs them.
func (x *exchange) interim() error {
	c := x.c
	if x.interims++; x.interims > maxInterims {
		return errInterims()
	}
	want := c.resp.Status == 100 && c.req.Expect || c.resp.Status == 103
	if !want || c.req.Minor == 0 {
		return nil
	}
	piece := c.g.pieces.get()
	defer c.g.pieces.put(piece)
	out := append(*piece, "HTTP/1.1 "...)
	out = strconv.AppendInt(out, int64(c.resp.Status), 10)
	out = append(out, ' ')
	out = append(out, c.resp.Reason...)
	out = append(out, '\r', '\n')
	if c.resp.Status == 103 {
		out = c.appendFields(out)
	}
	out = append(out, '\r', '\n')
	*piece = out
	if _, err := c.nc.Write(out); err != nil {
		return err
	}
	c.sent = c.sent || c.resp.Status == 103
	return nil
}

// end carries the answer to the client and lets the instance go.
func (x *exchange) end() bool {
	c := x.c
	c.entry.status = c.resp.Status
	defer func() { c.up.Store(nil) }()
	if c.resp.Status == 101 {
		return x.upgrade()
	}
	out, err := x.relay()
	c.entry.out = out
	clean := err == nil
	if x.upload != nil {
		clean = x.uploaded() && clean
	}
	took := time.Duration(c.g.now() - c.entry.start)
	i := x.m.instance
	if err != nil && !c.gone.Load() && !errors.Is(err, errClient) {
		i.stats.failed()
		c.entry.note = err.Error()
	} else {
		i.stats.answered(c.resp.Status, took, c.entry.in, out)
	}
	c.up.Store(nil)
	if clean && !c.resp.Close && x.up.in.r == x.up.in.w && !c.timedOut() {
		x.m.pool.put(x.up)
	} else {
		x.up.close()
	}
	i.finish()
	if clean && x.keeps() {
		return true
	}
	switch {
	case err == nil && !c.body.Done():
		c.lingers = true
	case err != nil && c.resp.Length < 0 && c.req.Minor == 0:
		c.abort() // only the end tells this client that an answer is whole
	}
	return false
}

// keeps says whether the client's connection can go on after the answer.
func (x *exchange) keeps() bool {
	c := x.c
	if c.req.Minor == 0 && !c.resp.HasLength && c.resp.Length != 0 {
		return false
	}
	return c.keeps()
}
