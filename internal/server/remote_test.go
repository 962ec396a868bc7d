package server

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/control"
	"github.com/kilnproject/kiln/internal/kilntest"
)

// away is a control plane that is served over TCP until the test ends.
type away struct {
	*fixture
	authority *Authority
	remote    *Remote
	tokens    map[kiln.Role]string
	address   string
}

func serveRemote(t *testing.T, change func(*Options)) *away {
	t.Helper()
	a := &away{tokens: map[kiln.Role]string{}}
	access := NewAccess(nil)
	var tokens []kiln.Token
	for _, role := range kiln.Roles() {
		text, token := tokenOf(string(role), role)
		a.tokens[role] = text
		tokens = append(tokens, token)
	}
	access.SetTokens(tokens)
	a.fixture = serve(t, func(o *Options) {
		o.Access = access
		if change != nil {
			change(o)
		}
	})
	var err error
	if a.authority, err = OpenAuthority(filepath.Join(t.TempDir(), "api"), []string{"127.0.0.2"}); err != nil {
		t.Fatal(err)
	}
	a.remote = NewRemote(New(a.options), time.Second, a.options.Log)
	a.address = a.move(t, "127.0.0.1:0")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.remote.Run(ctx) }()
	stop := a.stop
	a.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		stop()
	})
	t.Cleanup(a.stop)
	return a
}

// move listens on one address alone, and returns the one that it has.
func (a *away) move(t *testing.T, address string) string {
	t.Helper()
	m, err := a.remote.Prepare(t.Context(), []string{address}, a.authority)
	if err != nil {
		t.Fatal(err)
	}
	m.Take()
	a.remote.mu.Lock()
	defer a.remote.mu.Unlock()
	return a.remote.open[address].Addr().String()
}

