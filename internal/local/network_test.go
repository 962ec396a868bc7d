package local_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/local"
)

// dial asks an instance to open a TCP connection and returns what it got.
func dial(t *testing.T, i kiln.Instance, to string) string {
	t.Helper()
	return get(t, i, "/dial?"+url.Values{"net": {"tcp"}, "to": {to}}.Encode())
}

// serveOn listens on an address of the host and answers nothing.
func serveOn(t *testing.T, address string) string {
	t.Helper()
	l, err := net.Listen("tcp", address)
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
			_ = conn.Close()
		}
	}()
	return l.Addr().String()
}

func TestInstancesReachOnlyTheirOwnEnvironment(t *testing.T) {
	b := newBed(t)
	f := web(2)
	o := b.ready(f)
	other := web(1)
	other.Environment = "other"
	if err := b.Apply(t.Context(), "other", []kiln.Fleet{other}, "release 1"); err != nil {
		t.Fatal(err)
	}
	port := kiln.Port{Name: "http", Number: 80, Protocol: kiln.ProtocolHTTP}
	private := func(environment string, f kiln.Fleet) kiln.PrivateRoute {
		return kiln.PrivateRoute{Environment: environment, Service: "web", Port: port, Releases: []kiln.ReleaseRoute{{Release: 1, Fleets: []kiln.Weight{{Fleet: f.ID(), Percent: 100}}}}}
	}
	err := b.Route(t.Context(), kiln.RouteTable{
		Private: []kiln.PrivateRoute{private("test", f), private("other", other)},
		Callers: map[kiln.FleetID]int{f.ID(): 1},
	})
	if err != nil {
		t.Fatal(err)
	}
	table := b.gateway.wait(t, "the other environment", func(tr kiln.Traffic) bool { return len(tr.Fleets[other.ID()]) == 1 })
	addresses := map[string]netip.Addr{}
	for _, p := range table.Private {
		addresses[p.Environment] = p.Address
	}
	own := serveOn(t, netip.AddrPortFrom(addresses["test"], 80).String())
	foreign := serveOn(t, netip.AddrPortFrom(addresses["other"], 80).String())
	host := serveOn(t, hostAddress(t)+":0")
	first, second := o.Fleets[0].Instances[0], o.Fleets[0].Instances[1]
	if c := table.Callers[first.Address]; c.Release != 1 || c.Environment != "test" {
		t.Errorf("caller %+v", c)
	}
	if got := dial(t, first, own); got != "<nil>" {
		t.Errorf("its own environment: %s", got)
	}
	for what, to := range map[string]string{
		"another environment": foreign, "the host": host, "a neighbour": second.Address.String() + ":80",
		"an instance elsewhere": table.Fleets[other.ID()][0].Address.String() + ":80",
		"the metadata service":  "169.254.169.254:80", "the internet": "192.0.2.99:443",
		"the host's side": strings.Replace(own, ":80", ":81", 1),
	} {
		if got := dial(t, first, to); !strings.Contains(got, "refused") {
			t.Errorf("%s (%s): %q", what, to, got)
		}
	}
	for n := range 50 { // at once, however many there are
		if got := dial(t, second, fmt.Sprintf("192.0.2.%d:443", n)); !strings.Contains(got, "refused") {
			t.Fatalf("attempt %d: %q", n, got)
		}
	}
}

func TestBlockedAttemptBecomesAnEvent(t *testing.T) {
	b := newBed(t)
	i := b.ready(web(1)).Fleets[0].Instances[0]
	ctx, cancel := context.WithTimeout(t.Context(), longest)
	defer cancel()
	changes := b.Watch(ctx)
	began := time.Now()
	var dials sync.WaitGroup
	defer dials.Wait()
	for range 5 {
		dials.Go(func() { dial(t, i, "192.0.2.99:443") })
	}
	for c := range changes {
		if c.Event == nil {
			continue
		}
		if c.Event.Kind != "egress.blocked" || c.Event.Subject != i.ID || c.Event.Data["target"] != "192.0.2.99:443" || c.Event.Data["protocol"] != "tcp" {
			t.Errorf("event %+v", c.Event)
		}
		t.Logf("told after %v", time.Since(began))
		return
	}
	t.Error("nothing was told")
}

func TestDeclaredEgress(t *testing.T) {
	root(t)
	target := outside(t) // before the engine, so that it goes away after it
	b := newBed(t)
	declared := func(e kiln.Egress) func(*kiln.Template) {
		return func(t *kiln.Template) { t.Config.Egress = []kiln.Egress{e} }
	}
	open := web(1, declared(kiln.Egress{Prefix: netip.PrefixFrom(target.Addr(), 32), Port: target.Port(), Protocol: "tcp"}))
	wide := web(1, declared(kiln.Egress{Prefix: netip.MustParsePrefix("0.0.0.0/0"), Port: target.Port(), Protocol: "tcp"}))
	wide.Template.Service = "wide"
	o := b.ready(open, wide)
	for _, f := range o.Fleets {
		got := dial(t, f.Instances[0], target.String())
		if f.ID == open.ID() && got != "<nil>" {
			t.Errorf("declared egress: %s", got)
		}
		if f.ID == wide.ID() && got == "<nil>" {
			t.Error("a wide range opened a private address")
		}
		if got := dial(t, f.Instances[0], netip.AddrPortFrom(target.Addr(), 9).String()); !strings.Contains(got, "refused") {
			t.Errorf("another port: %s", got)
		}
	}
}

