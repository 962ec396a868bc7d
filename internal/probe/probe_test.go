package probe

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kilnproject/kiln"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// longest bounds what a test waits for: only a failure takes so long, however
// busy the machine is.
const longest = 3 * time.Minute

// serve answers each connection with the bytes and closes it.
func serve(t *testing.T, answer string) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			buf := make([]byte, 1024)
			_, _ = conn.Read(buf)
			_, _ = conn.Write([]byte(answer))
			_ = conn.Close()
		}
	}()
	return netip.MustParseAddrPort(l.Addr().String())
}

func TestCheck(t *testing.T) {
	closed := serve(t, "")
	for name, c := range map[string]struct {
		answer string
		want   string // in the error; empty for none
	}{
		"ok":          {"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", ""},
		"redirect":    {"HTTP/1.1 302 Found\r\nLocation: /x\r\n\r\n", ""},
		"unavailable": {"HTTP/1.1 503 No\r\n\r\n", "GET /healthz: status 503"},
		"noise":       {"what\r\n\r\n", "malformed"},
		"nothing":     {"", "connection closed"},
		"endless":     {"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20), "connection closed"},
	} {
		err := Check(t.Context(), serve(t, c.answer), kiln.Probe{HTTP: "/healthz", Timeout: longest})
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	if err := Check(t.Context(), closed, kiln.Probe{TCP: true, Timeout: longest}); err != nil {
		t.Errorf("tcp: %v", err)
	}
}

func TestCheckRefusedAndSlow(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := netip.MustParseAddrPort(l.Addr().String())
	err = Check(t.Context(), address, kiln.Probe{HTTP: "/", Timeout: 20 * time.Millisecond})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("silent: %v", err)
	}
	_ = l.Close()
	if err := Check(t.Context(), address, kiln.Probe{HTTP: "/", Timeout: longest}); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("closed: %v", err)
	}
}

func TestH2C(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 {
			w.WriteHeader(http.StatusHTTPVersionNotSupported)
		}
		_, _ = w.Write([]byte("two"))
	}))
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	address := netip.MustParseAddrPort(s.Listener.Addr().String())
	if err := (Prober{}).Check(t.Context(), address, kiln.Probe{HTTP: "/", Timeout: longest}, kiln.ProtocolH2C); err != nil {
		t.Error(err)
	}
	status, body, err := Prober{}.Get(t.Context(), address, "/", kiln.ProtocolH2C)
	if err != nil || status != 200 || string(body) != "two" {
		t.Errorf("%d %q %v", status, body, err)
	}
}

func TestPace(t *testing.T) {
	p := newPace(kiln.Probe{Interval: 10 * time.Second})
	var got []time.Duration
	for range 11 {
		got = append(got, p.next(false)/time.Millisecond)
	}
	want := []time.Duration{1, 1, 2, 4, 8, 16, 32, 64, 128, 250, 250}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("delays %v, want %v", got, want)
		}
	}
	for range 100 {
		if d := p.next(true); d < 9*time.Second || d > 11*time.Second {
			t.Fatalf("once ready: %v", d)
		}
	}
	if d := p.next(false); d != time.Millisecond {
		t.Errorf("after having been ready: %v", d)
	}
}

func TestVerdict(t *testing.T) {
	no := errors.New("no")
	w := watcher{pace: newPace(kiln.Probe{Failures: 2})}
	for i, s := range []struct {
		err    error
		nudged bool
		report bool
		ready  bool
	}{
		{no, false, true, false},
		{nil, false, true, true},
		{nil, false, false, true},
		{no, false, false, true},
		{nil, false, false, true},
		{no, false, false, true},
		{no, false, true, false},
		{nil, false, true, true},
		{nil, true, true, true},  // the gateway wants to know
		{no, true, true, false},  // somebody else saw a failure too
		{no, false, true, false}, // still
	} {
		if got := w.observe(s.err, s.nudged); got != s.report || w.ready != s.ready {
			t.Errorf("step %d: reported %v, ready %v", i, got, w.ready)
		}
	}
}

func TestWatchSeesAServiceComeAndGo(t *testing.T) {
	var healthy atomic.Bool
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if !healthy.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	t.Cleanup(s.Close)
	reports := make(chan error, 1000)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		p := kiln.Probe{HTTP: "/", Interval: 5 * time.Millisecond, Timeout: longest, Failures: 2}
		Prober{}.Watch(ctx, netip.MustParseAddrPort(s.Listener.Addr().String()), p, kiln.ProtocolHTTP, nil, func(err error) { reports <- err })
	}()
	next := func(ready bool) {
		t.Helper()
		for err := range reports {
			if (err == nil) == ready {
				return
			}
		}
	}
	next(false)
	healthy.Store(true)
	next(true)
	healthy.Store(false)
	next(false)
	cancel()
	<-done
}