// as is a client of a role that pins the authority.
func (a *away) as(t *testing.T, role kiln.Role) *Client {
	t.Helper()
	c, err := NewRemoteClient(RemoteOptions{URL: "https://" + a.address, Token: a.tokens[role], Fingerprint: a.authority.Fingerprint(), Version: "1.4.2"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.http.CloseIdleConnections)
	return c
}

func (a *away) answering() {
	a.control.status = func() (control.Status, error) { return control.Status{}, nil }
	a.control.events = func(context.Context, control.EventQuery, func(kiln.Event) error) error { return nil }
	a.control.logs = func(context.Context, io.Writer, kiln.LogQuery) error { return nil }
	a.control.up = func(context.Context, control.UpRequest, func(kiln.Progress)) (control.UpResult, error) {
		return control.UpResult{}, nil
	}
}

func TestOverTCPTheRoleDecides(t *testing.T) {
	a := serveRemote(t, nil)
	a.answering()
	for _, r := range newAPI(Options{}).routes() {
		if !strings.HasPrefix(r.path, "/v1/") {
			continue // TestMetricsAreForThoseWhoMayLook
		}
		for _, role := range kiln.Roles() {
			body := io.Reader(nil)
			if r.method == http.MethodPost {
				body = strings.NewReader("{}")
			}
			response, err := a.as(t, role).send(t.Context(), r.method, strings.TrimPrefix(r.path, "/v1/"), nil, typeJSON, body)
			if err != nil {
				t.Fatal(err)
			}
			_ = response.Body.Close()
			refused := response.StatusCode == http.StatusForbidden || response.StatusCode == http.StatusUnauthorized
			// This server has nothing to back up, reload or shut down.
			if want := !role.Includes(r.role) || slices.Contains([]string{"/v1/backup", "/v1/reload", "/v1/shutdown"}, r.path); refused != want {
				t.Errorf("%s %s as %s: %d", r.method, r.path, role, response.StatusCode)
			}
		}
	}
	_, err := a.as(t, kiln.RoleRead).Up(t.Context(), control.UpRequest{}, nil)
	if err == nil || !strings.Contains(err.Error(), "token:read may not do that: it needs role deploy, and has role read") {
		t.Error(err)
	}
	config := &tls.Config{InsecureSkipVerify: true}
	plain := &http.Client{Transport: &http.Transport{TLSClientConfig: config}}
	response, err := plain.Get("https://" + a.address + "/v1/version")
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	if response.StatusCode != http.StatusUnauthorized || response.Header.Get("WWW-Authenticate") == "" || response.Header.Get(VersionHeader) != "" {
		t.Errorf("without a token: %d %v", response.StatusCode, response.Header)
	}
	plain.CloseIdleConnections()
}

func TestOverTCPTheActorIsTheToken(t *testing.T) {
	a := serveRemote(t, nil)
	if err := a.as(t, kiln.RoleDeploy).Down(t.Context(), "preview", nil); err != nil || a.control.actor != "token:deploy" {
		t.Errorf("%q %v", a.control.actor, err)
	}
}

func TestReachIsHandedOn(t *testing.T) {
	a := serveRemote(t, nil)
	text, token := tokenOf("ci", kiln.RoleDeploy)
	token.Reach = kiln.Reach{"staging"}
	a.options.Access.SetTokens([]kiln.Token{token})
	a.tokens[kiln.RoleDeploy] = text
	var reach kiln.Reach
	a.control.up = func(_ context.Context, r control.UpRequest, _ func(kiln.Progress)) (control.UpResult, error) {
		reach = r.Reach
		return control.UpResult{}, nil
	}
	a.control.status = func() (control.Status, error) {
		return control.Status{Environments: []control.EnvironmentStatus{{Name: "production"}, {Name: "staging"}}}, nil
	}
	client := a.as(t, kiln.RoleDeploy)
	if _, err := client.Up(t.Context(), control.UpRequest{}, nil); err != nil || !slices.Equal(reach, token.Reach) {
		t.Errorf("%v %v", reach, err)
	}
	if s, err := client.Status(t.Context()); err != nil || len(s.Environments) != 1 || s.Environments[0].Name != "staging" {
		t.Errorf("%+v %v", s, err)
	}
	never := func(kiln.LogLine) error { return nil }
	if err := client.Logs(t.Context(), kiln.LogQuery{Environment: "production"}, never); err == nil || !strings.Contains(err.Error(), "not for this token") {
		t.Error(err)
	}
	if err := client.Events(t.Context(), control.EventQuery{Environment: "production", Follow: true}, nil); err == nil || !strings.Contains(err.Error(), "not for this token") {
		t.Error(err)
	}
}

func TestARevokedTokensStreamEnds(t *testing.T) {
	a := serveRemote(t, nil)
	a.control.events = func(ctx context.Context, _ control.EventQuery, each func(kiln.Event) error) error {
		if err := each(kiln.Event{Sequence: 1}); err != nil {
			return err
		}
		<-ctx.Done()
		return ctx.Err()
	}
	first := make(chan struct{})
	ended := make(chan error, 1)
	client := a.as(t, kiln.RoleRead)
	go func() {
		ended <- client.Events(t.Context(), control.EventQuery{Follow: true}, func(kiln.Event) error { close(first); return nil })
	}()
	<-first
	a.options.Access.SetTokens(nil)
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "token read was revoked or changed meanwhile") {
		t.Error(err)
	}
	if _, err := client.Version(t.Context()); err == nil || !strings.Contains(err.Error(), "the token is not known") {
		t.Errorf("the next request: %v", err)
	}
}

