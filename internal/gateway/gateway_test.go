package gateway

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kilnproject/kiln"
)

// TestMain demands that no goroutine is left. certmagic keeps one per account
// for its rate, for ever, and one per lock until it next looks.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction("github.com/caddyserver/certmagic.keepLockfileFresh"),
		goleak.IgnoreAnyFunction("github.com/caddyserver/certmagic.(*RingBufferRateLimiter).loop"))
}

// given are listeners that a test hands over.
type given struct {
	take   chan given1
	closed chan struct{}
}

type given1 struct {
	name string
	file *os.File
	done chan error
}

func (g *given) Serve(take func(string, *os.File) error) error {
	for {
		select {
		case one := <-g.take:
			one.done <- take(one.name, one.file)
		case <-g.closed:
			return io.EOF
		}
	}
}

func (g *given) Close() error {
	select {
	case <-g.closed:
	default:
		close(g.closed)
	}
	return nil
}

// rig is a gateway under test with its client.
type rig struct {
	t      *testing.T
	dir    string
	client *Client
	given  *given
	stop   func() error
	table  kiln.Traffic
}

func testLimits() Limits {
	l := DefaultLimits()
	l.Connections, l.Stop, l.Lull = 1024, 2*time.Second, 0
	return l
}

func start(t *testing.T, edit ...func(*Options)) *rig {
	t.Helper()
	return startIn(t, t.TempDir(), edit...)
}

func startIn(t *testing.T, dir string, edit ...func(*Options)) *rig {
	t.Helper()
	socket := filepath.Join(dir, "g.sock")
	_ = os.Remove(socket)
	control, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, dir: dir, client: NewClient(socket), given: &given{take: make(chan given1), closed: make(chan struct{})}}
	o := Options{Dir: filepath.Join(dir, "gateway"), Control: control, Listeners: r.given, Limits: testLimits()}
	for _, f := range edit {
		f(&o)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, o) }()
	stopped := false
	r.stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		r.client.Close()
		return <-ended
	}
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return r
}

// listen gives the gateway a TCP socket and returns its address.
func (r *rig) listen(host string) string {
	r.t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		r.t.Skipf("cannot listen on %s: %v", host, err)
	}
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		r.t.Fatal(err)
	}
	r.give("tcp://"+l.Addr().String(), f)
	return l.Addr().String()
}

func (r *rig) give(name string, f *os.File) {
	r.t.Helper()
	one := given1{name, f, make(chan error, 1)}
	r.given.take <- one
	if err := <-one.done; err != nil {
		r.t.Fatal(err)
	}
}

// set sends r.table with the next generation.
func (r *rig) set() {
	r.t.Helper()
	r.table.Generation++
	if err := r.client.Set(r.t.Context(), r.table); err != nil {
		r.t.Fatal(err)
	}
}

// upstreamOn serves a handler on 127.0.0.x and returns the port.
func upstreamOn(t *testing.T, address string, h http.Handler) *http.Server {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h, Addr: l.Addr().String()}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func portNumber(t *testing.T, address string) uint16 {
	t.Helper()
	a, err := netip.ParseAddrPort(address)
	if err != nil {
		t.Fatal(err)
	}
	return a.Port()
}

const testFleet = kiln.FleetID("test/web/000000000000")

// route makes a table with one public route to instances at the addresses.
func (r *rig) route(host string, p kiln.Protocol, port uint16, addresses ...string) {
	var endpoints []kiln.Endpoint
	for i, a := range addresses {
		endpoints = append(endpoints, kiln.Endpoint{Instance: fmt.Sprintf("web-%d", i), Address: netip.MustParseAddr(a)})
	}
	r.table.Public = append(r.table.Public, kiln.PublicRoute{
		Environment: "test", Protocol: p, Number: port,
		Route:  kiln.Route{Name: "web", Service: "web", Host: host, Path: "/"},
		Fleets: []kiln.Weight{{Fleet: testFleet, Percent: 100}},
	})
	r.table.Fleets = map[kiln.FleetID][]kiln.Endpoint{testFleet: endpoints}
}

// simple starts a gateway with one HTTP listener, one route and one instance.
func simple(t *testing.T, h http.Handler, edit ...func(*Options)) (r *rig, address string) {
	t.Helper()
	up := upstreamOn(t, "127.0.0.1:0", h)
	r = start(t, edit...)
	address = r.listen("127.0.0.1")
	r.table.HTTP = []string{address}
	r.route("web.test", kiln.ProtocolHTTP, portNumber(t, up.Addr), "127.0.0.1")
	r.set()
	return r, address
}

