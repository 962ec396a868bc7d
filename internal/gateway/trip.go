package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2"

	"github.com/kilnproject/kiln/internal/gateway/http1"
)

// h2cPool is the HTTP/2 connections to one port of one instance.
type h2cPool struct {
	mu        sync.Mutex
	transport *http2.Transport
}

func (h *h2cPool) roundTrip(p *pool, r *http.Request) (*http.Response, error) {
	h.mu.Lock()
	if h.transport == nil {
		h.transport = &http2.Transport{
			AllowHTTP:          true,
			DisableCompression: true,
			MaxHeaderListSize:  uint32(p.g.limits.Head.Head),
			ReadIdleTimeout:    pingAfter,
			PingTimeout:        p.g.limits.Answer,
			IdleConnTimeout:    idleUpstream,
			DialTLSContext: func(ctx context.Context, _, _ string, _ *tls.Config) (net.Conn, error) {
				c, err := connectTo(ctx, p.address)
				if err != nil {
					return nil, errors.Join(errConnect, err)
				}
				return c, nil
			},
		}
	}
	t := h.transport
	h.mu.Unlock()
	return t.RoundTrip(r)
}

func (h *h2cPool) closeIdle() {
	h.mu.Lock()
	t := h.transport
	h.mu.Unlock()
	if t != nil {
		t.CloseIdleConnections()
	}
}

// roundTrip carries a request in net/http's types over HTTP/1.1, with the same
// strictness as the straight way.
func (p *pool) roundTrip(r *http.Request) (*http.Response, error) {
	safe := r.Body == nil && repeatable([]byte(r.Method), 0)
	for fresh := false; ; fresh = true {
		up, err := p.get(r.Context(), safe, fresh)
		if err != nil {
			return nil, errors.Join(errConnect, err)
		}
		t := &trip{up: up, r: r}
		res, err := t.begin() //nolint:contextcheck // the request has it
		if err == nil {
			return res, nil
		}
		t.stop()
		unsent := errors.Is(err, errUnsent)
		switch {
		case r.Context().Err() != nil || up.in.w > 0:
			return nil, err
		case up.reused && (safe || unsent):
		case up.reused:
			return nil, errors.Join(errStale, err)
		case unsent:
			return nil, errors.Join(errConnect, err)
		default:
			return nil, err
		}
	}
}

// trip is one request and its answer; as a reader it is the answer's body.
type trip struct {
	up     *upstream
	r      *http.Request
	head   http1.Response
	body   http1.Decoder
	data   []byte // decoded and not yet read, in the upstream's buffer
	res    *http.Response
	unhook func() bool
	sent   chan struct{} // closed when the request's body was sent; nil without one
	torn   error
}

func (t *trip) begin() (*http.Response, error) {
	t.unhook = context.AfterFunc(t.r.Context(), func() { _ = t.up.SetDeadline(time.Unix(1, 0)) })
	if n, err := t.up.Write(appendHead(nil, t.r)); err != nil {
		if n == 0 {
			err = errors.Join(errUnsent, err)
		}
		return nil, err
	}
	if t.r.Body != nil {
		t.sent = make(chan struct{})
		go t.send()
	}
	for {
		if err := t.readHead(); err != nil {
			return nil, err
		}
		switch s := t.head.Status; {
		case s == 101:
			return nil, errors.Join(errMalformed, errors.New("it switches protocols, unasked"))
		case s >= 200:
			return t.response(), nil
		default:
			if trace := httptrace.ContextClientTrace(t.r.Context()); trace != nil {
				if err := trace.Got1xxResponse(s, textproto.MIMEHeader(headerOf(t.head.Fields))); err != nil {
					return nil, err
				}
			}
		}
	}
}

// send copies the request's body.
func (t *trip) send() {
	defer close(t.sent)
	piece := t.up.pool.g.pieces.get()
	defer t.up.pool.g.pieces.put(piece)
	b := make([]byte, pieceSize)
	left := t.r.ContentLength
	for {
		n, err := t.r.Body.Read(b)
		out := (*piece)[:0]
		switch {
		case left >= 0:
			out = append(out, b[:n]...)
		case n > 0:
			out = http1.AppendChunk(out, b[:n])
		}
		ended := err == io.EOF
		if ended && left < 0 {
			out = http1.AppendLastChunk(out, fieldsOf(t.r.Trailer))
		}
		if _, werr := t.up.Write(out); werr != nil {
			t.torn = werr
			return
		}
		*piece = out
		if ended {
			return
		}
		if err != nil {
			t.torn = err
			t.up.close() // a body that broke off must not look whole
			return
		}
	}
}

