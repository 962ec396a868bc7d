package gateway

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"testing"

	"github.com/miekg/dns"

	"github.com/kilnproject/kiln"
)

// from dials from one of the machine's loopback addresses, as an instance.
func from(t *testing.T, local, address string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(local)}}
	c, err := d.DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestCallsStayWithinTheCallersRelease(t *testing.T) {
	serve := func(address, name string) {
		upstreamOn(t, address, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s %s", name, r.Header.Get("X-Forwarded-For"))
		}))
	}
	// The virtual address's port is the instances' own.
	r := start(t)
	address := r.listen("127.0.0.50")
	port := portNumber(t, address)
	serve(fmt.Sprintf("127.0.0.51:%d", port), "old")
	serve(fmt.Sprintf("127.0.0.52:%d", port), "new")
	only := func(f kiln.FleetID) []kiln.Weight { return []kiln.Weight{{Fleet: f, Percent: 100}} }
	r.table.Private = []kiln.PrivateListener{{
		Address: netip.MustParseAddr("127.0.0.50"),
		PrivateRoute: kiln.PrivateRoute{
			Environment: "test", Service: "orders", Port: kiln.Port{Name: "http", Number: port, Protocol: kiln.ProtocolHTTP},
			Releases: []kiln.ReleaseRoute{{Release: 2, Fleets: only("new")}, {Release: 1, Fleets: only("old")}},
		},
	}}
	r.table.Fleets = map[kiln.FleetID][]kiln.Endpoint{
		"old": {{Instance: "orders-1", Address: netip.MustParseAddr("127.0.0.51")}},
		"new": {{Instance: "orders-2", Address: netip.MustParseAddr("127.0.0.52")}},
	}
	r.table.Callers = map[netip.Addr]kiln.Caller{
		netip.MustParseAddr("127.0.0.61"): {Environment: "test", Release: 1},
		netip.MustParseAddr("127.0.0.62"): {Environment: "test", Release: 2},
		netip.MustParseAddr("127.0.0.63"): {Environment: "test", Release: 7},
		netip.MustParseAddr("127.0.0.64"): {Environment: "other", Release: 1},
	}
	r.set()
	for local, want := range map[string]string{
		"127.0.0.61": "200 old 9.9.9.9", "127.0.0.62": "200 new 9.9.9.9", "127.0.0.63": "200 new 9.9.9.9",
		"127.0.0.64": "403", "127.0.0.65": "403",
	} {
		c := from(t, local, address)
		fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: orders\r\nX-Forwarded-For: 9.9.9.9\r\n\r\n")
		res := read(t, c, bufioReader(c), "GET")
		got := fmt.Sprint(res.StatusCode)
		if res.StatusCode == 200 {
			got += " " + bodyOf(t, res)
		}
		if got != want {
			t.Errorf("from %s: %s, want %s", local, got, want)
		}
	}
}

// resolverOn gives the gateway the resolver's sockets under the names that the
// table uses, whatever ports they really have.
func resolverOn(t *testing.T, r *rig) (address string) {
	t.Helper()
	udp, err := net.ListenPacket("udp", "127.0.0.53:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	f, err := udp.(*net.UDPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	r.give("udp://127.0.0.53:53", f)
	tcp, err := net.Listen("tcp", udp.LocalAddr().String())
	if err != nil {
		t.Skipf("the TCP port is taken: %v", err)
	}
	defer tcp.Close()
	if f, err = tcp.(*net.TCPListener).File(); err != nil {
		t.Fatal(err)
	}
	r.give("tcp://127.0.0.53:53", f)
	return udp.LocalAddr().String()
}

func TestResolverAnswersItsEnvironmentOnly(t *testing.T) {
	r := start(t)
	address := resolverOn(t, r)
	r.table.DNS = []kiln.Zone{{
		Environment: "test", Address: netip.MustParseAddr("127.0.0.53"),
		Names: map[string][]netip.Addr{"orders": {netip.MustParseAddr("10.1.2.3")}},
	}}
	r.table.Callers = map[netip.Addr]kiln.Caller{
		netip.MustParseAddr("127.0.0.61"): {Environment: "test"},
		netip.MustParseAddr("127.0.0.62"): {Environment: "other"},
	}
	r.set()
	for _, network := range []string{"udp", "tcp"} {
		for _, c := range []struct {
			name    string
			qtype   uint16
			code    int
			answers int
		}{
			{"orders.", dns.TypeA, dns.RcodeSuccess, 1},
			{"OrDers.", dns.TypeA, dns.RcodeSuccess, 1},
			{"orders.", dns.TypeAAAA, dns.RcodeSuccess, 0},
			{"other.", dns.TypeA, dns.RcodeNameError, 0},
			{"a.orders.", dns.TypeA, dns.RcodeNameError, 0},
			{"3.2.1.10.in-addr.arpa.", dns.TypePTR, dns.RcodeRefused, 0},
		} {
			got, err := query(network, "127.0.0.61", address, c.name, c.qtype)
			if err != nil {
				t.Fatalf("%s %s: %v", network, c.name, err)
			}
			if got.Rcode != c.code || len(got.Answer) != c.answers {
				t.Errorf("%s %s %d: %v", network, c.name, c.qtype, got)
			}
			if len(got.Answer) == 1 && got.Answer[0].(*dns.A).A.String() != "10.1.2.3" {
				t.Errorf("%s %s: %v", network, c.name, got.Answer[0])
			}
		}
	}
	if got, err := query("tcp", "127.0.0.62", address, "orders.", dns.TypeA); err == nil {
		t.Errorf("another environment got %v", got)
	}
}

func query(network, local, address, name string, qtype uint16) (*dns.Msg, error) {
	d := &net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(local)}}
	if network == "tcp" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(local)}
	}
	c := dns.Client{Net: network, Dialer: d}
	m, _, err := c.Exchange(new(dns.Msg).SetQuestion(name, qtype), address)
	return m, err
}

func TestResolverBoundsOneInstance(t *testing.T) {
	g := &gateway{}
	r := newResolver(g)
	allowed := 0
	for range 3 * dnsBurst {
		if r.allow(netip.MustParseAddr("10.0.0.1")) {
			allowed++
		}
	}
	if allowed < dnsBurst || allowed == 3*dnsBurst {
		t.Errorf("%d of %d queries at once were allowed", allowed, 3*dnsBurst)
	}
}