func TestTheServerIsKnownByItsCertificate(t *testing.T) {
	a := serveRemote(t, nil)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.authority.cert.Raw})
	other, err := OpenAuthority(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := a.authority.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(a.address)
	for name, c := range map[string]struct {
		change func(*RemoteOptions)
		want   string
	}{
		"pinned authority":          {func(o *RemoteOptions) { o.Fingerprint = a.authority.Fingerprint() }, ""},
		"pinned as openssl says it": {func(o *RemoteOptions) { o.Fingerprint = colons(a.authority.Fingerprint()) }, ""},
		"pinned certificate":        {func(o *RemoteOptions) { o.Fingerprint = FingerprintOf(leaf.Certificate[0]) }, ""},
		"authority's file":          {func(o *RemoteOptions) { o.CA = ca }, ""},
		"nothing":                   {func(*RemoteOptions) {}, "unknown authority"},
		"another pin":               {func(o *RemoteOptions) { o.Fingerprint = other.Fingerprint() }, "is not the server that --fingerprint names"},
		"another authority's file": {func(o *RemoteOptions) {
			o.CA = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: other.cert.Raw})
		}, "unknown authority"},
		"in the clear":             {func(o *RemoteOptions) { o.URL = "http://" + a.address }, "in the clear"},
		"no address":               {func(o *RemoteOptions) { o.URL = "kiln" }, "is not the address of a control plane"},
		"no fingerprint":           {func(o *RemoteOptions) { o.Fingerprint = "sha256:12" }, "is not a fingerprint"},
		"a file of something else": {func(o *RemoteOptions) { o.CA = []byte("hello") }, "has no certificate"},
		"a token that was cut":     {func(o *RemoteOptions) { o.Token = o.Token[:20] }, "its checksum is wrong"},
		"a name that it has":       {func(o *RemoteOptions) { o.URL = "https://localhost:" + port; o.CA = ca }, ""},
		"nobody there":             {func(o *RemoteOptions) { o.URL = "https://127.0.0.1:1"; o.CA = ca }, "no control plane answers at https://127.0.0.1:1"},
	} {
		o := RemoteOptions{URL: "https://" + a.address, Token: a.tokens[kiln.RoleRead], Version: "1.4.2"}
		c.change(&o)
		client, err := NewRemoteClient(o)
		if err == nil {
			_, err = client.Version(t.Context())
			client.http.CloseIdleConnections()
		}
		if shown := (*kiln.Error)(nil); c.want == "" && err != nil || c.want != "" && (!errors.As(err, &shown) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func colons(fingerprint string) string {
	digits := strings.ToUpper(strings.TrimPrefix(fingerprint, "sha256:"))
	var parts []string
	for len(digits) > 0 {
		parts = append(parts, digits[:2])
		digits = digits[2:]
	}
	return strings.Join(parts, ":")
}

// TestAPinnedAuthorityMustHaveIssued shows the pinned certificate behind one
// that it did not issue, and one that it issued for another name.
func TestAPinnedAuthorityMustHaveIssued(t *testing.T) {
	ours, err := OpenAuthority(t.TempDir(), []string{"kiln.example.com"})
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := OpenAuthority(t.TempDir(), []string{"kiln.example.com"})
	if err != nil {
		t.Fatal(err)
	}
	leaf := func(a *Authority) *x509.Certificate {
		pair, err := a.Certificate()
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(pair.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	pin := ours.Fingerprint()
	for name, c := range map[string]struct {
		chain []*x509.Certificate
		host  string
		ok    bool
	}{
		"issued":               {[]*x509.Certificate{leaf(ours), ours.cert}, "kiln.example.com", true},
		"issued by another":    {[]*x509.Certificate{leaf(theirs), ours.cert}, "kiln.example.com", false},
		"for another name":     {[]*x509.Certificate{leaf(ours), ours.cert}, "bank.example.com", false},
		"for another address":  {[]*x509.Certificate{leaf(ours), ours.cert}, "203.0.113.77", false},
		"the authority is not": {[]*x509.Certificate{leaf(ours)}, "kiln.example.com", false},
		"nothing":              {nil, "kiln.example.com", false},
	} {
		if err := verified(c.chain, c.host, pin); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTheAuthorityStays(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "api")
	first, err := OpenAuthority(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	again, err := OpenAuthority(dir, []string{"kiln.example.com", "192.0.2.7"})
	if err != nil || again.Fingerprint() != first.Fingerprint() {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, "authority.key"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	pair, err := again.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"kiln.example.com", "192.0.2.7", "localhost", "127.0.0.1"} {
		if err := cert.VerifyHostname(name); err != nil {
			t.Error(err)
		}
	}
	shown, err := os.ReadFile(filepath.Join(dir, "authority.pem"))
	if err != nil || bytes.Contains(shown, []byte("PRIVATE")) {
		t.Errorf("what clients are given has the key: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "authority.pem"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenAuthority(dir, nil); err == nil || !strings.Contains(err.Error(), "cannot be read") {
		t.Errorf("a damaged one: %v", err)
	}
}

func TestCertificatesAreIssuedAnew(t *testing.T) {
	a, err := OpenAuthority(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		issue := func() *tls.Certificate {
			c, err := a.Certificate()
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		first := issue()
		kilntest.Pass(leafFresh - time.Second)
		if issue() != first {
			t.Error("another one within a day")
		}
		kilntest.Pass(time.Minute)
		if issue() == first {
			t.Error("the same after a day")
		}
	})
}

func TestACertificateFromFilesIsReadWhenItChanges(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cert")
	var log bytes.Buffer
	write := func(text string) {
		if err := errors.Join(os.WriteFile(path+".new", []byte(text), 0o600), os.Rename(path+".new", path)); err != nil {
			t.Fatal(err)
		}
	}
	write("one")
	reads := 0
	load := func() (tls.Certificate, error) {
		reads++
		text, err := os.ReadFile(path)
		if err == nil && string(text) == "broken" {
			err = errors.New("it is broken")
		}
		return tls.Certificate{Certificate: [][]byte{text}}, err
	}
	c, err := NewFileCertificate([]string{path}, load, textLog(&log))
	if err != nil {
		t.Fatal(err)
	}
	has := func(want string) {
		t.Helper()
		got, err := c.Certificate()
		if err != nil || string(got.Certificate[0]) != want {
			t.Errorf("%s %v, want %s", got.Certificate[0], err, want)
		}
	}
	has("one")
	has("one")
	if reads != 1 {
		t.Errorf("%d reads", reads)
	}
	write("two")
	has("two")
	write("broken")
	has("two")
	has("two")
	if reads != 3 || strings.Count(log.String(), "it is broken") != 1 {
		t.Errorf("%d reads, %s", reads, &log)
	}
	write("three")
	has("three")
}

func TestListenersMoveWhileItServes(t *testing.T) {
	a := serveRemote(t, nil)
	a.answering()
	client := a.as(t, kiln.RoleRead)
	if _, err := client.Version(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := a.address
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	_, err = a.remote.Prepare(t.Context(), []string{"127.0.0.1:0", "127.0.0.2:0", taken.Addr().String()}, a.authority)
	if err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("a taken address: %v", err)
	}
	if got := a.remote.Addresses(); !slices.Equal(got, []string{"127.0.0.1:0"}) {
		t.Errorf("after a move that failed: %v", got)
	}
	if _, err := client.Version(t.Context()); err != nil {
		t.Errorf("after a move that failed: %v", err)
	}
	a.address = a.move(t, "127.0.0.2:0")
	if _, err := a.as(t, kiln.RoleRead).Version(t.Context()); err != nil {
		t.Error(err)
	}
	if conn, err := net.Dial("tcp", before); err == nil {
		_ = conn.Close()
		t.Error("the old address still listens")
	}
	// From one address to all of the same port, which are in each other's way.
	_, port, _ := net.SplitHostPort(a.address)
	a.move(t, "127.0.0.2:"+port)
	a.move(t, "0.0.0.0:"+port)
	a.address = "127.0.0.1:" + port
	if _, err := a.as(t, kiln.RoleRead).Version(t.Context()); err != nil {
		t.Error(err)
	}
	// And back, together with one that cannot be had: nothing changes.
	if _, err = a.remote.Prepare(t.Context(), []string{"127.0.0.1:" + port, taken.Addr().String()}, a.authority); err == nil {
		t.Error("a taken address")
	}
	if _, err := a.as(t, kiln.RoleRead).Version(t.Context()); err != nil || !slices.Equal(a.remote.Addresses(), []string{"0.0.0.0:" + port}) {
		t.Errorf("%v %v", err, a.remote.Addresses())
	}
}

// TestClientsThatHangDoNotTakeTheAPIDown has many of them in every way to
// hang: silent, after the handshake, in the headers, and in a body.
func TestClientsThatHangDoNotTakeTheAPIDown(t *testing.T) {
	a := serveRemote(t, nil)
	a.answering()
	a.remote.crowd.mu.Lock()
	a.remote.crowd.total, a.remote.crowd.each = 40, 20
	a.remote.crowd.mu.Unlock()
	var hanging []net.Conn
	defer func() {
		for _, c := range hanging {
			_ = c.Close()
		}
	}()
	config := &tls.Config{InsecureSkipVerify: true}
	ways := []func(net.Conn){
		func(net.Conn) {},
		func(c net.Conn) { _ = tls.Client(c, config).Handshake() },
		func(c net.Conn) {
			_, _ = io.WriteString(tls.Client(c, config), "GET /v1/status HTTP/1.1\r\nHost: k\r\nX: ")
		},
		func(c net.Conn) {
			_, _ = io.WriteString(tls.Client(c, config), "POST /v1/up HTTP/1.1\r\nHost: k\r\nContent-Length: 100\r\nAuthorization: Bearer x\r\n\r\n{")
		},
	}
	for i := range 200 {
		c, err := net.Dial("tcp", a.address)
		if err != nil {
			t.Fatal(err)
		}
		hanging = append(hanging, c)
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		ways[i%len(ways)](c)
		if i%40 == 39 {
			if _, err := a.as(t, kiln.RoleRead).Status(t.Context()); err != nil {
				t.Errorf("with %d that hang: %v", i+1, err)
			}
		}
	}
	if n := a.remote.crowd.size(); n > 20 {
		t.Errorf("%d connections of one address are open", n)
	}
}

func TestACrowdKeepsThoseThatItServes(t *testing.T) {
	c := newCrowd(4, 3)
	connect := func(from string) *guest {
		near, far := net.Pipe()
		t.Cleanup(func() { _ = far.Close() })
		return c.admit(addressed{near, netip.MustParseAddrPort(from + ":1")})
	}
	busy := connect("192.0.2.1")
	busy.serves.Add(1)
	idle := connect("192.0.2.1")
	connect("192.0.2.1")
	fourth := connect("192.0.2.1") // takes the place of idle
	if _, err := idle.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("the oldest idle one is open: %v", err)
	}
	if n := c.size(); n != 3 {
		t.Errorf("%d are in", n)
	}
	connect("192.0.2.2")
	connect("192.0.2.3") // too many together
	if n := c.size(); n != 4 {
		t.Errorf("%d are in", n)
	}
	for e := c.guests.Front(); e != nil; e = e.Next() {
		e.Value.(*guest).serves.Add(1)
	}
	if connect("192.0.2.4") != nil {
		t.Error("one was let in although all places serve somebody")
	}
	_ = fourth.Close()
	_ = fourth.Close()
	_ = busy.Close()
	if n := c.size(); n > 3 {
		t.Errorf("%d are in", n)
	}
	total := 0
	for _, n := range c.from {
		total += n
	}
	if total != c.size() {
		t.Errorf("%d by address, %d in all", total, c.size())
	}
}

type addressed struct {
	net.Conn
	from netip.AddrPort
}

func (a addressed) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(a.from) }

// pipes is a listener of connections in memory.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	c, ok := <-p
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (p pipes) Close() error   { return nil }
func (p pipes) Addr() net.Addr { return &net.UnixAddr{Net: "unix", Name: "pipe"} }

// asRoot serves one handler as if root called.
func asRoot(next http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next(w, r.WithContext(context.WithValue(r.Context(), callKey{}, call{caller: caller{role: kiln.RoleAdmin}})))
	})
}

func TestAClientThatDoesNotReadIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeControl{}
		sent := make(chan int, 1)
		f.events = func(_ context.Context, _ control.EventQuery, each func(kiln.Event) error) error {
			for n := 0; ; n++ {
				if err := each(kiln.Event{Sequence: int64(n), Message: strings.Repeat("x", 1000)}); err != nil {
					sent <- n
					return err
				}
			}
		}
		a := newAPI(Options{Control: f, Log: discard()})
		near, far := net.Pipe()
		listener := pipes(make(chan net.Conn, 1))
		listener <- near
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			ended <- Serve(ctx, listener, asRoot(a.events), time.Second, discard())
		}()
		began := time.Now()
		if _, err := io.WriteString(far, "GET /v1/events HTTP/1.1\r\nHost: k\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if n := <-sent; n < streamQueue {
			t.Errorf("the client was dropped after %d events", n)
		}
		if took := time.Since(began); took > writeTimeout+time.Second {
			t.Errorf("it was dropped after %s", took)
		}
		cancel()
		close(listener)
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func TestARefusedClientIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAPI(Options{Log: discard(), Version: Version{Version: "1.4.0"}})
		near, far := net.Pipe()
		listener := pipes(make(chan net.Conn, 1))
		listener <- near
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			ended <- Serve(ctx, listener, a.enter(kiln.RoleDeploy, nil), time.Second, discard())
		}()
		began := time.Now()
		if _, err := io.WriteString(far, "POST /v1/up HTTP/1.1\r\nHost: k\r\nContent-Length: 1000\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		response, err := http.ReadResponse(bufio.NewReader(far), nil)
		if err != nil || response.StatusCode != http.StatusForbidden {
			t.Fatalf("%v %v", response, err)
		}
		if _, err := io.Copy(io.Discard, far); err != nil { // until it is closed
			t.Error(err)
		}
		if took := time.Since(began); took > 2*refusedTimeout {
			t.Errorf("it was waited for %s", took)
		}
		cancel()
		close(listener)
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func TestAStreamWithoutNewsSaysThatItIsAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeControl{}
		f.events = func(ctx context.Context, _ control.EventQuery, _ func(kiln.Event) error) error {
			<-ctx.Done()
			return nil
		}
		a := newAPI(Options{Control: f, Log: discard()})
		near, far := net.Pipe()
		listener := pipes(make(chan net.Conn, 1))
		listener <- near
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- Serve(ctx, listener, asRoot(a.events), time.Second, discard()) }()
		if _, err := io.WriteString(far, "GET /v1/events HTTP/1.1\r\nHost: k\r\nAccept: text/event-stream\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		response, err := http.ReadResponse(bufio.NewReader(far), nil)
		if err != nil || response.Header.Get("Content-Type") != typeSSE {
			t.Fatalf("%v %v", response, err)
		}
		lines := bufio.NewReader(response.Body)
		for n := range 3 {
			began := time.Now()
			if line, err := lines.ReadString('\n'); err != nil || line != ":\n" {
				t.Fatalf("%q %v", line, err)
			}
			if took := time.Since(began); n > 0 && took != aliveEvery {
				t.Errorf("after %s", took)
			}
			_, _ = lines.ReadString('\n')
		}
		go func() { _, _ = io.Copy(io.Discard, far) }()
		cancel()
		close(listener)
		if err := <-ended; err != nil {
			t.Error(err)
		}
		_ = far.Close()
	})
}

