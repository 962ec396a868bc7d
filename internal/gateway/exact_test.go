package gateway

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
)

// TestATargetIsForwardedToTheByte: what a request was matched by is what its
// instance gets, whatever the protocols.
func TestATargetIsForwardedToTheByte(t *testing.T) {
	up := h2Upstream(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.RequestURI) }))
	r := start(t)
	address := r.listen("127.0.0.1")
	r.table.HTTP = []string{address}
	r.set()
	for _, protocol := range []kiln.Protocol{kiln.ProtocolHTTP, kiln.ProtocolH2C} {
		r.table.Public = nil
		r.route("web.test", protocol, portNumber(t, up), "127.0.0.1")
		r.set()
		h, id := newH2(t, address), uint32(1)
		for _, target := range []string{"/a%2Fb|c", "//a%2Fb^c?d=|", "/a?", "/%22{}?%2f", "/a%7Cb"} {
			res := ask(t, address, "GET "+target+" HTTP/1.1\r\nHost: web.test\r\n\r\n")
			if got := bodyOf(t, res); got != target {
				t.Errorf("HTTP/1.1 to %s: %q became %q", protocol, target, got)
			}
			h.request(id, "GET", target)
			if got := h.body(); got != target {
				t.Errorf("HTTP/2 to %s: %q became %q", protocol, target, got)
			}
			id += 2
		}
	}
}

// body is that of the one request that is under way.
func (h *rawH2) body() string {
	h.t.Helper()
	var got []byte
	for {
		f := h.next()
		if d, ok := f.(*http2.DataFrame); ok {
			got = append(got, d.Data()...)
		}
		if f.Header().Flags.Has(http2.FlagDataEndStream) {
			return string(got)
		}
		if _, ok := f.(*http2.RSTStreamFrame); ok {
			return "reset"
		}
	}
}

// TestTrailersCannotSayWhoTheClientIs announces one that may pass and one that
// may not.
func TestTrailersCannotSayWhoTheClientIs(t *testing.T) {
	up := h2Upstream(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, r.Trailer)
	}))
	r := start(t)
	address := r.listen("127.0.0.1")
	r.table.HTTP = []string{address}
	for _, protocol := range []kiln.Protocol{kiln.ProtocolHTTP, kiln.ProtocolH2C} {
		r.table.Public = nil
		r.route("web.test", protocol, portNumber(t, up), "127.0.0.1")
		r.set()
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+address+"/", io.MultiReader(strings.NewReader("hi")))
		req.Host = "web.test"
		req.Trailer = http.Header{"X-Sum": {"1"}, "X-Forwarded-For": {"6.6.6.6"}, "Forwarded": {"for=6.6.6.6"}}
		res, err := h2Client(t).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if string(b) != "map[X-Sum:[1]]" {
			t.Errorf("to %s: %s", protocol, b)
		}
	}
}

