package gateway

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kilnproject/kiln"
)

// empty takes all instances out of the table.
func (r *rig) empty() {
	r.table.Fleets = map[kiln.FleetID][]kiln.Endpoint{testFleet: {}}
	r.set()
}

func TestDrainWaitsForRequestsInFlight(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	r, address := simple(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(entered)
		<-leave
		fmt.Fprint(w, "done")
	}))
	answered := make(chan string, 1)
	c := dial(t, address)
	fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: web.test\r\n\r\n")
	go func() {
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			answered <- err.Error()
			return
		}
		b, _ := io.ReadAll(res.Body)
		answered <- string(b)
	}()
	<-entered
	if err := r.client.Drain(t.Context(), "web-0", time.Minute); !errors.Is(err, kiln.ErrConflict) {
		t.Errorf("drain of a listed instance: %v, want a conflict", err)
	}
	r.empty()
	drained := make(chan error, 1)
	go func() { drained <- r.client.Drain(t.Context(), "web-0", time.Minute) }()
	select {
	case err := <-drained:
		t.Fatalf("drained with a request in flight: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	close(leave)
	if err := <-drained; err != nil {
		t.Error(err)
	}
	if got := <-answered; got != "done" {
		t.Errorf("the request in flight got %q", got)
	}
	if err := r.client.Drain(t.Context(), "unknown", 0); err != nil {
		t.Errorf("drain of an unknown instance: %v", err)
	}
}

func TestDrainClosesIdleConnectionsAtOnceAndTunnelsAtTheLimit(t *testing.T) {
	var open sync.WaitGroup
	up, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/ws" {
			echoUpgrade(w, r)
		}
	}), ConnState: func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			open.Add(1)
		case http.StateClosed:
			open.Done()
		default:
		}
	}}
	go func() { _ = s.Serve(up) }()
	t.Cleanup(func() { _ = s.Close() })
	r := start(t)
	address := r.listen("127.0.0.1")
	r.table.HTTP = []string{address}
	r.route("web.test", kiln.ProtocolHTTP, portNumber(t, up.Addr().String()), "127.0.0.1")
	r.set()
	ws := dial(t, address)
	fmt.Fprint(ws, "GET /ws HTTP/1.1\r\nHost: web.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	b := bufio.NewReader(ws)
	if res, err := http.ReadResponse(b, nil); err != nil || res.StatusCode != 101 {
		t.Fatal(res, err)
	}
	open.Add(-1) // a hijacked connection is not reported as closed
	ask(t, address, "GET / HTTP/1.1\r\nHost: web.test\r\n\r\n")
	r.empty()
	open.Wait() // the idle connection is closed by the new table already
	begin := time.Now()
	if err := r.client.Drain(t.Context(), "web-0", 150*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took < 150*time.Millisecond {
		t.Errorf("the tunnel was not given its time: %v", took)
	}
	if _, err := b.ReadByte(); err == nil {
		t.Error("the tunnel is open after the limit")
	}
	all, err := r.settled()
	if err != nil || len(all) != 1 || all[0].InFlight != 0 || all[0].Requests != 2 || all[0].Status[0] != 1 || all[0].Status[1] != 1 {
		t.Errorf("%+v, %v", all, err)
	}
}

func TestRefusedAttemptGoesToAnotherInstanceAndIsReported(t *testing.T) {
	up := upstreamOn(t, "127.0.0.2:0", http.HandlerFunc(hello))
	r := start(t)
	address := r.listen("127.0.0.1")
	r.table.HTTP = []string{address}
	// Nobody listens on that port of 127.0.0.3.
	r.route("web.test", kiln.ProtocolHTTP, portNumber(t, up.Addr), "127.0.0.3", "127.0.0.2")
	r.set()
	failures, err := r.client.Failures(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		for _, raw := range []string{"GET / HTTP/1.1\r\nHost: web.test\r\n\r\n", "POST / HTTP/1.1\r\nHost: web.test\r\nContent-Length: 1\r\n\r\nx"} {
			if res := ask(t, address, raw); res.StatusCode != 200 {
				t.Fatalf("%s", res.Status)
			}
		}
	}
	if id := <-failures; id != "web-0" {
		t.Errorf("%s was reported", id)
	}
	all, err := r.settled()
	if err != nil || len(all) != 3 {
		t.Fatalf("%+v, %v", all, err)
	}
	if all[1].Failures != 1 || all[2].Failures != 0 || all[2].Status[1] != 40 || all[0].Requests != 41 {
		t.Errorf("fleet %+v\nweb-0 %+v\nweb-1 %+v", all[0], all[1], all[2])
	}
}

// dropper closes every connection after it read a request.
func dropper(t *testing.T, address string) (string, *atomic.Int64) {
	t.Helper()
	var n atomic.Int64
	return serveTCP(t, address, func(c net.Conn) {
		if _, err := bufio.NewReader(c).ReadString('\n'); err == nil {
			n.Add(1)
		}
	}), &n
}

func TestDroppedGetIsRepeatedOnceAndPostNever(t *testing.T) {
	address2, n := dropper(t, "127.0.0.2:0")
	port := portNumber(t, address2)
	_, other := dropper(t, fmt.Sprintf("127.0.0.3:%d", port))
	r := start(t)
	address := r.listen("127.0.0.1")
	r.table.HTTP = []string{address}
	r.route("web.test", kiln.ProtocolHTTP, port, "127.0.0.2", "127.0.0.3")
	r.set()
	if res := ask(t, address, "GET / HTTP/1.1\r\nHost: web.test\r\n\r\n"); res.StatusCode != 502 || n.Load() != 1 || other.Load() != 1 {
		t.Errorf("GET: %s, %d and %d attempts", res.Status, n.Load(), other.Load())
	}
	r.set() // no suspects in a new table
	if res := ask(t, address, "POST / HTTP/1.1\r\nHost: web.test\r\nContent-Length: 1\r\n\r\nx"); res.StatusCode != 502 || n.Load()+other.Load() != 3 {
		t.Errorf("POST: %s, %d and %d attempts", res.Status, n.Load(), other.Load())
	}
}

func TestStaleConnectionIsNoFailure(t *testing.T) {
	r, address := simple(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		// The connection is said to stay, and closed all the same.
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		_ = c.Close()
	}))
	c := dial(t, address)
	b := bufio.NewReader(c)
	for i := range 50 {
		raw := "GET / HTTP/1.1\r\nHost: web.test\r\n\r\n"
		if i%2 == 1 {
			raw = "HEAD / HTTP/1.1\r\nHost: web.test\r\n\r\n"
		}
		fmt.Fprint(c, raw)
		if res := read(t, c, b, raw); res.StatusCode != 200 {
			t.Fatalf("request %d: %s", i, res.Status)
		}
	}
	all, err := r.settled()
	if err != nil || all[1].Failures != 0 || all[1].Status[1] != 50 {
		t.Errorf("%+v, %v", all, err)
	}
}

