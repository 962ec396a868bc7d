package gateway

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kilnproject/kiln/internal/gateway/http1"
)

// responder writes an answer in net/http's types to a client of HTTP/1.
type responder struct {
	c       *conn
	body    *clientBody // of the request; nil for none
	header  http.Header
	begun   bool
	chunked bool
	none    bool // the answer has no body
	open    bool // the end of the answer is the connection's
	err     error
}

// Header implements http.ResponseWriter.
func (r *responder) Header() http.Header { return r.header }

// WriteHeader implements http.ResponseWriter.
func (r *responder) WriteHeader(status int) {
	c := r.c
	if r.begun || status < 200 && c.req.Minor == 0 {
		return
	}
	out := append(c.out[:0], "HTTP/1.1 "...)
	out = strconv.AppendInt(out, int64(status), 10)
	out = append(out, ' ')
	out = append(out, http.StatusText(status)...)
	out = append(out, '\r', '\n')
	for _, f := range fieldsOf(r.header) {
		out = http1.AppendField(out, f.Name, f.Value)
	}
	if status < 200 {
		c.out = append(out, '\r', '\n')
		r.err = c.flush()
		return
	}
	r.begun = true
	if len(r.header["Trailer"]) > 0 && c.req.Minor == 1 {
		delete(r.header, "Content-Length") // only a chunked body has trailers
	}
	if r.header.Get("Date") == "" {
		out = http1.AppendText(out, "Date", c.g.date())
	}
	r.none = string(c.req.Method) == http.MethodHead || status == 204 || status == 304
	length := r.header.Get("Content-Length")
	switch {
	case length != "" && status != 204:
		out = http1.AppendText(out, "Content-Length", length)
	case r.none:
	case c.req.Minor == 1:
		r.chunked = true
		out = http1.AppendLength(out, http1.Chunked)
	default:
		r.open, c.req.Close = true, true
	}
	switch {
	case !r.keeps():
		c.req.Close = true
		out = http1.AppendText(out, "Connection", "close")
	case c.req.Minor == 0:
		out = http1.AppendText(out, "Connection", "keep-alive")
	}
	c.out = append(out, '\r', '\n')
}

// keeps says whether the client's connection can go on, as far as is known
// when the answer begins: the body may still be read.
func (r *responder) keeps() bool {
	return !r.c.req.Close && (r.body == nil || r.body.whole.Load())
}

// Write implements http.ResponseWriter.
func (r *responder) Write(b []byte) (int, error) {
	if !r.begun {
		r.WriteHeader(http.StatusOK)
	}
	switch {
	case r.none || len(b) == 0:
	case r.chunked:
		r.c.out = http1.AppendChunk(r.c.out, b)
	default:
		r.c.out = append(r.c.out, b...)
	}
	if len(r.c.out) >= pieceSize {
		r.Flush()
	}
	return len(b), r.err
}

// Flush implements http.Flusher.
func (r *responder) Flush() { _ = r.FlushError() }

// FlushError sends what was written.
func (r *responder) FlushError() error {
	if r.err == nil {
		r.c.arm(r.c.g.limits.Write)
		r.err = r.c.flush()
		r.c.arm(r.c.g.limits.Stream)
	}
	return r.err
}

// end writes the last chunk with the trailers.
func (r *responder) end() error {
	if !r.begun {
		r.WriteHeader(http.StatusOK)
	}
	if r.chunked {
		trailer := http.Header{}
		for _, list := range r.header["Trailer"] {
			for name := range strings.SplitSeq(list, ",") {
				name = http.CanonicalHeaderKey(strings.TrimSpace(name))
				if v, ok := r.header[name]; ok {
					trailer[name] = v
				}
			}
		}
		for name, v := range r.header {
			if name, ok := strings.CutPrefix(name, http.TrailerPrefix); ok {
				trailer[name] = v
			}
		}
		r.c.out = http1.AppendLastChunk(r.c.out, fieldsOf(trailer))
	}
	return r.FlushError()
}

