package gateway

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/gateway/http1"
)

var (
	// errConnect marks an attempt of which nothing was sent.
	errConnect = errors.New("the instance could not be reached")
	// errStale marks one on a connection that the instance had closed, as it
	// may; whether it saw the request nobody knows.
	errStale = errors.New("the kept connection was closed")
)

// call is a request with HTTP/2 on at least one side, in net/http's types.
type call struct {
	g       *gateway
	target  *target
	find    func() (*target, *refusal)
	entry   *entry
	private bool // from an instance
	secure  bool // over TLS

	body     *countingBody
	patience *patience // of the present attempt
	interims int
}

// countingBody counts a request's body and reports its progress.
type countingBody struct {
	io.ReadCloser
	n        atomic.Int64
	failed   atomic.Bool
	progress func()
}

func (b *countingBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n.Add(int64(n))
	if err != nil && err != io.EOF {
		b.failed.Store(true)
	}
	b.progress()
	return n, err
}

// Close leaves the body open: the client's side owns it, and another attempt
// may read it.
func (b *countingBody) Close() error { return nil }

// carry sends a request to an instance and its answer to w.
func (c *call) carry(w http.ResponseWriter, r *http.Request) {
	if no := c.try(w, r); no != nil {
		no.write(w, c.entry)
	}
}

// try begins the request until an instance has answered.
func (c *call) try(w http.ResponseWriter, r *http.Request) *refusal {
	again := r.ContentLength == 0 && repeatable([]byte(r.Method), 0)
	var avoid *member
	for c.entry.tries = 1; c.entry.tries <= maxTries; c.entry.tries++ {
		m := c.choose(avoid)
		if m == nil {
			c.target.missed()
			return refuseBusy()
		}
		if m == avoid {
			m.instance.finish()
			break
		}
		c.entry.instance = m.instance
		err := c.attempt(w, r, m)
		if err == nil {
			return nil
		}
		c.entry.note = err.Error()
		if no := c.failed(r, m, err); no != nil {
			return no
		}
		if !errors.Is(err, errConnect) {
			if !again {
				break
			}
			again = false
		}
		avoid = m
	}
	return refuseDown()
}

// choose finds an instance, by the newest table when the one that the request
// was routed by has none left.
func (c *call) choose(avoid *member) *member {
	m := c.target.choose(c.g.now(), avoid)
	if m == nil {
		if next := c.g.again(c.target, c.find); next != nil {
			c.target = next
			m = next.choose(c.g.now(), nil)
		}
	}
	return m
}

// failed lets an instance go that gave no answer, and says whose fault it was
// when trying again would not help.
func (c *call) failed(r *http.Request, m *member, err error) *refusal {
	defer m.instance.finish()
	if r.Context().Err() != nil || c.body != nil && c.body.failed.Load() {
		return &refusal{status: 499}
	}
	if isOurs(err) {
		c.target.missed()
		return refuseFull()
	}
	m.instance.stats.failed()
	switch {
	case errors.Is(err, errConnect): // a connection that took too long is no late answer
	case errors.Is(err, context.DeadlineExceeded):
		return refuseLate()
	case errors.Is(err, errMalformed):
		return refuseOdd()
	}
	if !errors.Is(err, errStale) {
		c.g.suspect(m)
	}
	return nil
}

// attempt makes one try. The error is for tries without an answer; otherwise
// the answer was carried and the instance let go.
func (c *call) attempt(w http.ResponseWriter, r *http.Request, m *member) error {
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	defer context.AfterFunc(m.instance.ended, func() { cancel(errDrained) })() //nolint:contextcheck // the instance's end, not the request's
	c.patience = newPatience(&c.g.limits, w, cancel)
	defer c.patience.end()
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
		return c.interim(w, code, http.Header(h))
	}})
	out := c.request(ctx, r)
	var res *http.Response
	var err error
	if c.target.protocol == kiln.ProtocolH2C {
		res, err = m.pool.h2.roundTrip(m.pool, out) //nolint:bodyclose // answer closes it
	} else {
		res, err = m.pool.roundTrip(out) //nolint:bodyclose // answer closes it
	}
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return err
	}
	c.patience.begin()
	c.answer(w, r, res, m)
	return nil
}

