package gateway

import (
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/kilnproject/kiln/internal/gateway/http1"
)

// errClient marks an answer that the client did not take.
var errClient = errors.New("the client did not take the answer")

// receive reads once into u.in.
func (u *upstream) receive(limit int) error { return u.in.fill(u.TCPConn, limit) }

// readHead reads the head of an answer; it stays in u.in, before what is to be
// read next. toHEAD says what was asked for.
func (u *upstream) readHead(head *http1.Response, limits http1.Limits, toHEAD bool) error {
	u.in.floor = 0
	u.in.skip(0)
	for scanned := 0; ; {
		if b := u.in.bytes(); len(b) > 0 {
			end, next, err := http1.HeadEnd(b, scanned)
			if err == nil && end > 0 {
				err = head.Parse(b[:end], limits, toHEAD)
			}
			if err != nil {
				return errors.Join(errMalformed, err)
			}
			if end > 0 {
				u.in.r += end
				return nil
			}
			scanned = next
		}
		if err := u.receiveHead(limits.Head); err != nil {
			return err
		}
	}
}

func (u *upstream) receiveHead(limit int) error {
	err := u.receive(limit)
	switch {
	case errors.Is(err, errBufferFull):
		return errors.Join(errMalformed, err)
	case errors.Is(err, io.EOF):
		return errNoAnswer
	}
	return err
}

// relay carries the answer whose head is in c.resp to the client and returns
// the bytes of its body.
func (x *exchange) relay() (int64, error) {
	c := x.c
	length := c.resp.Length
	chunked := length < 0 && c.req.Minor == 1
	if x.upload != nil {
		x.upload.answered.Store(true)
		if !x.upload.read.Load() {
			c.req.Close = true // the rest of the body will not be read
		}
	}
	c.appendResponse(chunked)
	c.reply.Reset(length)
	var sent int64
	more, err := x.decode(chunked, &sent)
	switch {
	case err != nil:
		return sent, c.broken(err)
	case more:
		return x.relayRest(chunked, sent)
	}
	return sent, c.deliver()
}

// relayRest carries on an answer that did not come at once.
func (x *exchange) relayRest(chunked bool, sent int64) (int64, error) {
	c, up := x.c, x.up
	head, piece := c.out, c.g.pieces.get()
	c.out = append((*piece)[:0], head...)
	defer func() {
		*piece, c.out = c.out, head[:0]
		c.g.pieces.put(piece)
	}()
	for more := true; more; {
		c.arm(c.g.limits.Write)
		if err := c.deliver(); err != nil {
			return sent, err
		}
		c.arm(c.g.limits.Stream)
		if c.reply.Left() > upstreamRead {
			n, err := c.straight(up)
			if sent += n; err != nil {
				return sent, err
			}
		} else if err := up.receive(4 * pieceSize); err != nil {
			return sent, x.cut(err, chunked)
		}
		var err error
		if more, err = x.decode(chunked, &sent); err != nil {
			return sent, c.broken(err)
		}
	}
	return sent, c.deliver()
}

// cut ends an answer of which nothing more comes: it is whole when only the
// connection's end could tell where it ends.
func (x *exchange) cut(err error, chunked bool) error {
	c := x.c
	if c.resp.Length != http1.UntilClose || !errors.Is(err, io.EOF) {
		return c.broken(err)
	}
	if chunked {
		c.out = http1.AppendLastChunk(c.out, nil)
	}
	return c.deliver()
}

// decode moves what was read of the body to c.out and says whether more is to
// come.
func (x *exchange) decode(chunked bool, sent *int64) (more bool, err error) {
	c, up := x.c, x.up
	for !c.reply.Done() {
		data, used, err := c.reply.Next(up.in.bytes())
		if err != nil {
			return false, err
		}
		*sent += int64(len(data))
		switch {
		case len(data) == 0:
		case chunked:
			c.out = http1.AppendChunk(c.out, data)
		default:
			c.out = append(c.out, data...)
		}
		if c.reply.Done() && chunked {
			c.out = http1.AppendLastChunk(c.out, c.reply.Trailer)
		}
		up.in.skip(used)
		if len(c.out) > pieceSize-upstreamRead {
			if err := c.deliver(); err != nil {
				return false, err
			}
		}
		if len(data) == 0 && !c.reply.Done() {
			return true, nil
		}
	}
	return false, nil
}

// straight moves a large body piece by piece without decoding.
func (c *conn) straight(up *upstream) (int64, error) {
	b := c.out[:min(int64(cap(c.out)), c.reply.Left())]
	n, err := up.Read(b)
	if n > 0 {
		c.reply.Skip(int64(n))
		c.out = b[:n]
		c.arm(c.g.limits.Write)
		if err := c.deliver(); err != nil {
			return int64(n), err
		}
		return int64(n), nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return 0, c.broken(err)
}

// broken is an answer that ended before its end: the client has the status
// already, all that can be done is to close.
func (c *conn) broken(err error) error {
	_ = c.deliver()
	c.sent = true
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("the answer broke off: %w", err)
}

func (c *conn) deliver() error {
	if err := c.flush(); err != nil {
		return errors.Join(errClient, err)
	}
	return nil
}

// appendResponse builds the head that the client gets.
func (c *conn) appendResponse(chunked bool) {
	r := &c.resp
	out := append(c.out[:0], "HTTP/1.1 "...)
	out = strconv.AppendInt(out, int64(r.Status), 10)
	out = append(out, ' ')
	out = append(out, r.Reason...)
	out = append(out, '\r', '\n')
	out = c.appendFields(out)
	switch {
	case chunked:
		out = http1.AppendLength(out, http1.Chunked)
	case r.Length >= 0 && r.HasLength && r.Status != 204:
		out = append(out, "Content-Length: "...)
		out = append(out, r.LengthText()...)
		out = append(out, '\r', '\n')
	}
	switch {
	case c.req.Close || c.g.ending() || c.req.Minor == 0 && r.Length < 0:
		out = append(out, "Connection: close\r\n"...)
		c.req.Close = true
	case c.req.Minor == 0:
		out = append(out, "Connection: keep-alive\r\n"...)
	}
	c.out = append(out, '\r', '\n')
}

// appendFields appends the fields of c.resp that are the client's.
func (c *conn) appendFields(out []byte) []byte {
	date, id := false, false
	for i := range c.resp.Fields {
		f := &c.resp.Fields[i]
		switch f.Kind {
		case http1.ContentLength, http1.TransferEncoding, http1.Connection, http1.Upgrade, http1.Hop:
			continue
		case http1.Date:
			date = true
		case http1.RequestID:
			id = true
		default:
		}
		out = http1.AppendField(out, f.Name, f.Value)
	}
	if c.resp.Status < 200 && c.resp.Status != 101 {
		return out
	}
	if !date {
		out = http1.AppendText(out, "Date", c.g.date())
	}
	if !id {
		out = append(out, "X-Request-Id: "...)
		out = append(out, c.entry.id...)
		out = append(out, '\r', '\n')
	}
	return out
}
