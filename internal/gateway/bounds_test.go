package gateway

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
)

// lowat is a TCP socket's bound of what is not on its way.
func lowat(t *testing.T, c net.Conn) int {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	_ = raw.Control(func(fd uintptr) { n, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT) })
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestASlowPeerIsToldFromOneThatStandsStill: with the megabytes that a socket
// takes by itself, nothing would move for longer than Limits.Write.
func TestASlowPeerIsToldFromOneThatStandsStill(t *testing.T) {
	client, far := tcpPair(t)
	boundClient(client)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	up, err := connectTo(t.Context(), netip.MustParseAddrPort(l.Addr().String()))
	if err != nil {
		t.Fatal(err)
	}
	defer up.Close()
	accepted := &watched{Conn: far}
	g := newTestGateway(t)
	(&listener{g: g, name: "none"}).admit(accepted)
	if <-g.ports.served(); !accepted.touched {
		t.Error("an accepted connection is left as it is")
	}
	if got := lowat(t, client); got != unsent {
		t.Errorf("a client's socket takes %d bytes ahead, want %d", got, unsent)
	}
	if got := lowat(t, up); got != unsent {
		t.Errorf("an instance's socket takes %d bytes ahead, want %d", got, unsent)
	}
}

// watched tells whether options of a connection's socket were set.
type watched struct {
	net.Conn
	touched bool
}

func (w *watched) SyscallConn() (syscall.RawConn, error) {
	w.touched = true
	return w.Conn.(syscall.Conn).SyscallConn()
}

func TestTunnelsCountForTheirDescriptors(t *testing.T) {
	up := serveTCP(t, "127.0.0.1:0", func(c net.Conn) { _, _ = io.Copy(c, c) })
	ws := upstreamOn(t, "127.0.0.1:0", http.HandlerFunc(echoUpgrade))
	r := start(t, func(o *Options) { o.Limits.Connections = 2 * (1 + pipes) })
	tcp, web := r.listen("127.0.0.1"), r.listen("127.0.0.1")
	r.route("", kiln.ProtocolTCP, portNumber(t, up), "127.0.0.1")
	r.table.Public[0].Route.Listen = tcp
	r.table.HTTP = []string{web}
	r.route("web.test", kiln.ProtocolHTTP, portNumber(t, ws.Addr), "127.0.0.1")
	r.set()
	echoes := func(c net.Conn) bool {
		fmt.Fprint(c, "x")
		_, err := io.ReadFull(c, make([]byte, 1))
		return err == nil
	}
	const upgrade = "GET / HTTP/1.1\r\nHost: web.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
	one := dial(t, tcp)
	if !echoes(one) {
		t.Fatal("one tunnel is not carried")
	}
	if echoes(dial(t, tcp)) {
		t.Error("a second tunnel of one client was carried beyond the bound")
	}
	_ = one.Close()
	waitFor(t, func() bool {
		c := dial(t, tcp)
		defer c.Close()
		return echoes(c)
	})
	waitFor(t, func() bool {
		c := dial(t, web)
		defer c.Close()
		fmt.Fprint(c, upgrade)
		res := readHeadOf(t, c)
		if res.StatusCode != 101 {
			return false
		}
		other := dial(t, web)
		defer other.Close()
		fmt.Fprint(other, upgrade)
		if res := readHeadOf(t, other); res.StatusCode != 503 {
			t.Errorf("a second tunnel: %s", res.Status)
		}
		return true
	})
}

func readHeadOf(t *testing.T, c net.Conn) *http.Response {
	t.Helper()
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return &http.Response{Status: err.Error()}
	}
	_ = res.Body.Close()
	return res
}

// waitFor tries until it works.
func waitFor(t *testing.T, works func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !works(); {
		if time.Now().After(end) {
			t.Fatal("it never did")
		}
		<-time.After(5 * time.Millisecond)
	}
}

