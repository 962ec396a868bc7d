package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/kilnproject/kiln"
)

// secure starts a gateway with plain and TLS listeners.
func secure(t *testing.T, edit ...func(*Options)) (r *rig, plain, tlsAddress string) {
	t.Helper()
	up := upstreamOn(t, "127.0.0.1:0", http.HandlerFunc(hello))
	r = start(t, edit...)
	plain, tlsAddress = r.listen("127.0.0.1"), r.listen("127.0.0.1")
	r.table.HTTP, r.table.HTTPS = []string{plain}, []string{tlsAddress}
	r.route("web.localhost", kiln.ProtocolHTTP, portNumber(t, up.Addr), "127.0.0.1")
	return r, plain, tlsAddress
}

// tlsClient trusts the roots and reaches every host at one address.
func tlsClient(t *testing.T, roots *x509.CertPool, address string, h2 bool) *http.Client {
	tr := &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2: h2,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, address)
		},
	}
	if !h2 {
		tr.TLSClientConfig.NextProtos = []string{"http/1.1"}
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func readRoots(t *testing.T, name string) *x509.CertPool {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		t.Fatal("no root in the file")
	}
	return pool
}

func TestLocalAuthority(t *testing.T) {
	r, plain, address := secure(t)
	r.table.Public[0].Route.TLS.Mode = "local"
	other := r.table.Public[0]
	other.Route.Host, other.Route.Name = "other.localhost", "other"
	r.table.Public = append(r.table.Public, other)
	r.set()
	roots := readRoots(t, filepath.Join(r.dir, "gateway", "ca", "root.pem"))
	for _, h2 := range []bool{false, true} {
		client := tlsClient(t, roots, address, h2)
		res, err := client.Get("https://web.localhost/x")
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != 200 || (res.ProtoMajor == 2) != h2 || res.TLS.Version != tls.VersionTLS13 {
			t.Errorf("%s %s", res.Proto, res.Status)
		}
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://web.localhost/", nil)
		req.Host = "other.localhost"
		if res, err = client.Do(req); err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != http.StatusMisdirectedRequest {
			t.Errorf("another host on the connection: %s", res.Status)
		}
	}
	res := ask(t, plain, "GET /x?y HTTP/1.1\r\nHost: web.localhost\r\n\r\n")
	_, port, _ := net.SplitHostPort(address)
	if want := "https://web.localhost:" + port + "/x?y"; res.StatusCode != 308 || res.Header.Get("Location") != want {
		t.Errorf("plain: %s to %s, want %s", res.Status, res.Header.Get("Location"), want)
	}
	if res := ask(t, address, "GET / HTTP/1.1\r\nHost: web.localhost\r\n\r\n"); res.StatusCode != 400 {
		t.Errorf("plain HTTP on the TLS port: %s", res.Status)
	}
	if _, err := tlsClient(t, roots, address, false).Get("https://unknown.localhost/"); err == nil {
		t.Error("a host without a route got a certificate")
	}
}

func TestLocalAuthoritySurvivesAndSignsLocalNamesOnly(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	first, err := newAuthority(dir).leaf("a.localhost", now)
	if err != nil {
		t.Fatal(err)
	}
	again := newAuthority(dir)
	second, err := again.leaf("b.localhost", now)
	if err != nil || string(first.Certificate[1]) != string(second.Certificate[1]) {
		t.Errorf("another root: %v", err)
	}
	if same, err := again.leaf("b.localhost", now.Add(time.Hour)); err != nil || same != second {
		t.Errorf("a good leaf was not kept: %v", err)
	}
	if renewed, err := again.leaf("b.localhost", now.Add(leafLife)); err != nil || renewed == second {
		t.Errorf("an old leaf was kept: %v", err)
	}
	if _, err := again.leaf("example.com", now); err == nil {
		t.Error("it signed example.com")
	}
}

