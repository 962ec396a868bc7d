package kiln

import (
	"net/netip"
	"time"
)

// RouteTable is all traffic of all environments, by fleet. The control plane
// makes it, whole, every time; an engine takes it in one step or not at all.
type RouteTable struct {
	Public  []PublicRoute  `json:"public"`
	Private []PrivateRoute `json:"private"`
	// Callers says which release a fleet's own calls stay within.
	Callers map[FleetID]int `json:"callers"`
}

// PublicRoute is a route of a live release.
type PublicRoute struct {
	Environment string   `json:"environment"`
	Route       Route    `json:"route"`
	Protocol    Protocol `json:"protocol"`
	Number      uint16   `json:"number"` // the instances' port
	Fleets      []Weight `json:"fleets"`
	// Drain is how long a connection may go on after its instance left.
	Drain time.Duration `json:"drain"`
}

// PrivateRoute is a port of a service as its own environment sees it, under
// the service's name.
type PrivateRoute struct {
	Environment string         `json:"environment"`
	Service     string         `json:"service"`
	Port        Port           `json:"port"`
	Releases    []ReleaseRoute `json:"releases"`
	Drain       time.Duration  `json:"drain"`
}

// ReleaseRoute is where callers of one release are sent.
type ReleaseRoute struct {
	Release int      `json:"release"`
	Fleets  []Weight `json:"fleets"`
}

// Weight is a fleet's share, in percent; the weights of one route sum to 100.
type Weight struct {
	Fleet   FleetID `json:"fleet"`
	Percent int     `json:"percent"`
}

// Traffic is a RouteTable with addresses put in: what the gateway carries. The
// local engine makes it anew whenever an instance joins or leaves.
type Traffic struct {
	// Generation grows by one with every table; an older one is refused.
	Generation uint64                 `json:"generation"`
	HTTP       []string               `json:"http"`  // listeners of public HTTP, "address:port"
	HTTPS      []string               `json:"https"` // listeners of public HTTPS
	Public     []PublicRoute          `json:"public"`
	Private    []PrivateListener      `json:"private"`
	Fleets     map[FleetID][]Endpoint `json:"fleets"` // only those that are ready
	Callers    map[netip.Addr]Caller  `json:"callers"`
	DNS        []Zone                 `json:"dns"`
	// Certificates are what the hosts of routes with TLS from files show.
	Certificates map[string]Certificate `json:"certificates,omitempty"`
}

// Certificate is a chain and its private key, both in PEM.
type Certificate struct {
	Chain string `json:"chain"`
	Key   string `json:"key"`
}

// PrivateListener is a PrivateRoute on its virtual address.
type PrivateListener struct {
	PrivateRoute
	Address netip.Addr `json:"address"`
}

// Endpoint is an instance that takes traffic.
type Endpoint struct {
	Instance string     `json:"instance"`
	Address  netip.Addr `json:"address"`
}

// Caller is who calls from an instance's address.
type Caller struct {
	Environment string  `json:"environment"`
	Release     int     `json:"release"`
	Fleet       FleetID `json:"fleet"`
}

// Zone is all that an environment's resolver answers, on its own address.
type Zone struct {
	Environment string                  `json:"environment"`
	Address     netip.Addr              `json:"address"` // port 53, UDP and TCP
	Names       map[string][]netip.Addr `json:"names"`   // lower case, without the final dot
}

// Listeners are the sockets that a table needs, "tcp://address:port" and
// "udp://address:port", without repeats.
func (t Traffic) Listeners() []string {
	seen := map[string]bool{}
	var out []string
	add := func(network string, address string) {
		s := network + "://" + address
		if !seen[s] {
			seen[s] = true
			out = append(out, s)
		}
	}
	for _, a := range t.HTTP {
		add("tcp", a)
	}
	for _, a := range t.HTTPS {
		add("tcp", a)
	}
	for _, r := range t.Public {
		if r.Protocol == ProtocolTCP {
			add("tcp", r.Route.Listen)
		}
	}
	for _, p := range t.Private {
		add("tcp", netip.AddrPortFrom(p.Address, p.Port.Number).String())
	}
	for _, z := range t.DNS {
		a := netip.AddrPortFrom(z.Address, 53).String()
		add("udp", a)
		add("tcp", a)
	}
	return out
}

// Measurement is what the gateway counted for one fleet or instance since it
// started; the difference of two is a window.
type Measurement struct {
	Fleet    FleetID `json:"fleet"`
	Instance string  `json:"instance,omitempty"` // empty for the fleet's sum
	Requests uint64  `json:"requests"`
	// Status counts answers by class: index 0 for 1xx up to 4 for 5xx.
	Status [5]uint64 `json:"status"`
	// Failures had no answer: refused, reset, timed out.
	Failures uint64 `json:"failures"`
	InFlight int64  `json:"in_flight"`
	BytesIn  uint64 `json:"bytes_in"`
	BytesOut uint64 `json:"bytes_out"`
	// Latency counts answers by time to the last byte; the bounds are
	// LatencyBounds, the last bucket is for what is above them.
	Latency [len(LatencyBounds) + 1]uint64 `json:"latency"`
	// Took is the time of all answers that Latency counts, together.
	Took time.Duration `json:"took"`
}

// LatencyBounds are the upper bounds of Measurement.Latency's buckets.
var LatencyBounds = [...]time.Duration{
	500 * time.Microsecond, time.Millisecond, 2 * time.Millisecond, 3 * time.Millisecond, 5 * time.Millisecond,
	7 * time.Millisecond, 10 * time.Millisecond, 15 * time.Millisecond, 20 * time.Millisecond, 30 * time.Millisecond,
	50 * time.Millisecond, 70 * time.Millisecond, 100 * time.Millisecond, 150 * time.Millisecond, 200 * time.Millisecond,
	300 * time.Millisecond, 500 * time.Millisecond, 700 * time.Millisecond, time.Second, 2 * time.Second,
	5 * time.Second, 10 * time.Second, 30 * time.Second,
}