func TestRequestsBeforeAHalfCloseAreAllAnswered(t *testing.T) {
	_, address := simple(t, http.HandlerFunc(hello))
	c := dial(t, address)
	const n = 5
	for i := range n {
		fmt.Fprintf(c, "GET /%d HTTP/1.1\r\nHost: web.test\r\n\r\n", i)
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	b := bufio.NewReader(c)
	for i := range n {
		res := read(t, c, b, "GET")
		if got := bodyOf(t, res); got != fmt.Sprintf("GET /%d ", i) {
			t.Errorf("answer %d is %q", i, got)
		}
	}
	if _, err := b.ReadByte(); err != io.EOF {
		t.Errorf("after the last: %v", err)
	}
}

func TestOneEmptyLineBeforeARequestIsIgnored(t *testing.T) {
	_, address := simple(t, http.HandlerFunc(hello))
	c := dial(t, address)
	b := bufio.NewReader(c)
	const post = "POST / HTTP/1.1\r\nHost: web.test\r\nContent-Length: 2\r\n\r\nhi"
	for _, raw := range []string{"\r\n" + post, post + "\r\n", post} {
		fmt.Fprint(c, raw)
		if res := read(t, c, b, "POST"); res.StatusCode != 200 {
			t.Errorf("%q: %s", raw, res.Status)
		}
	}
	fmt.Fprint(c, "\r")
	fmt.Fprint(c, "\n"+post)
	if res := read(t, c, b, "POST"); res.StatusCode != 200 {
		t.Errorf("in two parts: %s", res.Status)
	}
	for _, raw := range []string{"\r\n\r\n" + post, "\n" + post, "\r" + post} {
		if res := ask(t, address, raw); res.StatusCode != 400 {
			t.Errorf("%q: %s", raw, res.Status)
		}
	}
}

// TestAHeadThatCameWithTheRequestBeforeHasItsTime: it is no idle connection.
func TestAHeadThatCameWithTheRequestBeforeHasItsTime(t *testing.T) {
	_, address := simple(t, http.HandlerFunc(hello), func(o *Options) { o.Limits.HeadTime, o.Limits.Idle = 100*time.Millisecond, time.Hour })
	c := dial(t, address)
	b := bufio.NewReader(c)
	fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: web.test\r\n\r\nGET / HTTP/1.1\r\nHo")
	if res := read(t, c, b, "GET"); res.StatusCode != 200 {
		t.Fatal(res.Status)
	}
	if res := read(t, c, b, "GET"); res.StatusCode != 408 {
		t.Error(res.Status)
	}
}

func TestABadChunkThatIsThereAlreadyIsNotForwarded(t *testing.T) {
	up := h2Upstream(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("the instance got %s", r.RequestURI)
	}))
	r := start(t)
	address := r.listen("127.0.0.1")
	r.table.HTTP = []string{address}
	r.route("h1.test", kiln.ProtocolHTTP, portNumber(t, up), "127.0.0.1")
	r.route("h2.test", kiln.ProtocolH2C, portNumber(t, up), "127.0.0.1")
	r.set()
	for _, host := range []string{"h1.test", "h2.test"} {
		for _, body := range []string{"-1\r\n", "2 \r\nhi\r\n0\r\n\r\n", "2\nhi\r\n0\r\n\r\n", "2\r\nhix\r\n0\r\n\r\n", "2\r\nhi\r\nZZ\r\n", "2\r\nhi\r\n0\r\nX : y\r\n\r\n"} {
			res := ask(t, address, "POST /"+" HTTP/1.1\r\nHost: "+host+"\r\nTransfer-Encoding: chunked\r\n\r\n"+body)
			if res.StatusCode != 400 || !res.Close {
				t.Errorf("%s, %q: %s", host, body, res.Status)
			}
		}
	}
}

// TestACutAnswerIsNotTakenForWhole has a client for which an answer's end is
// the connection's.
func TestACutAnswerIsNotTakenForWhole(t *testing.T) {
	half := make(chan struct{})
	up := h2Upstream(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "half")
		_ = http.NewResponseController(w).Flush()
		<-half
		panic(http.ErrAbortHandler)
	}))
	r := start(t)
	address := r.listen("127.0.0.1")
	r.table.HTTP = []string{address}
	r.route("h1.test", kiln.ProtocolHTTP, portNumber(t, up), "127.0.0.1")
	r.route("h2.test", kiln.ProtocolH2C, portNumber(t, up), "127.0.0.1")
	r.set()
	for _, host := range []string{"h1.test", "h2.test"} {
		c := dial(t, address)
		fmt.Fprintf(c, "GET / HTTP/1.0\r\nHost: %s\r\n\r\n", host)
		got := make([]byte, 0, 4096)
		for !strings.HasSuffix(string(got), "half") {
			n, err := c.Read(got[len(got):cap(got)])
			if err != nil {
				t.Fatal(err)
			}
			got = got[:len(got)+n]
		}
		half <- struct{}{}
		if _, err := c.Read(got[:1]); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("%s: the end of a cut answer is %v", host, err)
		}
	}
}

// TestWhatWasNotSentIsSentAgain has a kept connection that takes nothing, as
// one that was reset and whose reset has not been noticed.
func TestWhatWasNotSentIsSentAgain(t *testing.T) {
	up := serveTCP(t, "127.0.0.1:0", func(c net.Conn) {
		r, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(b), b)
	})
	g := newTestGateway(t)
	i := newInstance(kiln.Endpoint{Instance: "web-0", Address: netip.MustParseAddr("127.0.0.1")}, &fleet{})
	t.Cleanup(func() { i.kill(errEnding) })
	p := i.pool(portNumber(t, up), g)
	deaf := func() *upstream {
		u, err := p.get(t.Context(), true, true)
		if err != nil {
			t.Fatal(err)
		}
		_ = u.CloseWrite()
		return u
	}
	p.put(deaf())
	r, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://web.test/", strings.NewReader("hello"))
	res, err := p.roundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := io.ReadAll(res.Body); string(b) != "hello" {
		t.Errorf("the instance got %q", b)
	}
	_ = res.Body.Close()

	near, _ := tcpPair(t)
	c := newConn(g, near, &listener{g: g, name: "test"})
	c.out = []byte("POST / HTTP/1.1\r\n")
	x := exchange{c: c, up: deaf(), stream: true}
	if err := x.attempt(); !errors.Is(err, errUnsent) || x.upload != nil {
		t.Errorf("an attempt of which nothing was sent: %v", err)
	}
}