func TestEventsComeAsABrowserTakesThem(t *testing.T) {
	f := serve(t, nil)
	f.control.events = func(_ context.Context, q control.EventQuery, each func(kiln.Event) error) error {
		if diff := cmp.Diff(control.EventQuery{After: 41, Follow: true}, q); diff != "" {
			t.Error(diff)
		}
		return each(kiln.Event{Sequence: 42, Kind: "release.live", Message: "a\nb"})
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://kiln/v1/events?last=5", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Accept", "text/event-stream")
	request.Header.Set("Last-Event-ID", "41")
	response, err := f.client.http.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	want := ":\n\nid: 42\nevent: release.live\ndata: " +
		`{"sequence":42,"at":"0001-01-01T00:00:00Z","kind":"release.live","subject":"","message":"a\nb"}` + "\n\nevent: end\ndata: {}\n\n"
	if diff := cmp.Diff(want, string(body)); diff != "" {
		t.Error(diff)
	}
}

func TestListsComeInPages(t *testing.T) {
	f := serve(t, nil)
	f.control.listed = 2500
	releases, err := f.client.Releases(t.Context(), "")
	if err != nil || len(releases) != 2500 || releases[0].Number != 2500 || releases[2499].Number != 1 {
		t.Errorf("%d releases: %v", len(releases), err)
	}
	instances, err := f.client.Instances(t.Context(), "")
	if err != nil || len(instances) != 2500 || instances[2499].ID != "web-2499" {
		t.Errorf("%d instances: %v", len(instances), err)
	}
	page, err := get[Page[kiln.Release]](t.Context(), f.client, "releases", nil)
	if err != nil || len(page.Items) != pageDefault || page.Next == "" {
		t.Fatalf("%d items, %v", len(page.Items), err)
	}
	f.control.listed = 2501 // one that is made meanwhile moves nothing
	next, err := get[Page[kiln.Release]](t.Context(), f.client, "releases", map[string][]string{"cursor": {page.Next}, "limit": {"7"}})
	if err != nil || len(next.Items) != 7 || next.Items[0].Number != 2400 {
		t.Errorf("%+v %v", next, err)
	}
	for query, want := range map[string]string{
		"limit=0": "1 to 1000", "limit=1001": "1 to 1000", "limit=x": "0 or more", "cursor=!": "next of the page before", "cursor=e30x": "next of the page before",
	} {
		name, value, _ := strings.Cut(query, "=")
		_, err := get[Page[kiln.Release]](t.Context(), f.client, "releases", map[string][]string{name: {value}})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", query, err)
		}
	}
	f.control.listed = 0
	if none, err := f.client.Instances(t.Context(), ""); err != nil || none == nil {
		t.Errorf("%v %v", none, err)
	}
}