func TestClientThatLeftIsNoticed(t *testing.T) {
	left := make(chan struct{})
	_, address := simple(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
		close(left)
	}))
	c := dial(t, address)
	fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: web.test\r\n\r\n")
	_ = c.Close()
	select {
	case <-left:
	case <-time.After(10 * time.Second):
		t.Error("the instance still works for a client that left")
	}
}

func TestSlowInstanceIsAGatewayTimeout(t *testing.T) {
	_, address := simple(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
	}), func(o *Options) { o.Limits.Answer = 100 * time.Millisecond })
	if res := ask(t, address, "GET / HTTP/1.1\r\nHost: web.test\r\n\r\n"); res.StatusCode != 504 {
		t.Error(res.Status)
	}
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/", nil)
	req.Host = "web.test"
	res, err := h2Client(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if res.StatusCode != 504 {
		t.Errorf("HTTP/2: %s", res.Status)
	}
}

func TestSlowHeadAndSlowBodyTimeOut(t *testing.T) {
	_, address := simple(t, http.HandlerFunc(hello), func(o *Options) {
		o.Limits.HeadTime, o.Limits.Body = 100*time.Millisecond, 100*time.Millisecond
	})
	for _, raw := range []string{
		"GET / HTTP/1.1\r\nHost: web", "POST / HTTP/1.1\r\nHost: web.test\r\nContent-Length: 5\r\n\r\nhe",
		"POST / HTTP/1.1\r\nHost: web.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe",
	} {
		if res := ask(t, address, raw); res.StatusCode != 408 || !res.Close {
			t.Errorf("%q: %s", raw, res.Status)
		}
	}
}

func TestTooManyConnectionsAreRefusedPolitely(t *testing.T) {
	_, address := simple(t, http.HandlerFunc(hello), func(o *Options) { o.Limits.Connections = 4 })
	for range 2 { // half of them for one address
		c := dial(t, address)
		fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: web.test\r\n\r\n")
		read(t, c, bufio.NewReader(c), "GET")
	}
	c := dial(t, address)
	if res := read(t, c, bufio.NewReader(c), "GET"); res.StatusCode != 503 || !res.Close {
		t.Error(res.Status)
	}
}

