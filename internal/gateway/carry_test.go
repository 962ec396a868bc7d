package gateway

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/kilnproject/kiln"
)

// h2Client speaks HTTP/2 with prior knowledge.
func h2Client(t *testing.T) *http.Client {
	tr := &http2.Transport{AllowHTTP: true, DialTLSContext: func(ctx context.Context, network, address string, _ *tls.Config) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, address)
	}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// h2Upstream serves a handler over HTTP/2 with prior knowledge, and HTTP/1.
func h2Upstream(t *testing.T, h http.Handler) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h, Protocols: new(http.Protocols)}
	s.Protocols.SetUnencryptedHTTP2(true)
	s.Protocols.SetHTTP1(true)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	return l.Addr().String()
}

// grpcLike answers with an early body, the request's body, and trailers.
func grpcLike(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Trailer", "Grpc-Status")
	w.WriteHeader(http.StatusOK)
	fmt.Fprintf(w, "%d %s ", r.ProtoMajor, r.Header.Get("X-Forwarded-For"))
	b, _ := io.ReadAll(r.Body)
	_, _ = w.Write(b)
	w.Header().Set("Grpc-Status", "7")
}

func TestEveryPairOfProtocols(t *testing.T) {
	for _, protocol := range []kiln.Protocol{kiln.ProtocolHTTP, kiln.ProtocolH2C} {
		up := h2Upstream(t, http.HandlerFunc(grpcLike))
		r := start(t)
		address := r.listen("127.0.0.1")
		r.table.HTTP = []string{address}
		r.route("web.test", protocol, portNumber(t, up), "127.0.0.1")
		r.set()
		major := map[kiln.Protocol]string{kiln.ProtocolHTTP: "1", kiln.ProtocolH2C: "2"}[protocol]
		h1 := &http.Client{Transport: &http.Transport{}}
		t.Cleanup(h1.CloseIdleConnections)
		for name, client := range map[string]*http.Client{"HTTP/1.1": h1, "HTTP/2": h2Client(t)} {
			for _, size := range []int{0, 5, 300_000} {
				body := strings.Repeat("x", size)
				req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+address+"/a/b?c", strings.NewReader(body))
				if err != nil {
					t.Fatal(err)
				}
				req.Host = "web.test"
				res, err := client.Do(req)
				if err != nil {
					t.Fatalf("%s to %s: %v", name, protocol, err)
				}
				got, err := io.ReadAll(res.Body)
				_ = res.Body.Close()
				if want := major + " 127.0.0.1 " + body; err != nil || string(got) != want || res.Trailer.Get("Grpc-Status") != "7" {
					t.Errorf("%s to %s, %d bytes: %.30q of %d, trailers %v, %v", name, protocol, size, got, len(got), res.Trailer, err)
				}
			}
		}
		_ = r.stop()
	}
}

func TestEarlyHintsPass(t *testing.T) {
	_, address := simple(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "</a.css>")
		w.WriteHeader(http.StatusEarlyHints)
		w.WriteHeader(http.StatusOK)
	}))
	h1 := &http.Client{Transport: &http.Transport{}}
	defer h1.CloseIdleConnections()
	for name, client := range map[string]*http.Client{"HTTP/1.1": h1, "HTTP/2": h2Client(t)} {
		hints := 0
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			if code == http.StatusEarlyHints && h.Get("Link") == "</a.css>" {
				hints++
			}
			return nil
		}})
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/", nil)
		req.Host = "web.test"
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != 200 || hints != 1 {
			t.Errorf("%s: %s with %d hints", name, res.Status, hints)
		}
	}
}

func TestExpectContinueIsTheInstancesChoice(t *testing.T) {
	_, address := simple(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/no" {
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			return
		}
		hello(w, r)
	}))
	c := dial(t, address)
	b := bufio.NewReader(c)
	fmt.Fprint(c, "POST /yes HTTP/1.1\r\nHost: web.test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
	if line, err := b.ReadString('\n'); err != nil || line != "HTTP/1.1 100 Continue\r\n" {
		t.Fatalf("first line %q, %v", line, err)
	}
	_, _ = b.ReadString('\n')
	fmt.Fprint(c, "hello")
	if res := read(t, c, b, "POST"); bodyOf(t, res) != "POST /yes hello" {
		t.Errorf("accepted: %s", res.Status)
	}
	fmt.Fprint(c, "POST /no HTTP/1.1\r\nHost: web.test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
	if res := read(t, c, b, "POST"); res.StatusCode != 413 || !res.Close {
		t.Errorf("refused: %s, close %v", res.Status, res.Close)
	}
}

func TestServerSentEventsAreSentAtOnce(t *testing.T) {
	next := make(chan string)
	_, address := simple(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for {
			select {
			case s, ok := <-next:
				if !ok {
					return
				}
				fmt.Fprintf(w, "data: %s\n\n", s)
				_ = http.NewResponseController(w).Flush()
			case <-r.Context().Done():
				return
			}
		}
	}))
	c := dial(t, address)
	fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: web.test\r\n\r\n")
	b := bufio.NewReader(c)
	next <- "one"
	res, err := http.ReadResponse(b, nil)
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(res.Body)
	for _, want := range []string{"one", "two"} {
		if want == "two" {
			next <- want
		}
		line, err := lines.ReadString('\n')
		if err != nil || line != "data: "+want+"\n" {
			t.Fatalf("%q, %v, want event %s", line, err, want)
		}
		_, _ = lines.ReadString('\n')
	}
	close(next)
	if _, err := io.ReadAll(lines); err != nil {
		t.Errorf("the end: %v", err)
	}
}