// pairFor makes a certificate for a name.
func pairFor(t *testing.T, name string) kiln.Certificate {
	t.Helper()
	leaf, err := newAuthority(t.TempDir()).leaf(name, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(leaf.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return kiln.Certificate{Chain: string(encodePEM("CERTIFICATE", leaf.Certificate[0])), Key: string(encodePEM("PRIVATE KEY", der))}
}

func TestCertificateFromFiles(t *testing.T) {
	r, _, address := secure(t)
	r.table.Public[0].Route.TLS = kiln.TLS{Mode: "files", Cert: "/cert", Key: "/key"}
	get := func(pair kiln.Certificate) error {
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM([]byte(pair.Chain))
		res, err := tlsClient(t, roots, address, true).Get("https://web.localhost/x")
		if err != nil {
			return err
		}
		_ = res.Body.Close()
		if res.StatusCode != 200 || res.ProtoMajor != 2 {
			return fmt.Errorf("%s %s", res.Proto, res.Status)
		}
		return nil
	}
	first, second := pairFor(t, "web.localhost"), pairFor(t, "web.localhost")
	if r.set(); get(first) == nil {
		t.Error("without a certificate: it answered")
	}
	for _, pair := range []kiln.Certificate{first, second} {
		r.table.Certificates = map[string]kiln.Certificate{"web.localhost": pair}
		for range 2 { // also when it did not change
			r.set()
			if err := get(pair); err != nil {
				t.Error(err)
			}
		}
	}
	r.table.Certificates = map[string]kiln.Certificate{"web.localhost": {Chain: first.Chain, Key: second.Key}}
	if r.set(); get(first) == nil {
		t.Error("with another's key: it answered")
	}
}

func TestTablesThatAreRefused(t *testing.T) {
	good := func() kiln.Traffic {
		r := &rig{t: t}
		r.route("a.test", kiln.ProtocolHTTP, 80, "127.0.0.1")
		return r.table
	}
	if err := validate(good()); err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(*kiln.Traffic){
		"a host of two environments": func(tr *kiln.Traffic) {
			other := tr.Public[0]
			other.Environment, other.Route.Path, other.Route.Host = "staging", "/x", "A.Test."
			tr.Public = append(tr.Public, other)
		},
		"a path twice":  func(tr *kiln.Traffic) { tr.Public = append(tr.Public, tr.Public[0]) },
		"weights of 99": func(tr *kiln.Traffic) { tr.Public[0].Fleets = []kiln.Weight{{Fleet: testFleet, Percent: 99}} },
		"a negative weight": func(tr *kiln.Traffic) {
			tr.Public[0].Fleets = []kiln.Weight{{Fleet: "a", Percent: -1}, {Fleet: "b", Percent: 101}}
		},
		"no host":           func(tr *kiln.Traffic) { tr.Public[0].Route.Host = "" },
		"a path with dots":  func(tr *kiln.Traffic) { tr.Public[0].Route.Path = "/a/../b" },
		"a relative path":   func(tr *kiln.Traffic) { tr.Public[0].Route.Path = "a" },
		"no port":           func(tr *kiln.Traffic) { tr.Public[0].Number = 0 },
		"unknown protocol":  func(tr *kiln.Traffic) { tr.Public[0].Protocol = "udp" },
		"unknown TLS":       func(tr *kiln.Traffic) { tr.Public[0].Route.TLS.Mode = "magic" },
		"relative files":    func(tr *kiln.Traffic) { tr.Public[0].Route.TLS = kiln.TLS{Mode: "files", Cert: "a", Key: "b"} },
		"a listener twice":  func(tr *kiln.Traffic) { tr.HTTP, tr.HTTPS = []string{"127.0.0.1:80"}, []string{"127.0.0.1:80"} },
		"a listener's name": func(tr *kiln.Traffic) { tr.HTTP = []string{"example.com:80"} },
		"no address":        func(tr *kiln.Traffic) { tr.Fleets[testFleet] = []kiln.Endpoint{{Instance: "a"}} },
		"an instance twice": func(tr *kiln.Traffic) { tr.Fleets[testFleet] = append(tr.Fleets[testFleet], tr.Fleets[testFleet][0]) },
	} {
		tr := good()
		edit(&tr)
		err := validate(tr)
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
		if name == "a host of two environments" && err.Error() != "host a.test belongs to environment test, and environment staging claims it too" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLastTableIsServedFromTheStart(t *testing.T) {
	r, address := simple(t, http.HandlerFunc(hello))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	again := startIn(t, r.dir)
	// The new process gets the same sockets under the same names.
	sock, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	f, err := sock.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	_ = sock.Close()
	again.give("tcp://"+address, f)
	if res := ask(t, address, "GET / HTTP/1.1\r\nHost: web.test\r\n\r\n"); res.StatusCode != 200 {
		t.Error(res.Status)
	}
	ready, err := again.client.Ready(t.Context())
	if err != nil || ready.Generation != 1 || len(ready.Missing) != 0 || len(ready.Listeners) != 1 {
		t.Errorf("%+v, %v", ready, err)
	}
	if err := os.WriteFile(filepath.Join(r.dir, "gateway", tableFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	_ = again.stop()
	broken := startIn(t, r.dir) // it starts, empty
	if ready, err := broken.client.Ready(t.Context()); err != nil || ready.Generation != 0 {
		t.Errorf("%+v, %v", ready, err)
	}
}

func TestWeightsAreExactAndSmooth(t *testing.T) {
	order := interleave([]kiln.Weight{{Fleet: "a", Percent: 5}, {Fleet: "b", Percent: 95}})
	count, last, gap := 0, -1, 0
	for i, which := range order {
		if which == 0 {
			count++
			if last >= 0 {
				gap = max(gap, i-last)
			}
			last = i
		}
	}
	if len(order) != 100 || count != 5 || gap != 20 {
		t.Errorf("%d of %d turns, at most %d apart", count, len(order), gap)
	}
}

func TestPathsMatchWholeSegmentsLongestFirst(t *testing.T) {
	g := &gateway{registry: newRegistry()}
	r := &rig{t: t}
	for _, path := range []string{"/", "/a", "/a/b/"} {
		r.route("web.test", kiln.ProtocolHTTP, 80, "127.0.0.1")
		last := &r.table.Public[len(r.table.Public)-1].Route
		last.Path, last.Name = path, path
	}
	if err := validate(r.table); err != nil {
		t.Fatal(err)
	}
	h := g.compile(r.table).hosts["web.test"]
	for path, want := range map[string]string{
		"/": "/", "/ab": "/", "/a": "/a", "/a/": "/a", "/a/bc": "/a", "/a/b": "/a/b/", "/a/b/c": "/a/b/", "*": "/", "//a": "/", "/a%2Fb": "/",
	} {
		if got := h.match([]byte(path)); got == nil || got.name != want {
			t.Errorf("%s goes to %v, want %s", path, got, want)
		}
	}
}

// FuzzMatch demands that a path goes to the longest route that is a prefix of
// whole segments of what is forwarded.
func FuzzMatch(f *testing.F) {
	f.Add("/a/b", "/a", "/a/b")
	f.Fuzz(func(t *testing.T, path, one, two string) {
		h := &host{routes: []pathRoute{{"/" + one, &target{name: "/" + one}}, {"/" + two, &target{name: "/" + two}}, {"", &target{}}}}
		if len(two) > len(one) {
			h.routes[0], h.routes[1] = h.routes[1], h.routes[0]
		}
		got := h.match([]byte(path))
		want := ""
		for _, r := range h.routes {
			whole := path == r.path || len(path) > len(r.path) && path[:len(r.path)] == r.path && path[len(r.path)] == '/'
			if r.path != "" && whole && len(r.path) > len(want) {
				want = r.path
			}
		}
		if got.name != want {
			t.Fatalf("%q goes to %q, want %q", path, got.name, want)
		}
	})
}

func TestAccessLogIsBoundedAndHasTheRequestsID(t *testing.T) {
	r, address := simple(t, http.HandlerFunc(hello))
	ask(t, address, "GET /log\"me HTTP/1.1\r\nHost: web.test\r\nX-Request-Id: log-request-1\r\nUser-Agent: a\"\\b\xff\r\n\r\n")
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(r.dir, "gateway", logFile))
	if err != nil {
		t.Fatal(err)
	}
	var line struct {
		ID, Path, Agent, Environment, Route, Instance, Client string
		Status                                                int
	}
	if err := json.Unmarshal(b, &line); err != nil {
		t.Fatalf("%v in %s", err, b)
	}
	if line.ID != "log-request-1" || line.Path != "/log\"me" || line.Status != 200 || line.Instance != "web-0" || line.Agent != "a\"\\b\ufffd" || line.Client != "127.0.0.1" {
		t.Errorf("%+v", line)
	}
	l := newAccessLog(t.TempDir(), time.Now(), nil)
	l.size = 1000
	for range 100 {
		l.add(&entry{id: []byte("0123456789")}, 0)
		l.flush()
	}
	_ = l.file.Close()
	files, _ := filepath.Glob(filepath.Join(l.dir, "*"))
	total := 0
	for _, name := range files {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		total += int(info.Size())
	}
	if len(files) != logKept+1 || total > (logKept+1)*1000 {
		t.Errorf("%d files with %d bytes", len(files), total)
	}
}

// BenchmarkSwap is one instance joining 1,000 others.
func BenchmarkSwap(b *testing.B) {
	g, err := newGateway(b.Context(), b.Context(), Options{Dir: b.TempDir(), Log: slog.New(slog.DiscardHandler), Limits: testLimits()})
	if err != nil {
		b.Fatal(err)
	}
	defer g.hangups.close()
	var t kiln.Traffic
	var endpoints []kiln.Endpoint
	for i := range 1000 {
		endpoints = append(endpoints, kiln.Endpoint{Instance: fmt.Sprint("web-", i), Address: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})})
	}
	t.Public = []kiln.PublicRoute{{Environment: "test", Protocol: kiln.ProtocolHTTP, Number: 80, Route: kiln.Route{Name: "web", Host: "web.test"}, Fleets: []kiln.Weight{{Fleet: testFleet, Percent: 100}}}}
	for b.Loop() {
		t.Generation++
		t.Fleets = map[kiln.FleetID][]kiln.Endpoint{testFleet: endpoints[:999+t.Generation%2]}
		if err := g.set(t); err != nil {
			b.Fatal(err)
		}
	}
}