func TestEventsComeInPages(t *testing.T) {
	f := serve(t, nil)
	f.control.events = func(_ context.Context, q control.EventQuery, each func(kiln.Event) error) error {
		for n := q.After + 1; n <= 250; n++ {
			if err := each(kiln.Event{Sequence: n}); err != nil {
				return err
			}
		}
		return nil
	}
	cursor, seen := "", 0
	for {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://kiln/v1/events?limit=100&cursor="+cursor, nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Accept", "text/html, application/json;q=0.9")
		response, err := f.client.http.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		var page Page[kiln.Event]
		if err := jsonOf(response, &page); err != nil {
			t.Fatal(err)
		}
		for _, e := range page.Items {
			if seen++; e.Sequence != int64(seen) {
				t.Fatalf("event %d is the %d.", e.Sequence, seen)
			}
		}
		if cursor = page.Next; cursor == "" {
			break
		}
	}
	if seen != 250 {
		t.Errorf("%d events", seen)
	}
}

func TestLargeBodiesAreBoundedTogether(t *testing.T) {
	a := serveRemote(t, nil)
	a.answering()
	client := a.as(t, kiln.RoleDeploy)
	for range bodyMemory / (64 << 20) { // each says that it has much to send, and sends nothing
		c, err := tls.Dial("tcp", a.address, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		_, err = fmt.Fprintf(c, "POST /v1/up HTTP/1.1\r\nHost: k\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n{", a.tokens[kiln.RoleDeploy], 64<<20)
		if err != nil {
			t.Fatal(err)
		}
	}
	large := control.UpRequest{Environment: strings.Repeat("x", bodyLarge)}
	var err error
	for range tokenBurst / 2 { // until the last of them is being read
		if _, err = client.Up(t.Context(), large, nil); err != nil {
			break
		}
	}
	if err == nil || !strings.Contains(err.Error(), "too many large requests at once") {
		t.Errorf("another large one: %v", err)
	}
	if _, err := client.Up(t.Context(), control.UpRequest{}, nil); err != nil {
		t.Errorf("a small one: %v", err)
	}
	if _, err := a.client.Up(t.Context(), large, nil); err != nil {
		t.Errorf("a large one over the Unix socket: %v", err)
	}
}

func TestUploadsAreRecordedWithTheirActor(t *testing.T) {
	var events []kiln.Event
	a := serveRemote(t, func(o *Options) {
		o.Record = func(_ context.Context, e kiln.Event) error { events = append(events, e); return nil }
	})
	content := []byte("content")
	blob := Blob{Digest: kiln.DigestOf(content), Size: 7, Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil }}
	if _, err := a.as(t, kiln.RoleDeploy).Upload(t.Context(), []Blob{blob}, nil); err != nil {
		t.Fatal(err)
	}
	if len(events) != 1 || events[0].Kind != "blobs.stored" || events[0].Actor != "token:deploy" || events[0].At.IsZero() {
		t.Errorf("%+v", events)
	}
	if fmt.Sprint(events) == "" || len(a.store.blobs) != 1 {
		t.Error("nothing was stored")
	}
}