func TestAClosedKeptConnectionIsNoSuspicion(t *testing.T) {
	up := serveTCP(t, "127.0.0.1:0", func(c net.Conn) {
		b := bufio.NewReader(c)
		if _, err := http.ReadRequest(b); err == nil {
			fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			_, _ = http.ReadRequest(b) // and never answers it
		}
	})
	r := start(t)
	address := r.listen("127.0.0.1")
	r.table.HTTP = []string{address}
	r.route("web.test", kiln.ProtocolHTTP, portNumber(t, up), "127.0.0.1")
	r.set()
	failures, err := r.client.Failures(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	h := newH2(t, address)
	h.request(1, "GET", "/")
	if _, status := h.status(); status != "200" {
		t.Fatal(status)
	}
	h.request(3, "POST", "/")
	_ = h.WriteData(3, true, []byte("x"))
	if _, status := h.status(); status != "502" {
		t.Errorf("a POST on a connection that was closed: %s", status)
	}
	// Whatever was told before this one would come first.
	r.table.Fleets[testFleet] = append(r.table.Fleets[testFleet], kiln.Endpoint{Instance: "web-1", Address: netip.MustParseAddr("127.0.0.9")})
	r.set()
	for id := uint32(5); ; id += 2 {
		h.request(id, "GET", "/")
		h.status()
		select {
		case got := <-failures:
			if got != "web-1" {
				t.Errorf("%s was reported", got)
			}
			return
		default:
		}
	}
}

func TestTheMethodsAreNamedWhenOneIsRefused(t *testing.T) {
	_, address := simple(t, http.HandlerFunc(hello))
	if res := ask(t, address, "TRACE / HTTP/1.1\r\nHost: web.test\r\n\r\n"); res.StatusCode != 405 || res.Header.Get("Allow") == "" {
		t.Errorf("HTTP/1.1: %s, %v", res.Status, res.Header)
	}
	h := newH2(t, address)
	h.request(1, "TRACE", "/")
	for {
		if f, ok := h.next().(*http2.MetaHeadersFrame); ok {
			for _, field := range f.RegularFields() {
				if field.Name == "allow" {
					return
				}
			}
			t.Fatalf("HTTP/2: %v", f.Fields)
		}
	}
}

// logged are the lines of the access log once there are n of them.
func (r *rig) logged(n int) []map[string]any {
	r.t.Helper()
	var lines []map[string]any
	waitFor(r.t, func() bool {
		b, _ := os.ReadFile(filepath.Join(r.dir, "gateway", logFile))
		if strings.Count(string(b), "\n") < n {
			return false
		}
		for line := range strings.Lines(string(b)) {
			var one map[string]any
			if err := json.Unmarshal([]byte(line), &one); err != nil {
				r.t.Fatalf("%q: %v", line, err)
			}
			lines = append(lines, one)
		}
		return true
	})
	return lines
}

func TestRefusalsAreLoggedWithTheirReason(t *testing.T) {
	r, address := simple(t, http.HandlerFunc(hello))
	var lengths []int
	for _, raw := range []string{
		"POST /a/../b?c HTTP/1.1\r\nHost: web.test\r\nUser-Agent: me\r\n\r\n",
		"GET /x HTTP/1.1\r\nHost: web.test\r\nHost: web.test\r\n\r\n",
		"GET / HTTP/1.1\nHost: web.test\n\n",
		"GET /y HTTP/1.1\r\nHost: other.test\r\n\r\n",
		"HEAD /z HTTP/1.0\r\nHost: other.test\r\n\r\n",
	} {
		lengths = append(lengths, len(bodyOf(t, ask(t, address, raw))))
		r.logged(len(lengths)) // the line comes after the answer
	}
	want := []string{
		"POST web.test /a/../b?c HTTP/1.1 400 Bad request: the path has a dot segment.",
		"GET web.test /x HTTP/1.1 400 Bad request: there is not exactly one Host.",
		"    400 Bad request: a line ends without a carriage return.",
		"GET other.test /y HTTP/1.1 404 No route serves the host other.test here.",
		"HEAD other.test /z HTTP/1.0 404 No route serves the host other.test here.",
	}
	lines := r.logged(len(want))
	for i, line := range lines {
		got := fmt.Sprint(line["method"], " ", line["host"], " ", line["path"], " ", line["protocol"], " ", line["status"], " ", line["note"])
		if got != want[i] || line["out"] != float64(lengths[i]) {
			t.Errorf("line %d: %q with %v bytes, want %q with %d", i, got, line["out"], want[i], lengths[i])
		}
	}
	if lines[0]["agent"] != "me" {
		t.Errorf("the first line: %v", lines[0])
	}
}

// TestALogLineCannotSteerATerminal has the C1 controls, which terminals obey,
// and what turns the direction of text.
func TestALogLineCannotSteerATerminal(t *testing.T) {
	for raw, want := range map[string]string{
		"a\u009b2Jb": `a\u009b2Jb`, "a\u202eb": `a\u202eb`, "\u2028": `\u2028`, "\U000e0001": `\udb40\udc01`,
		"\x1b[2J\x7f": `\u001b[2J\u007f`, "é€😀": "é€😀", "\xff\"": `\ufffd\"`,
	} {
		got := string(appendEscaped(nil, []byte(raw)))
		var back string
		if err := json.Unmarshal([]byte(`"`+got+`"`), &back); err != nil || got != want {
			t.Errorf("%q became %s, want %s, %v", raw, got, want, err)
		}
	}
}

// TestALaterEndOfABodyKeepsTheAnswersLimit: a body that ends after the answer
// began must not bring the limit of its beginning back.
func TestALaterEndOfABodyKeepsTheAnswersLimit(t *testing.T) {
	g := newTestGateway(t)
	near, _ := tcpPair(t)
	c := newConn(g, near, &listener{g: g, name: "test"})
	u := &upload{}
	left := func() time.Duration { return time.Duration(c.until.Load() - g.now()) }
	if u.arm(c, g.limits.Answer); left() > g.limits.Answer {
		t.Errorf("before an answer: %s", left())
	}
	u.answered.Store(true)
	if u.arm(c, g.limits.Answer); left() <= g.limits.Answer {
		t.Errorf("within an answer: %s", left())
	}
}

// TestAFleetIsTheSumOfItsInstances measures while they are counted.
func TestAFleetIsTheSumOfItsInstances(t *testing.T) {
	r := newRegistry()
	_, members := r.enter(testFleet, []kiln.Endpoint{
		{Instance: "web-0", Address: netip.MustParseAddr("127.0.0.2")}, {Instance: "web-1", Address: netip.MustParseAddr("127.0.0.3")},
	})
	var stop atomic.Bool
	var counting sync.WaitGroup
	for _, i := range members {
		counting.Go(func() {
			for !stop.Load() {
				i.stats.answered(200, time.Millisecond, 1, 1)
			}
		})
	}
	for range 20_000 {
		all := r.measure()
		if sum := all[1].Requests + all[2].Requests; all[0].Requests != sum || all[0].Status[1] != all[1].Status[1]+all[2].Status[1] {
			t.Errorf("a fleet of %d requests has instances of %d", all[0].Requests, sum)
			break
		}
	}
	stop.Store(true)
	counting.Wait()
}

func TestAKeptConnectionHasASmallBuffer(t *testing.T) {
	up := serveTCP(t, "127.0.0.1:0", func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	g := newTestGateway(t)
	i := newInstance(kiln.Endpoint{Instance: "web-0", Address: netip.MustParseAddr("127.0.0.1")}, &fleet{})
	t.Cleanup(func() { i.kill(errEnding) })
	p := i.pool(portNumber(t, up), g)
	u, err := p.get(t.Context(), true, true)
	if err != nil {
		t.Fatal(err)
	}
	_ = u.in.grow(pieceSize)
	_ = u.in.grow(pieceSize)
	if p.put(u); len(u.in.b) != upstreamRead {
		t.Errorf("it has %d bytes", len(u.in.b))
	}
}