func TestRequestsOfOneHTTP2ConnectionCount(t *testing.T) {
	leave := make(chan struct{})
	_, address := simple(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-leave }),
		func(o *Options) { o.Limits.Connections = 8 }) // four of one client: the connection and three
	h := newH2(t, address)
	for id := uint32(1); id <= 7; id += 2 {
		h.request(id, "GET", "/")
	}
	if id, status := h.status(); id != 7 || status != "503" {
		t.Errorf("request %d: %s, want the fourth refused", id, status)
	}
	close(leave)
	for range 3 {
		if id, status := h.status(); status != "200" {
			t.Errorf("request %d: %s", id, status)
		}
	}
	h.request(9, "GET", "/")
	if _, status := h.status(); status != "200" {
		t.Errorf("after the others: %s", status)
	}
}

// rawH2 is a client that speaks frames.
type rawH2 struct {
	t *testing.T
	c net.Conn
	*http2.Framer
	block  bytes.Buffer
	fields *hpack.Encoder
}

func newH2(t *testing.T, address string, settings ...http2.Setting) *rawH2 {
	t.Helper()
	h := &rawH2{t: t, c: dial(t, address)}
	fmt.Fprint(h.c, preface)
	h.Framer = http2.NewFramer(h.c, h.c)
	h.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	h.fields = hpack.NewEncoder(&h.block)
	_ = h.WriteSettings(settings...)
	return h
}

func (h *rawH2) request(id uint32, method, path string) {
	h.block.Reset()
	for _, f := range [][2]string{{":method", method}, {":path", path}, {":authority", "web.test"}, {":scheme", "http"}} {
		_ = h.fields.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	_ = h.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: h.block.Bytes(), EndStream: method == "GET", EndHeaders: true})
}

// next returns the next frame that is of a stream.
func (h *rawH2) next() http2.Frame {
	h.t.Helper()
	for {
		f, err := h.ReadFrame()
		if err != nil {
			h.t.Fatal(err)
		}
		if s, ok := f.(*http2.SettingsFrame); ok && !s.IsAck() {
			_ = h.WriteSettingsAck()
		}
		if f.Header().StreamID != 0 {
			return f
		}
	}
}

func (h *rawH2) status() (uint32, string) {
	h.t.Helper()
	for {
		switch f := h.next().(type) {
		case *http2.MetaHeadersFrame:
			if s := f.PseudoValue("status"); s != "" {
				return f.StreamID, s
			}
		case *http2.RSTStreamFrame:
			return f.StreamID, "reset"
		}
	}
}

// TestWantOfDescriptorsIsNobodysFault takes away the right to open files while
// the gateway must connect.
func TestWantOfDescriptorsIsNobodysFault(t *testing.T) {
	var asked atomic.Int64
	up := serveTCP(t, "127.0.0.1:0", func(c net.Conn) {
		asked.Add(1)
		_, _ = bufio.NewReader(c).ReadString('\n')
		fmt.Fprint(c, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
	})
	r := start(t)
	address := r.listen("127.0.0.1")
	r.table.HTTP = []string{address}
	r.route("web.test", kiln.ProtocolHTTP, portNumber(t, up), "127.0.0.1")
	r.set()
	c := dial(t, address)
	b := bufio.NewReader(c)
	h, id := newH2(t, address), uint32(1)
	for name, try := range map[string]func() string{
		"HTTP/1.1": func() string {
			fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: web.test\r\n\r\n")
			return read(t, c, b, "GET").Status[:3]
		},
		"HTTP/2": func() string {
			h.request(id, "GET", "/")
			id += 2
			_, status := h.status()
			return status
		},
	} {
		before := asked.Load()
		if got := try(); got != "200" {
			t.Fatalf("%s: %s", name, got)
		}
		withoutDescriptors(t, func() {
			if got := try(); got != "503" {
				t.Errorf("%s without descriptors: %s", name, got)
			}
		})
		if got := try(); got != "200" || asked.Load() != before+2 {
			t.Errorf("%s with descriptors: %s, the instance was asked %d times", name, got, asked.Load()-before)
		}
	}
	all, err := r.settled()
	if err != nil || all[0].Failures != 2 || all[1].Failures != 0 {
		t.Errorf("fleet and instance: %+v, %v", all, err)
	}
}

func withoutDescriptors(t *testing.T, f func()) {
	t.Helper()
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
			t.Error(err)
		}
	}()
	f()
}

