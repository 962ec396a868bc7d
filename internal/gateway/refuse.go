package gateway

import (
	"crypto/tls"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/kilnproject/kiln/internal/gateway/http1"
)

// refusal is an answer that the gateway gives itself, as plain text.
type refusal struct {
	status int
	text   string
	close  bool
	retry  bool // says Retry-After
	// location is where a redirection points.
	location string
}

// allowed are the common methods, of those that an instance may get: RFC 9110,
// section 15.5.6, wants some named.
const allowed = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"

// The refusals that need no words of their own.

func refuseBusy() *refusal {
	return &refusal{status: 503, text: "No instance of this service is ready. Try again in a moment.", retry: true}
}

// refuseFull is for want of connections or descriptors, which is nobody's
// fault but the load's.
func refuseFull() *refusal {
	return &refusal{status: 503, text: "Too many connections. Try again in a moment.", retry: true}
}

func refuseDown() *refusal {
	return &refusal{status: 502, text: "No instance of this service answered.", retry: true}
}

func refuseLate() *refusal {
	return &refusal{status: 504, text: "The service did not answer in time.", close: true}
}

func refuseOdd() *refusal {
	return &refusal{status: 502, text: "The service's answer could not be understood."}
}

// refuse answers, and says whether the connection can go on.
func (c *conn) refuse(r refusal) bool {
	keep := !r.close && !c.g.ending() && c.entry.method != nil && c.keeps()
	r.record(&c.entry)
	if c.sent || r.status == 499 { // the answer has begun, or nobody is there to read it
		return false
	}
	c.out = r.appendTo(c.out[:0], c.entry.id, c.g.date(), keep, string(c.entry.method) == "HEAD", c.entry.minor == 0 && c.entry.method != nil)
	c.arm(c.g.limits.Write)
	if err := c.flush(); err != nil {
		return false
	}
	c.entry.out = int64(len(r.body(c.entry.id)))
	if string(c.entry.method) == "HEAD" {
		c.entry.out = 0
	}
	c.lingers = !keep
	return keep
}

// record notes the refusal in the access log.
func (r refusal) record(e *entry) {
	e.status = r.status
	if e.note == "" {
		e.note = r.text
	}
}

func (r refusal) appendTo(dst, id []byte, date string, keep, head, old bool) []byte {
	dst = append(dst, "HTTP/1.1 "...)
	dst = strconv.AppendInt(dst, int64(r.status), 10)
	dst = append(dst, ' ')
	dst = append(dst, http.StatusText(r.status)...)
	dst = append(dst, "\r\nContent-Type: text/plain; charset=utf-8\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"...)
	dst = http1.AppendText(dst, "Date", date)
	if r.location != "" {
		dst = http1.AppendText(dst, "Location", r.location)
	}
	if r.retry {
		dst = http1.AppendText(dst, "Retry-After", "1")
	}
	if r.status == http.StatusMethodNotAllowed {
		dst = http1.AppendText(dst, "Allow", allowed)
	}
	dst = append(dst, "X-Request-Id: "...)
	dst = append(dst, id...)
	dst = append(dst, '\r', '\n')
	switch {
	case !keep:
		dst = http1.AppendText(dst, "Connection", "close")
	case old:
		dst = http1.AppendText(dst, "Connection", "keep-alive")
	}
	body := r.body(id)
	dst = http1.AppendLength(dst, int64(len(body)))
	dst = append(dst, '\r', '\n')
	if !head {
		dst = append(dst, body...)
	}
	return dst
}

func (r refusal) body(id []byte) string {
	return strconv.Itoa(r.status) + " " + http.StatusText(r.status) + "\n" + r.text + "\nrequest " + string(id) + "\n"
}

// flush writes what is in c.out.
func (c *conn) flush() error {
	if len(c.out) == 0 {
		return nil
	}
	_, err := c.nc.Write(c.out)
	c.out = c.out[:0]
	if err == nil {
		c.sent = true
	}
	return err
}

// abort ends the connection so that nobody takes what was sent for whole.
func (c *conn) abort() {
	socket := c.nc
	if t, ok := socket.(*tls.Conn); ok {
		socket = t.NetConn()
	}
	if t, ok := socket.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = socket.Close()
}

// linger reads for a moment what the client still sends after a refusal: a
// socket closed with unread bytes resets the connection, and the client might
// never see the answer.
func (c *conn) linger() {
	const most, wait = 256 << 10, time.Second
	half, ok := c.nc.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	c.arm(wait)
	piece := c.g.pieces.get()
	defer c.g.pieces.put(piece)
	b := (*piece)[:cap(*piece)]
	for n := 0; n < most; {
		got, err := c.nc.Read(b)
		if err != nil {
			return
		}
		n += got
	}
}
