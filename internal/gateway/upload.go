package gateway

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/kilnproject/kiln/internal/gateway/http1"
)

// upload sends a request's body to the instance while the answer may come. It
// alone uses the connection's input meanwhile.
type upload struct {
	done chan struct{}
	n    int64       // bytes of the body that were sent
	err  error       // the client's fault
	torn bool        // the instance did not take it all
	read atomic.Bool // the body was read whole
	// answered says that the answer has begun: from then on its limits count.
	answered atomic.Bool
}

// arm sets the deadline, unless the answer has begun and has its own.
func (u *upload) arm(c *conn, d time.Duration) {
	c.arm(d)
	if u.answered.Load() { // after arm: the other side stores first and arms then
		c.arm(c.g.limits.Stream)
	}
}

func (u *upload) over() bool {
	select {
	case <-u.done:
		return true
	default:
		return false
	}
}

// last is how long an instance that has answered may take for the rest of a
// body.
const last = time.Second

// settle gives an upload that only has to write a moment to end.
func (u *upload) settle() {
	if !u.read.Load() {
		return
	}
	t := time.NewTimer(last)
	defer t.Stop()
	select {
	case <-u.done:
	case <-t.C:
	}
}

func (c *conn) startUpload(up *upstream) *upload {
	u := &upload{done: make(chan struct{})}
	go func() {
		defer close(u.done)
		u.err = c.send(u, up)
		if u.err != nil {
			up.close() // a body that broke off must not look whole
		}
	}()
	return u
}

// send copies the body piece by piece: the instance's pace is the client's.
func (c *conn) send(u *upload, up *upstream) error {
	piece := c.g.pieces.get()
	defer c.g.pieces.put(piece)
	for {
		out := (*piece)[:0]
		data, used, err := c.body.Next(c.in.bytes())
		if err != nil {
			return err
		}
		switch {
		case len(data) == 0:
		case c.req.Length == http1.Chunked:
			out = http1.AppendChunk(out, data)
		default:
			out = append(out, data...)
		}
		if c.body.Done() {
			u.read.Store(true)
		}
		if c.body.Done() && c.req.Length == http1.Chunked {
			out = http1.AppendLastChunk(out, c.body.Trailer)
		}
		c.in.skip(used)
		u.arm(c, c.g.limits.Body)
		*piece = out
		if _, err := up.Write(out); err != nil {
			u.torn = true
			return nil
		}
		u.n += int64(len(data))
		if c.body.Done() {
			u.arm(c, c.g.limits.Answer)
			return nil
		}
		if len(data) > 0 {
			continue
		}
		if err := c.receiveBody(); err != nil {
			return fmt.Errorf("read the request's body: %w", noEOF(err))
		}
	}
}

// receiveBody reads more of a body. A buffer that was filled at once grows: its
// client is a fast one.
func (c *conn) receiveBody() error {
	limit := max(len(c.in.b), c.in.floor+pieceSize)
	if c.fast {
		_ = c.in.grow(limit) // without more room it is slower
	}
	err := c.in.fill(c.nc, limit)
	c.fast = c.in.w == len(c.in.b)
	return err
}

func noEOF(err error) error {
	if err == io.EOF { //nolint:errorlint // an io.Reader's end is never wrapped
		return io.ErrUnexpectedEOF
	}
	return err
}

// stopUpload ends the upload, if any, and returns what was the client's fault.
func (x *exchange) stopUpload() error {
	u := x.upload
	if u == nil {
		return nil
	}
	x.upload = nil
	c := x.c
	u.settle()
	stopped := !u.over()
	if stopped {
		c.mu.Lock()
		_ = c.nc.SetReadDeadline(time.Unix(1, 0))
		c.mu.Unlock()
		_ = x.up.SetWriteDeadline(time.Unix(1, 0))
		<-u.done
		c.mu.Lock()
		_ = c.nc.SetReadDeadline(time.Time{})
		c.mu.Unlock()
		u.torn = true
	}
	c.entry.in = u.n
	if stopped && !c.timedOut() && errors.Is(u.err, os.ErrDeadlineExceeded) {
		return nil // that was us
	}
	return u.err
}

// uploaded says whether the body was sent whole by the end of the answer.
func (x *exchange) uploaded() bool {
	u := x.upload
	return x.stopUpload() == nil && !u.torn && x.c.body.Done()
}