// ask sends raw bytes and returns all that comes back until the connection
// ends or one response was read.
func ask(t *testing.T, address, raw string) *http.Response {
	t.Helper()
	c := dial(t, address)
	if _, err := io.WriteString(c, raw); err != nil {
		t.Fatal(err)
	}
	return read(t, c, bufio.NewReader(c), raw)
}

// serveTCP listens until the test ends, hands each connection to handle, and
// closes it after. It returns the address.
func serveTCP(t *testing.T, address string, handle func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				handle(c)
			}()
		}
	}()
	return l.Addr().String()
}

func dial(t *testing.T, address string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

// read reads one response with its body.
func read(t *testing.T, _ net.Conn, b *bufio.Reader, raw string) *http.Response {
	t.Helper()
	method, _, _ := strings.Cut(raw, " ")
	res, err := http.ReadResponse(b, &http.Request{Method: method})
	if err != nil {
		t.Fatalf("read the answer: %v", err)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("read the answer's body: %v", err)
	}
	res.Body = io.NopCloser(strings.NewReader(string(body)))
	return res
}

func bodyOf(t *testing.T, res *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func hello(w http.ResponseWriter, r *http.Request) {
	b, _ := io.ReadAll(r.Body)
	w.Header().Set("X-Seen-For", r.Header.Get("X-Forwarded-For"))
	w.Header().Set("X-Seen-Id", r.Header.Get("X-Request-Id"))
	w.Header().Set("X-Seen-Host", r.Host)
	fmt.Fprintf(w, "%s %s %s", r.Method, r.RequestURI, b)
}

func TestRequestAndAnswerPass(t *testing.T) {
	_, address := simple(t, http.HandlerFunc(hello))
	c := dial(t, address)
	b := bufio.NewReader(c)
	for _, raw := range []string{
		"GET /a?b=c HTTP/1.1\r\nHost: web.test\r\nX-Forwarded-For: 6.6.6.6\r\nX-Request-Id: my-request-1\r\n\r\n",
		"POST /a HTTP/1.1\r\nHost: WEB.test\r\nContent-Length: 5\r\nX-Request-Id: my-request-1\r\n\r\nhello",
		"POST /a HTTP/1.1\r\nHost: web.test:80\r\nTransfer-Encoding: chunked\r\nX-Request-Id: my-request-1\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
		"HEAD /a HTTP/1.1\r\nHost: web.test\r\nX-Request-Id: my-request-1\r\n\r\n",
	} {
		if _, err := io.WriteString(c, raw); err != nil {
			t.Fatal(err)
		}
		res := read(t, c, b, raw)
		body := bodyOf(t, res)
		if res.StatusCode != 200 || res.Header.Get("X-Seen-For") != "127.0.0.1" || res.Header.Get("X-Seen-Id") != "my-request-1" {
			t.Errorf("%q: %v %v %q", raw, res.Status, res.Header, body)
		}
		if strings.HasPrefix(raw, "POST") && body != "POST /a hello" {
			t.Errorf("%q: body %q", raw, body)
		}
	}
}

func TestUnknownHostAndNobodyReady(t *testing.T) {
	r, address := simple(t, http.HandlerFunc(hello))
	res := ask(t, address, "GET / HTTP/1.1\r\nHost: other.test\r\n\r\n")
	if body := bodyOf(t, res); res.StatusCode != 404 || !strings.Contains(body, res.Header.Get("X-Request-Id")) {
		t.Errorf("unknown host: %s %q", res.Status, body)
	}
	r.table.Fleets = nil
	r.set()
	res = ask(t, address, "GET / HTTP/1.1\r\nHost: web.test\r\n\r\n")
	if res.StatusCode != 503 || res.Header.Get("Retry-After") == "" {
		t.Errorf("nobody ready: %s", res.Status)
	}
}

func TestOlderTableIsRefused(t *testing.T) {
	r, _ := simple(t, http.HandlerFunc(hello))
	old := r.table
	r.set()
	if err := r.client.Set(t.Context(), old); !errors.Is(err, kiln.ErrConflict) {
		t.Errorf("an older table: %v, want a conflict", err)
	}
}

func bufioReader(r io.Reader) *bufio.Reader { return bufio.NewReader(r) }