func TestUpgradeIsATunnel(t *testing.T) {
	_, address := simple(t, http.HandlerFunc(echoUpgrade))
	c := dial(t, address)
	fmt.Fprint(c, "GET /ws HTTP/1.1\r\nHost: web.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nearly ")
	b := bufio.NewReader(c)
	res, err := http.ReadResponse(b, nil)
	if err != nil || res.StatusCode != 101 || res.Header.Get("Upgrade") != "websocket" {
		t.Fatalf("%+v, %v", res, err)
	}
	fmt.Fprint(c, "late")
	got := make([]byte, len("early late"))
	if _, err := io.ReadFull(b, got); err != nil || string(got) != "early late" {
		t.Errorf("echo %q, %v", got, err)
	}
}

// echoUpgrade switches protocols and sends back what it gets.
func echoUpgrade(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") != "websocket" {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer func() { _ = c.Close() }()
	fmt.Fprint(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	_, _ = io.Copy(c, rw)
}

func TestUpgradeToHTTP2IsNotPassedOn(t *testing.T) {
	seen := make(chan http.Header, 1)
	_, address := simple(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen <- r.Header }))
	ask(t, address, "GET / HTTP/1.1\r\nHost: web.test\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAAA\r\n\r\n")
	if h := <-seen; h.Get("Upgrade") != "" || h.Get("Http2-Settings") != "" || h.Get("Connection") != "" {
		t.Errorf("the instance got %v", h)
	}
}

func TestLargeBodiesBothWays(t *testing.T) {
	_, address := simple(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/length" {
			w.Header().Set("Content-Length", fmt.Sprint(r.ContentLength))
		}
		_ = http.NewResponseController(w).EnableFullDuplex()
		_, _ = io.Copy(w, r.Body)
	}))
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	for _, path := range []string{"/length", "/chunked"} {
		var body io.Reader = bytes.NewReader(content)
		if path == "/chunked" {
			body = io.MultiReader(body) // hides the length
		}
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+address+path, body)
		req.Host = "web.test"
		res, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s: %d bytes came back, %v", path, len(got), err)
		}
	}
}

func TestTrailersPassOverHTTP1(t *testing.T) {
	_, address := simple(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Header().Set("Trailer", "X-Sum")
		fmt.Fprintf(w, "%s %s", b, r.Trailer.Get("X-Check"))
		w.Header().Set("X-Sum", "5")
	}))
	c := dial(t, address)
	fmt.Fprint(c, "POST / HTTP/1.1\r\nHost: web.test\r\nTransfer-Encoding: chunked\r\nTrailer: X-Check\r\n\r\n5\r\nhello\r\n0\r\nX-Check: ok\r\n\r\n")
	res := read(t, c, bufio.NewReader(c), "POST")
	if got := bodyOf(t, res); got != "hello ok" || res.Trailer.Get("X-Sum") != "5" {
		t.Errorf("%q, trailers %v", got, res.Trailer)
	}
}

func TestHostileRequestsNeverReachAnInstance(t *testing.T) {
	_, address := simple(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("the instance got %s %s", r.Method, r.RequestURI)
	}))
	for _, raw := range []string{
		"POST / HTTP/1.1\r\nHost: web.test\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX",
		"GET / HTTP/1.1\r\nHost: web.test\r\nX: a\r\n b\r\n\r\n",
		"GET / HTTP/1.1\nHost: web.test\n\n",
		"GET /../etc HTTP/1.1\r\nHost: web.test\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: web.test\r\nHost: other.test\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: web.test\r\nX: " + strings.Repeat("a", 70<<10) + "\r\n\r\n",
		"GET /" + strings.Repeat("a", 9<<10) + " HTTP/1.1\r\nHost: web.test\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: web.test\r\n" + strings.Repeat("X: a\r\n", 200) + "\r\n",
	} {
		res := ask(t, address, raw)
		if res.StatusCode < 400 || res.StatusCode > 499 || !res.Close {
			t.Errorf("%.60q: %s, close %v", raw, res.Status, res.Close)
		}
	}
}