// deaf listens on an address and takes no connection: its queue is full.
func deaf(t *testing.T, address netip.AddrPort) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	sa := &unix.SockaddrInet4{Port: int(address.Port()), Addr: address.Addr().As4()}
	if err := errors.Join(unix.Bind(fd, sa), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	for { // the queue takes a few
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		c, err := connectTo(ctx, address)
		cancel()
		if err != nil {
			return
		}
		t.Cleanup(func() { _ = c.Close() })
	}
}

func TestAConnectionThatTakesTooLongIsTriedElsewhere(t *testing.T) {
	up := upstreamOn(t, "127.0.0.3:0", http.HandlerFunc(hello))
	port := portNumber(t, up.Addr)
	deaf(t, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), port))
	r := start(t)
	address := r.listen("127.0.0.1")
	r.table.HTTP = []string{address}
	r.route("web.test", kiln.ProtocolHTTP, port, "127.0.0.2", "127.0.0.3")
	r.set()
	h := newH2(t, address)
	for id := uint32(1); id < 16; id += 2 { // whoever is first
		h.request(id, "GET", "/")
		if _, status := h.status(); status != "200" {
			t.Fatalf("request %d: %s", id, status)
		}
	}
	all, err := r.settled()
	if err != nil || len(all) != 3 || all[1].Failures != 1 || all[2].Status[1] != 8 {
		t.Errorf("%+v, %v", all, err)
	}
}

// TestAnHTTP2ClientThatTakesNothingIsLetGo has a window of no bytes.
func TestAnHTTP2ClientThatTakesNothingIsLetGo(t *testing.T) {
	gone := make(chan struct{})
	_, address := simple(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(gone)
		for r.Context().Err() == nil {
			if _, err := w.Write(make([]byte, 1<<20)); err != nil {
				return
			}
		}
	}), func(o *Options) { o.Limits.Write = 100 * time.Millisecond })
	h := newH2(t, address, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	h.request(1, "GET", "/")
	if _, status := h.status(); status != "200" {
		t.Fatal(status)
	}
	for {
		if _, ok := h.next().(*http2.RSTStreamFrame); ok {
			break
		}
	}
	<-gone
}

func TestAnInstanceThatStopsInItsAnswerIsLetGo(t *testing.T) {
	up := h2Upstream(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "half")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	r := start(t, func(o *Options) { o.Limits.Stream = 100 * time.Millisecond })
	address := r.listen("127.0.0.1")
	r.table.HTTP = []string{address}
	r.route("h1.test", kiln.ProtocolHTTP, portNumber(t, up), "127.0.0.1")
	r.route("h2.test", kiln.ProtocolH2C, portNumber(t, up), "127.0.0.1")
	r.set()
	h1 := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(h1.CloseIdleConnections)
	for name, client := range map[string]*http.Client{"HTTP/1.1": h1, "HTTP/2": h2Client(t)} {
		for _, host := range []string{"h1.test", "h2.test"} {
			req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/", nil)
			req.Host = host
			res, err := client.Do(req)
			if err != nil {
				t.Fatalf("%s to %s: %v", name, host, err)
			}
			if b, err := io.ReadAll(res.Body); err == nil || string(b) != "half" {
				t.Errorf("%s to %s: %q, %v", name, host, b, err)
			}
			_ = res.Body.Close()
		}
	}
}

func TestInterimAnswersAreBounded(t *testing.T) {
	up := serveTCP(t, "127.0.0.1:0", func(c net.Conn) {
		_, _ = bufio.NewReader(c).ReadString('\n')
		for range maxInterims + 1 {
			fmt.Fprint(c, "HTTP/1.1 103 Early Hints\r\n\r\n")
		}
		fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	})
	r := start(t)
	address := r.listen("127.0.0.1")
	r.table.HTTP = []string{address}
	r.route("web.test", kiln.ProtocolHTTP, portNumber(t, up), "127.0.0.1")
	r.set()
	if res := ask(t, address, "GET / HTTP/1.0\r\nHost: web.test\r\n\r\n"); res.StatusCode != 502 {
		t.Errorf("HTTP/1.0: %s", res.Status)
	}
	h := newH2(t, address)
	h.request(1, "GET", "/")
	status := "103"
	for status == "103" {
		_, status = h.status()
	}
	if status != "502" {
		t.Errorf("HTTP/2: %s", status)
	}
}