func TestTask(t *testing.T) {
	b := newBed(t)
	task := func(limit time.Duration, args ...string) kiln.TaskResult {
		t.Helper()
		f := web(1, func(t *kiln.Template) { t.Config.Command = args })
		r, err := b.Run(t.Context(), kiln.Task{Environment: "test", Release: 3, Template: f.Template, Timeout: limit})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := task(longest, "exit", "4"); r.Cause.Kind != kiln.CauseExited || r.Cause.ExitCode != 4 || len(r.Cause.LastLog) != 1 {
		t.Errorf("%+v", r)
	}
	if r := task(500*time.Millisecond, "sleep"); r.Cause.Kind != kiln.CauseNeverReady || r.Took < 500*time.Millisecond {
		t.Errorf("%+v", r)
	}
	bad := web(1, func(t *kiln.Template) { t.Config.Entrypoint = []string{"/none"} })
	r, err := b.Run(t.Context(), kiln.Task{Environment: "test", Template: bad.Template})
	// The init may have begun, and exits then, or the runtime finds it out.
	exited := err == nil && r.Cause.Kind == kiln.CauseExited && r.Cause.ExitCode != 0 && len(r.Cause.LastLog) > 0
	if !exited && !errors.Is(err, &kiln.Error{Code: kiln.CodeFailed}) {
		t.Errorf("a missing program: %+v %v", r, err)
	}
}

func TestAdmitAndCheck(t *testing.T) {
	b := newBed(t)
	if err := b.Admit(t.Context(), []kiln.Fleet{web(2)}); err != nil {
		t.Fatal(err)
	}
	huge := web(1000, func(t *kiln.Template) { t.Config.Limits.Memory = 1 << 40 })
	other := huge
	other.Template.Service = "huge2"
	if err := b.Admit(t.Context(), []kiln.Fleet{huge, other}); !errors.Is(err, kiln.ErrNoRoom) {
		t.Errorf("2,000 instances of a TiB: %v", err)
	}
	if err := b.Admit(t.Context(), []kiln.Fleet{web(1, func(t *kiln.Template) { t.Config.User = "nobody" })}); !errors.Is(err, kiln.ErrInvalid) {
		t.Errorf("an unknown user: %v", err)
	}
	v6 := web(1, func(t *kiln.Template) {
		t.Config.Egress = []kiln.Egress{{Prefix: netip.MustParsePrefix("2001:db8::/32"), Port: 443, Protocol: "tcp"}}
	})
	if err := b.Admit(t.Context(), []kiln.Fleet{v6}); !errors.Is(err, kiln.ErrInvalid) {
		t.Errorf("egress over IPv6: %v", err)
	}
	f := web(1)
	b.ready(f)
	if err := b.Check(t.Context(), f.ID(), kiln.Verify{HTTP: "/env", Body: "WHO=image"}); err != nil {
		t.Error(err)
	}
	for _, v := range []kiln.Verify{{HTTP: "/none"}, {HTTP: "/env", Body: "nowhere"}, {HTTP: "/env", Status: 201}, {HTTP: "/env", Port: "none"}} {
		if err := b.Check(t.Context(), f.ID(), v); err == nil {
			t.Errorf("%+v was as wanted", v)
		}
	}
}

func TestRefusedTableChangesNothing(t *testing.T) {
	b := newBed(t)
	b.ready(web(1))
	b.gateway.mu.Lock()
	b.gateway.refuse = kiln.Errorf(kiln.CodeInvalid, "", "no")
	b.gateway.mu.Unlock()
	err := b.Route(t.Context(), kiln.RouteTable{Callers: map[kiln.FleetID]int{"x": 9}, Private: []kiln.PrivateRoute{{Environment: "test", Service: "x", Port: kiln.Port{Number: 1}}}})
	if !errors.Is(err, kiln.ErrInvalid) {
		t.Errorf("route: %v", err)
	}
	b.gateway.mu.Lock()
	b.gateway.refuse = nil
	before := b.gateway.table.Generation
	b.gateway.mu.Unlock()
	b.gateway.wait(t, "the old table", func(tr kiln.Traffic) bool { return tr.Generation > before && len(tr.Private) == 0 })
}

func TestCertificatesGoWithTheTable(t *testing.T) {
	b := newBed(t)
	b.ready(web(1))
	cert, key := local.WritePair(t, t.TempDir())
	route := func(key string) error {
		return b.Route(t.Context(), kiln.RouteTable{Public: []kiln.PublicRoute{{
			Environment: "test", Protocol: kiln.ProtocolHTTP, Number: 8080,
			Route: kiln.Route{Name: "web", Host: "web.test", TLS: kiln.TLS{Mode: "files", Cert: cert, Key: key}},
		}}})
	}
	if err := route(cert); !errors.Is(err, kiln.ErrInvalid) {
		t.Errorf("a certificate for a key: %v", err)
	}
	if err := route(key); err != nil {
		t.Fatal(err)
	}
	b.gateway.wait(t, "the certificate", func(tr kiln.Traffic) bool {
		pair := tr.Certificates["web.test"]
		return strings.Contains(pair.Chain, "CERTIFICATE") && strings.Contains(pair.Key, "PRIVATE KEY")
	})
}

// hostAddress is an address of this host that is not loopback.
func hostAddress(t *testing.T) string {
	t.Helper()
	list, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range list {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && !n.IP.IsLoopback() {
			return n.IP.String()
		}
	}
	t.Skip("the host has no address but loopback")
	return ""
}