func (t *trip) readHead() error {
	if err := t.up.readHead(&t.head, t.up.pool.g.limits.Head, t.r.Method == http.MethodHead); err != nil {
		return err
	}
	t.up.in.skip(0)
	return nil
}

func (t *trip) response() *http.Response {
	t.body.Reset(t.head.Length)
	t.res = &http.Response{
		StatusCode: t.head.Status, ProtoMajor: 1, ProtoMinor: int(t.head.Minor),
		Header: headerOf(t.head.Fields), Body: t, Request: t.r, ContentLength: t.head.Length,
	}
	return t.res
}

// Read reads the answer's body.
func (t *trip) Read(p []byte) (int, error) {
	in := &t.up.in
	for {
		if len(t.data) > 0 {
			n := copy(p, t.data)
			t.data = t.data[n:]
			return n, nil
		}
		if t.body.Done() {
			return 0, io.EOF
		}
		data, used, err := t.body.Next(in.bytes())
		if err != nil {
			return 0, errors.Join(errMalformed, err)
		}
		t.data = data
		if t.body.Done() && len(t.body.Trailer) > 0 {
			t.res.Trailer = headerOf(t.body.Trailer)
		}
		in.skip(used)
		if len(data) > 0 || t.body.Done() {
			continue
		}
		if err := t.up.receive(4 * pieceSize); err != nil {
			if t.head.Length == http1.UntilClose && errors.Is(err, io.EOF) {
				return 0, io.EOF
			}
			return 0, fmt.Errorf("the answer broke off: %w", noEOF(err))
		}
	}
}

// Close keeps the connection when both bodies went over whole.
func (t *trip) Close() error {
	whole := t.body.Done() && !t.head.Close && t.up.in.r == t.up.in.w
	if whole && t.sent != nil {
		select {
		case <-t.sent:
			whole = t.torn == nil
		default:
			whole = false
		}
	}
	if whole && t.unhook() {
		t.up.pool.put(t.up)
		return nil
	}
	t.stop()
	return nil
}

// stop closes the connection. The body's sender, which may be waiting for its
// client, ends with the request.
func (t *trip) stop() {
	t.unhook()
	t.up.close()
}

// appendHead appends a request's head. What is no field is left out.
func appendHead(out []byte, r *http.Request) []byte {
	out = append(out, r.Method...)
	out = append(out, ' ')
	out = append(out, strings.TrimPrefix(r.URL.RequestURI(), r.URL.Scheme+"://"+r.Host)...)
	out = append(out, " HTTP/1.1\r\nHost: "...)
	out = append(out, r.Host...)
	out = append(out, '\r', '\n')
	for _, f := range fieldsOf(r.Header) {
		if len(f.Value) > 0 || f.Kind != http1.UserAgent {
			out = http1.AppendField(out, f.Name, f.Value)
		}
	}
	switch {
	case r.Body != nil:
		out = http1.AppendLength(out, max(r.ContentLength, http1.Chunked))
	case r.Method == http.MethodPost || r.Method == http.MethodPut || r.Method == http.MethodPatch:
		out = http1.AppendLength(out, 0)
	}
	return append(out, '\r', '\n')
}

// headerOf copies fields out of a buffer.
func headerOf(fields []http1.Field) http.Header {
	h := make(http.Header, len(fields))
	for _, f := range fields {
		h.Add(string(f.Name), string(f.Value))
	}
	return h
}

// fieldsOf is a header as fields that may be written; framing is left out.
func fieldsOf(h http.Header) []http1.Field {
	var fields []http1.Field
	for name, values := range h {
		k := http1.KindOf([]byte(name))
		switch k {
		case http1.ContentLength, http1.TransferEncoding, http1.Connection, http1.Hop, http1.Host, http1.Upgrade:
			continue
		default:
		}
		for _, v := range values {
			if httpguts.ValidHeaderFieldName(name) && httpguts.ValidHeaderFieldValue(v) {
				fields = append(fields, http1.Field{Name: []byte(name), Value: []byte(v), Kind: k})
			}
		}
	}
	return fields
}