func TestLargeRequestsShareABudget(t *testing.T) {
	shared := newBudget(40 << 10)
	one := buffer{b: make([]byte, clientRead), budget: shared}
	two := buffer{b: make([]byte, clientRead), budget: shared}
	endless := strings.NewReader(strings.Repeat("x", 1<<20))
	fill := func(b *buffer) error {
		for {
			if err := b.fill(endless, 64<<10); err != nil {
				return err
			}
		}
	}
	if err := fill(&one); !errors.Is(err, errNoRoom) || len(one.b) != 32<<10 {
		t.Errorf("the first has %d bytes: %v", len(one.b), err)
	}
	if err := fill(&two); !errors.Is(err, errNoRoom) || len(two.b) != 32<<10 {
		t.Errorf("the second has %d bytes: %v", len(two.b), err)
	}
	one.skip(len(one.bytes()))
	one.release(clientRead)
	if err := fill(&two); !errors.Is(err, errBufferFull) && !errors.Is(err, errNoRoom) {
		t.Error(err)
	}
	one.free()
	two.free()
	if left := shared.left.Load(); left != 40<<10 {
		t.Errorf("%d bytes are left of the budget in the end", left)
	}
}

func TestWithoutRoomABodyIsStreamedAndALargeHeadRefused(t *testing.T) {
	g := newTestGateway(t)
	g.room = newBudget(0)
	up := upstreamOn(t, "127.0.0.1:0", http.HandlerFunc(hello))
	r := &rig{t: t}
	r.route("web.test", kiln.ProtocolHTTP, portNumber(t, up.Addr), "127.0.0.1")
	r.table.HTTP = []string{"127.0.0.1:80"}
	g.swap(r.table)
	t.Cleanup(g.registry.close)
	near, far := tcpPair(t)
	c := newConn(g, near, &listener{g: g, name: "tcp://127.0.0.1:80"})
	served := make(chan struct{})
	go func() {
		defer close(served)
		c.serve()
	}()
	body := strings.Repeat("x", 60<<10)
	fmt.Fprintf(far, "POST / HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	if res := read(t, far, bufio.NewReader(far), "POST"); res.StatusCode != 200 || bodyOf(t, res) != "POST / "+body {
		t.Errorf("a body of 60 KiB: %s", res.Status)
	}
	<-served
	if len(c.in.b) > ample {
		t.Errorf("its buffer has %d bytes", len(c.in.b))
	}
	near, far = tcpPair(t)
	c = newConn(g, near, &listener{g: g, name: "test"})
	answer := make(chan *http.Response, 1)
	go func() {
		fmt.Fprintf(far, "GET / HTTP/1.1\r\nHost: web.test\r\nX-Large: %s", strings.Repeat("x", 30<<10))
		answer <- readHeadOf(t, far)
		_ = far.Close()
	}()
	if _, err := c.readHead(); !errors.Is(err, errNoRoom) {
		t.Error(err)
	}
	_ = near.Close()
	if res := <-answer; res.StatusCode != 503 {
		t.Errorf("a head of 30 KiB: %s", res.Status)
	}
}

// newTestGateway is a gateway whose parts are used one by one.
func newTestGateway(t *testing.T) *gateway {
	t.Helper()
	g, err := newGateway(t.Context(), t.Context(), Options{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler), Limits: testLimits()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.hangups.close)
	return g
}

func tcpPair(t *testing.T) (near, far net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	far = dial(t, l.Addr().String())
	if near, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = near.Close() })
	return near, far
}

func TestAFastBodyIsReadInLargePieces(t *testing.T) {
	g := newTestGateway(t)
	near, far := tcpPair(t)
	c := newConn(g, near, &listener{g: g, name: "test"})
	go func() { _, _ = far.Write(make([]byte, 16<<20)) }()
	for range 100 {
		if err := c.receiveBody(); err != nil {
			t.Fatal(err)
		}
		c.in.skip(len(c.in.bytes()))
	}
	if len(c.in.b) != pieceSize {
		t.Errorf("the buffer has %d bytes, want %d", len(c.in.b), pieceSize)
	}
}
