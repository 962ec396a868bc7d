package gateway

import (
	"context"
	"crypto/tls"
	"log"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http2"

	"github.com/kilnproject/kiln/internal/gateway/http1"
)

const (
	maxStreams   = 128
	pingAfter    = 30 * time.Second
	streamBuffer = 256 << 10
	// refusalTime is what a client has to take a refusal.
	refusalTime = 10 * time.Second
)

// http2State serves HTTP/2 to clients. golang.org/x/net bounds what is queued
// for a client that resets faster than it is answered.
type http2State struct {
	g      *gateway
	base   *http.Server
	server *http2.Server
}

func newHTTP2(g *gateway) *http2State {
	s := &http2State{g: g}
	s.base = &http.Server{
		MaxHeaderBytes:    g.limits.Head.Head,
		ReadHeaderTimeout: g.limits.HeadTime,
		ErrorLog:          log.New(quiet{}, "", 0),
	}
	s.server = &http2.Server{
		MaxConcurrentStreams:         maxStreams,
		MaxDecoderHeaderTableSize:    4096,
		IdleTimeout:                  g.limits.Idle,
		ReadIdleTimeout:              pingAfter,
		PingTimeout:                  g.limits.Write, // who takes no answers answers no pings
		WriteByteTimeout:             g.limits.Write,
		MaxUploadBufferPerStream:     streamBuffer,
		MaxUploadBufferPerConnection: 4 * streamBuffer,
	}
	if err := http2.ConfigureServer(s.base, s.server); err != nil {
		panic(err) // it can only object to a TLS configuration, and has none
	}
	return s
}

// quiet drops what net/http says about single clients.
type quiet struct{}

func (quiet) Write(b []byte) (int, error) { return len(b), nil }

// prefixConn is a connection of which something was read already.
type prefixConn struct {
	net.Conn
	prefix []byte
}

func (p *prefixConn) Read(b []byte) (int, error) {
	if len(p.prefix) > 0 {
		n := copy(b, p.prefix)
		p.prefix = p.prefix[n:]
		return n, nil
	}
	return p.Conn.Read(b)
}

// serveHTTP2 serves a connection until it ends, and closes it.
func (g *gateway) serveHTTP2(nc net.Conn, listener string, r role, prefaced bool) {
	defer func() { _ = nc.Close() }()
	s := session{g: g, listener: listener, role: r, client: remoteAddr(nc)}
	if t, ok := nc.(*tls.Conn); ok {
		s.sni = hostKey(t.ConnectionState().ServerName)
	}
	stop := context.AfterFunc(g.hard, func() { _ = nc.Close() })
	defer stop()
	g.http2.server.ServeConn(nc, &http2.ServeConnOpts{
		Context: g.hard, BaseConfig: g.http2.base, Handler: http.HandlerFunc(s.serve), SawClientPreface: prefaced,
	})
}

// session is a client's HTTP/2 connection.
type session struct {
	g        *gateway
	listener string
	role     role
	client   netip.Addr
	sni      string
}

// serve answers one request.
func (s *session) serve(w http.ResponseWriter, r *http.Request) {
	e := &entry{start: s.g.now(), client: s.client, h2: true}
	e.method, e.host = []byte(r.Method), []byte(r.Host)
	e.agent, e.referer = []byte(r.UserAgent()), []byte(r.Referer())
	if id := r.Header["X-Request-Id"]; len(id) == 1 && wellFormedID([]byte(id[0])) {
		e.id = []byte(id[0])
	} else {
		e.id = appendID(nil)
	}
	defer func() { s.g.log.add(e, s.g.now()) }()
	if !s.g.ports.enter(s.client, 1, s.g.limits.Connections) {
		e.path = []byte(r.RequestURI)
		refuseFull().write(w, e)
		return
	}
	defer s.g.ports.leave(s.client, 1)
	t, no := s.route(r, e)
	if no != nil {
		no.write(w, e)
		return
	}
	call := &call{g: s.g, target: t, find: func() (*target, *refusal) { return s.route(r, e) }, entry: e, private: s.role == rolePrivate, secure: s.role == roleHTTPS}
	call.carry(w, r)
}

// route checks what HTTP/2 leaves open and finds the target.
func (s *session) route(r *http.Request, e *entry) (*target, *refusal) {
	path, query, has := strings.Cut(r.RequestURI, "?")
	if has {
		query = "?" + query
	}
	e.path, e.query = []byte(path), []byte(query)
	name, err := http1.HostName([]byte(r.Host))
	if err != nil {
		return nil, &refusal{status: 400, text: "Bad request: the authority is malformed."}
	}
	if !http1.IsToken([]byte(r.Method)) || http1.CheckTarget([]byte(r.RequestURI)) != nil {
		return nil, &refusal{status: 400, text: "Bad request: the method or path has a character that it may not have."}
	}
	if l := r.Header["Content-Length"]; len(l) > 1 || len(l) == 1 && l[0] != strconv.FormatInt(r.ContentLength, 10) {
		return nil, &refusal{status: 400, text: "Bad request: the body is not as long as Content-Length says."}
	}
	if r.Method == http.MethodConnect || r.Method == http.MethodTrace {
		return nil, &refusal{status: 405, text: "The method is not served here."}
	}
	if r.Method != http.MethodOptions || path != "*" {
		normal, _, err := http1.NormalPath(e.path, nil)
		if err != nil {
			return nil, &refusal{status: 400, text: "Bad request: " + err.Error() + "."}
		}
		e.path = normal
	}
	key := hostKey(string(name))
	t, no := s.g.route(s.listener, s.role, s.client, s.sni, []byte(key), e.path)
	if t == nil && no == nil {
		away := s.g.redirection(key, string(e.path)+string(e.query))
		return nil, &away
	}
	if t != nil {
		e.environment, e.route = t.environment, t.name
	}
	return t, no
}

// write answers through net/http's types.
func (r refusal) write(w http.ResponseWriter, e *entry) {
	r.record(e)
	if r.status == 499 {
		panic(http.ErrAbortHandler)
	}
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(refusalTime)) // over HTTP/1 the connection's guard does it
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Request-Id", string(e.id))
	if r.retry {
		h.Set("Retry-After", "1")
	}
	if r.location != "" {
		h.Set("Location", r.location)
	}
	if r.status == http.StatusMethodNotAllowed {
		h.Set("Allow", allowed)
	}
	w.WriteHeader(r.status)
	if string(e.method) != http.MethodHead {
		n, _ := w.Write([]byte(r.body(e.id))) // the client left: nobody is there to tell
		e.out = int64(n)
	}
}