func TestTCPRouteWithHalfCloses(t *testing.T) {
	up := serveTCP(t, "127.0.0.1:0", func(c net.Conn) {
		b, _ := io.ReadAll(c) // until the client's side ends
		_, _ = c.Write(append([]byte("got "), b...))
	})
	r := start(t)
	address := r.listen("127.0.0.1")
	r.route("", kiln.ProtocolTCP, portNumber(t, up), "127.0.0.9", "127.0.0.1")
	r.table.Public[0].Route.Listen = address
	r.set()
	for range 5 { // 127.0.0.9 refuses
		c := dial(t, address)
		fmt.Fprint(c, "hello")
		_ = c.(*net.TCPConn).CloseWrite()
		if b, err := io.ReadAll(c); err != nil || string(b) != "got hello" {
			t.Errorf("%q, %v", b, err)
		}
	}
}

func TestSwitchUnderLoadFailsNothing(t *testing.T) {
	one := upstreamOn(t, "127.0.0.2:0", http.HandlerFunc(hello))
	port := portNumber(t, one.Addr)
	upstreamOn(t, fmt.Sprintf("127.0.0.3:%d", port), http.HandlerFunc(hello))
	r := start(t)
	address := r.listen("127.0.0.1")
	r.table.HTTP = []string{address}
	r.route("web.test", kiln.ProtocolHTTP, port, "127.0.0.2", "127.0.0.3")
	r.set()
	both := r.table.Fleets[testFleet]
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var n atomic.Int64
	for i := range 8 {
		raw := "GET / HTTP/1.1\r\nHost: web.test\r\n\r\n"
		if i%2 == 0 {
			raw = "POST / HTTP/1.1\r\nHost: web.test\r\nContent-Length: 2\r\n\r\nhi"
		}
		c := dial(t, address)
		wg.Go(func() {
			b := bufio.NewReader(c)
			for ctx.Err() == nil {
				fmt.Fprint(c, raw)
				res, err := http.ReadResponse(b, nil)
				if err != nil || res.StatusCode != 200 {
					t.Errorf("%v, %v", res, err)
					return
				}
				_, _ = io.Copy(io.Discard, res.Body)
				n.Add(1)
			}
		})
	}
	for i := range 30 {
		r.table.Fleets = map[kiln.FleetID][]kiln.Endpoint{testFleet: {both[i%2]}}
		r.set()
		if err := r.client.Drain(t.Context(), both[(i+1)%2].Instance, time.Minute); err != nil {
			t.Error(err)
		}
	}
	stop()
	wg.Wait()
	if n.Load() == 0 {
		t.Error("nothing was asked")
	}
}

// settled measures once nothing is in flight: a client has its answer before
// the answer is counted.
func (r *rig) settled() ([]kiln.Measurement, error) {
	for {
		all, err := r.client.Measure(r.t.Context())
		if err != nil || len(all) == 0 || all[0].InFlight == 0 {
			return all, err
		}
	}
}

func TestKilledInstanceFailsNoGet(t *testing.T) {
	slow := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select { // some requests are in flight when it dies
		case <-time.After(2 * time.Millisecond):
		case <-r.Context().Done():
		}
		fmt.Fprint(w, "ok")
	})
	one := upstreamOn(t, "127.0.0.2:0", slow)
	port := portNumber(t, one.Addr)
	two := upstreamOn(t, fmt.Sprintf("127.0.0.3:%d", port), slow)
	upstreamOn(t, fmt.Sprintf("127.0.0.4:%d", port), slow)
	r := start(t)
	address := r.listen("127.0.0.1")
	r.table.HTTP = []string{address}
	r.route("web.test", kiln.ProtocolHTTP, port, "127.0.0.2", "127.0.0.3", "127.0.0.4")
	r.set()
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var n atomic.Int64
	hundred := make(chan struct{}, 1)
	for range 16 {
		c := dial(t, address)
		wg.Go(func() {
			b := bufio.NewReader(c)
			for ctx.Err() == nil {
				fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: web.test\r\n\r\n")
				res, err := http.ReadResponse(b, nil)
				if err != nil || res.StatusCode != 200 {
					t.Errorf("%v, %v", res, err)
					return
				}
				_, _ = io.Copy(io.Discard, res.Body)
				if n.Add(1)%200 == 0 {
					select {
					case hundred <- struct{}{}:
					default:
					}
				}
			}
		})
	}
	<-hundred
	_ = one.Close()
	<-hundred
	_ = two.Close() // the last one carries all
	<-hundred
	<-hundred
	stop()
	wg.Wait()
}