// clientBody reads a request's body for net/http's types.
type clientBody struct {
	c    *conn
	data []byte
	wait bool // the client waits for 100 Continue
	// whole says that all was read of the connection.
	whole atomic.Bool

	mu   sync.Mutex // held while the client's connection is read
	over bool       // the request ended; an attempt's reader may not know yet
}

// end keeps late readers off the connection.
func (b *clientBody) end() {
	c := b.c
	if !b.mu.TryLock() {
		c.mu.Lock()
		_ = c.nc.SetReadDeadline(time.Unix(1, 0))
		c.mu.Unlock()
		b.mu.Lock()
		c.mu.Lock()
		_ = c.nc.SetReadDeadline(time.Time{})
		c.mu.Unlock()
	}
	b.over = true
	b.mu.Unlock()
}

// Read implements io.Reader.
func (b *clientBody) Read(p []byte) (int, error) {
	c := b.c
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.over {
		return 0, http.ErrBodyReadAfterClose
	}
	for {
		if len(b.data) > 0 {
			n := copy(p, b.data)
			b.data = b.data[n:]
			return n, nil
		}
		if c.body.Done() {
			return 0, io.EOF
		}
		data, used, err := c.body.Next(c.in.bytes())
		if err != nil {
			return 0, err
		}
		b.data = data
		c.in.skip(used)
		b.whole.Store(c.body.Done())
		if len(data) > 0 || c.body.Done() {
			continue
		}
		if b.wait {
			b.wait = false
			if _, err := c.nc.Write([]byte("HTTP/1.1 100 Continue\r\n\r\n")); err != nil {
				return 0, err
			}
		}
		c.arm(c.g.limits.Body)
		if err := c.receiveBody(); err != nil {
			return 0, noEOF(err)
		}
		c.arm(0) // what follows is the instance's time
	}
}

// Close implements io.Closer.
func (b *clientBody) Close() error { return nil }

// request is the client's request in net/http's types.
func (c *conn) request(ctx context.Context) *http.Request {
	r := &http.Request{
		Method: string(c.req.Method), Host: string(c.req.Host), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		URL:    &url.URL{Path: string(c.req.Path), RawQuery: strings.TrimPrefix(string(c.req.Query), "?")},
		Header: headerOf(c.req.Fields), ContentLength: c.req.Length,
		RequestURI: string(c.req.Path) + string(c.req.Query),
	}
	for _, f := range c.req.Fields {
		if f.Kind == http1.Hop || f.Kind == http1.Host || f.Kind == http1.ContentLength {
			r.Header.Del(string(f.Name))
		}
	}
	if c.req.Length != 0 {
		r.Body = &clientBody{c: c, wait: c.req.Expect}
	}
	return r.WithContext(ctx)
}

// viaHandler carries a request to an instance that speaks HTTP/2.
func (c *conn) viaHandler(t *target) (again bool) {
	ctx, cancel := context.WithCancel(c.g.hard)
	defer cancel()
	head, piece := c.out, c.g.pieces.get()
	c.out = (*piece)[:0]
	defer func() {
		*piece, c.out = c.out, head[:0]
		c.g.pieces.put(piece)
	}()
	c.cancel.Store(&cancel)
	defer c.cancel.Store(nil)
	c.arm(0)
	r := c.request(ctx)
	w := &responder{c: c, header: http.Header{}}
	if b, ok := r.Body.(*clientBody); ok {
		w.body = b
		defer b.end()
	}
	defer func() {
		if v := recover(); v != nil {
			if v != http.ErrAbortHandler { //nolint:errorlint // a sentinel that is thrown as it is
				panic(v)
			}
			_ = c.flush()
			if again = false; w.open {
				c.abort()
			}
		}
	}()
	call := &call{g: c.g, target: t, find: c.find, entry: &c.entry, private: c.role == rolePrivate, secure: c.role == roleHTTPS}
	call.carry(w, r)
	if w.body != nil {
		w.body.end()
	}
	err := w.end()
	c.lingers = err == nil && !c.body.Done()
	return err == nil && c.keeps()
}