func TestBadChunkEndsTheRequestAtTheInstance(t *testing.T) {
	begun, whole := make(chan struct{}), make(chan error, 1)
	_, address := simple(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(begun)
		_, err := io.ReadAll(r.Body)
		whole <- err
	}))
	c := dial(t, address)
	fmt.Fprint(c, "POST / HTTP/1.1\r\nHost: web.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
	<-begun // what is malformed at once is not forwarded at all
	fmt.Fprint(c, "ZZ\r\n\r\n")
	res := read(t, c, bufio.NewReader(c), "POST")
	if err := <-whole; err == nil {
		t.Error("the instance took a broken body for whole")
	}
	if res.StatusCode != 400 || !res.Close {
		t.Errorf("the client got %s, close %v", res.Status, res.Close)
	}
}

func TestOddAnswersAreBadGateways(t *testing.T) {
	for _, raw := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"HTTP/1.1 200 OK\nContent-Length: 0\n\n", "SSH-2.0-OpenSSH\r\n\r\n",
		"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
	} {
		up := serveTCP(t, "127.0.0.1:0", func(c net.Conn) {
			_, _ = bufio.NewReader(c).ReadString('\n')
			_, _ = io.WriteString(c, raw)
		})
		r := start(t)
		address := r.listen("127.0.0.1")
		r.table.HTTP = []string{address}
		r.route("web.test", kiln.ProtocolHTTP, portNumber(t, up), "127.0.0.1")
		r.set()
		if res := ask(t, address, "GET / HTTP/1.1\r\nHost: web.test\r\n\r\n"); res.StatusCode != 502 {
			t.Errorf("%q: %s", raw, res.Status)
		}
		_ = r.stop()
	}
}

func TestStreamOutlivesTheLimitsOfItsBeginning(t *testing.T) {
	up := h2Upstream(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := http.NewResponseController(w)
		_ = c.EnableFullDuplex()
		_ = c.Flush()
		b := make([]byte, 100)
		for {
			n, err := r.Body.Read(b)
			_, _ = w.Write(b[:n])
			_ = c.Flush()
			if err != nil {
				return
			}
		}
	}))
	const limit = 700 * time.Millisecond
	r := start(t, func(o *Options) { o.Limits.Answer = limit })
	address := r.listen("127.0.0.1")
	r.table.HTTP = []string{address}
	r.route("h1.test", kiln.ProtocolHTTP, portNumber(t, up), "127.0.0.1")
	r.route("h2.test", kiln.ProtocolH2C, portNumber(t, up), "127.0.0.1")
	r.set()
	h1 := &http.Client{Transport: &http.Transport{}}
	t.Cleanup(h1.CloseIdleConnections)
	var wg sync.WaitGroup
	for name, client := range map[string]*http.Client{"HTTP/1.1": h1, "HTTP/2": h2Client(t)} {
		for _, host := range []string{"h1.test", "h2.test"} {
			wg.Go(func() {
				body, feed := io.Pipe()
				req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+address+"/", body)
				req.Host = host
				go func() { _, _ = io.WriteString(feed, "one ") }()
				res, err := client.Do(req)
				if err != nil {
					t.Errorf("%s to %s: %v", name, host, err)
					return
				}
				defer res.Body.Close()
				<-time.After(2*limit + 2*sweepEvery)
				go func() {
					_, _ = io.WriteString(feed, "two")
					_ = feed.Close()
				}()
				if got, err := io.ReadAll(res.Body); err != nil || string(got) != "one two" {
					t.Errorf("%s to %s: %q, %v", name, host, got, err)
				}
			})
		}
	}
	wg.Wait()
}

func TestIPv6Clients(t *testing.T) {
	up := upstreamOn(t, "127.0.0.1:0", http.HandlerFunc(hello))
	r := start(t)
	address := r.listen("::1")
	r.table.HTTP = []string{address}
	r.route("web.test", kiln.ProtocolHTTP, portNumber(t, up.Addr), "127.0.0.1")
	r.set()
	res := ask(t, address, "GET / HTTP/1.1\r\nHost: web.test\r\n\r\n")
	if res.StatusCode != 200 || res.Header.Get("X-Seen-For") != "::1" {
		t.Errorf("%s for %s", res.Status, res.Header.Get("X-Seen-For"))
	}
}

// TestSlowReaderHoldsTheInstanceBack proves back-pressure: what nobody reads
// is not read from the instance either.
func TestSlowReaderHoldsTheInstanceBack(t *testing.T) {
	var written atomic.Int64
	_, address := simple(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b := make([]byte, 64<<10)
		for r.Context().Err() == nil {
			n, err := w.Write(b)
			if err != nil {
				return
			}
			written.Add(int64(n))
		}
	}))
	c := dial(t, address)
	fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: web.test\r\n\r\n")
	stalled := int64(-1)
	for now := written.Load(); now != stalled || now == 0; now = written.Load() {
		stalled = now
		<-time.After(300 * time.Millisecond)
	}
	// The sockets' buffers of both connections hold it all.
	if stalled > 64<<20 {
		t.Errorf("%d bytes were taken for a client that reads nothing", stalled)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := io.CopyN(io.Discard, c, 32<<20); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if grown := int64(after.TotalAlloc - before.TotalAlloc); grown > 8<<20 {
		t.Errorf("%d bytes were allocated to carry 32 MiB", grown)
	}
}