// request is what the instance gets.
func (c *call) request(ctx context.Context, r *http.Request) *http.Request {
	out := r.Clone(ctx)
	out.URL = exactURL(r.Host, string(c.entry.path), string(c.entry.query))
	trailers := strings.EqualFold(r.Header.Get("Te"), "trailers")
	dropHop(out.Header)
	for name := range out.Header {
		if k := http1.KindOf([]byte(name)); k == http1.RequestID || k == http1.Forwarded && !c.private || k == http1.Expect {
			delete(out.Header, name)
		}
	}
	if trailers && c.target.protocol == kiln.ProtocolH2C {
		out.Header["Te"] = []string{"trailers"}
	}
	if !c.private {
		out.Header["X-Forwarded-For"] = []string{c.entry.client.String()}
		out.Header["X-Forwarded-Proto"] = []string{scheme(c.secure)}
		out.Header["X-Forwarded-Host"] = []string{r.Host}
	}
	out.Header["X-Request-Id"] = []string{string(c.entry.id)}
	if out.Header["User-Agent"] == nil {
		out.Header["User-Agent"] = []string{""} // net/http would add its own
	}
	if r.ContentLength == 0 || r.Body == nil || r.Body == http.NoBody {
		out.Body = nil
	} else {
		if c.body == nil {
			c.body = &countingBody{ReadCloser: r.Body}
		}
		c.body.progress = c.patience.progress
		out.Body = c.body
	}
	for name := range r.Trailer { // announced; none but these will be read
		if http1.KindOf([]byte(name)) != http1.Other {
			delete(r.Trailer, name)
		}
	}
	out.Trailer = r.Trailer
	return out
}

// exactURL is a URL whose RequestURI is path and query to the byte: what a
// request was matched by is what is forwarded, and net/url would encode some
// of it anew.
func exactURL(host, path, query string) *url.URL {
	u := &url.URL{Scheme: "http", Host: host, Opaque: path}
	if strings.HasPrefix(path, "//") {
		u.Opaque = "//" + host + path // or it would be taken for a host
	}
	u.RawQuery, u.ForceQuery = strings.TrimPrefix(query, "?"), query != ""
	return u
}

func scheme(secure bool) string {
	if secure {
		return "https"
	}
	return "http"
}

// dropHop removes fields that are for one connection only.
func dropHop(h http.Header) {
	for _, list := range h["Connection"] {
		for name := range strings.SplitSeq(list, ",") {
			h.Del(textproto.TrimString(name))
		}
	}
	for name := range h {
		switch http1.KindOf([]byte(name)) {
		case http1.Hop, http1.Connection, http1.Upgrade, http1.TransferEncoding:
			delete(h, name)
		default:
		}
	}
}

// interim passes early hints on.
func (c *call) interim(w http.ResponseWriter, code int, from http.Header) error {
	if c.interims++; c.interims > maxInterims {
		return errInterims()
	}
	if code != http.StatusEarlyHints {
		return nil
	}
	h := w.Header()
	maps.Copy(h, from)
	w.WriteHeader(code)
	for name := range from {
		delete(h, name)
	}
	return nil
}

// answer carries an answer to the client and lets the instance go.
func (c *call) answer(w http.ResponseWriter, r *http.Request, res *http.Response, m *member) {
	defer m.instance.finish()
	h := w.Header()
	dropHop(res.Header)
	maps.Copy(h, res.Header)
	if h.Get("X-Request-Id") == "" {
		h.Set("X-Request-Id", string(c.entry.id))
	}
	for name := range res.Trailer {
		h.Add("Trailer", name)
	}
	announced := len(res.Trailer)
	c.entry.status = res.StatusCode
	w.WriteHeader(res.StatusCode)
	n, err := c.copy(w, res.Body)
	c.entry.out = n
	if c.body != nil {
		c.entry.in = c.body.n.Load()
	}
	if err == nil {
		appendTrailers(h, res.Trailer, announced)
	}
	_ = res.Body.Close()
	took := time.Duration(c.g.now() - c.entry.start)
	if err == nil || errors.Is(err, errClient) || r.Context().Err() != nil {
		m.instance.stats.answered(res.StatusCode, took, c.entry.in, n)
	} else {
		m.instance.stats.failed()
	}
	if err != nil {
		c.entry.note = err.Error()
		panic(http.ErrAbortHandler) // the client must not take it for whole
	}
}

func appendTrailers(h, trailer http.Header, announced int) {
	if len(trailer) == announced {
		maps.Copy(h, trailer)
		return
	}
	for name, values := range trailer {
		h[http.TrailerPrefix+name] = values
	}
}

// copy moves an answer's body, each piece at once: it may be an event.
func (c *call) copy(w http.ResponseWriter, from io.Reader) (sent int64, err error) {
	piece := c.g.pieces.get()
	defer c.g.pieces.put(piece)
	b := (*piece)[:cap(*piece)]
	flusher := http.NewResponseController(w)
	for {
		n, err := from.Read(b)
		c.patience.giving()
		if n > 0 {
			if _, werr := w.Write(b[:n]); werr != nil {
				return sent, errors.Join(errClient, werr)
			}
			sent += int64(n)
		}
		if err == io.EOF {
			return sent, nil
		}
		if err != nil {
			return sent, err
		}
		if ferr := flusher.Flush(); ferr != nil {
			return sent, errors.Join(errClient, ferr)
		}
		c.patience.progress()
	}
}
