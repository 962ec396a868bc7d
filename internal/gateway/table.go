package gateway

import (
	"crypto/tls"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/kilnproject/kiln"
)

// role is what a listening socket is for.
type role uint8

const (
	roleNone role = iota
	roleHTTP
	roleHTTPS
	roleTCP
	rolePrivate
	roleDNS
)

// table is a kiln.Traffic, compiled. It never changes; only choice and
// suspicion, which are advice, are kept in it.
type table struct {
	source  kiln.Traffic
	roles   map[string]role // by listener, "tcp://address:port"
	hosts   map[string]*host
	tcp     map[string]*target // by listener
	private map[string]*private
	zones   map[string]*kiln.Zone // by listener
	// secure is the port that plain requests are sent to, ":8443", or empty
	// for 443.
	secure string
}

// host is a public name.
type host struct {
	environment string
	tls         kiln.TLS
	cert        *tls.Certificate // with TLS from files; nil when there is none
	routes      []pathRoute      // longest path first
}

type pathRoute struct {
	path   string // without a final slash: "" for all
	target *target
}

// private is a service's port on its virtual address.
type private struct {
	environment string
	protocol    kiln.Protocol
	releases    map[int]*target
	// live is the newest release, for callers of a release that is not listed.
	live *target
}

// match finds the route with the longest prefix of whole segments.
func (h *host) match(path []byte) *target {
	for i := range h.routes {
		r := &h.routes[i]
		n := len(r.path)
		if len(path) >= n && string(path[:n]) == r.path && (len(path) == n || path[n] == '/' || n == 0) {
			return r.target
		}
	}
	return nil
}

// compile turns a valid table into one that can be used.
func (g *gateway) compile(t kiln.Traffic) *table {
	out := &table{
		source:  t,
		roles:   map[string]role{},
		hosts:   map[string]*host{},
		tcp:     map[string]*target{},
		private: map[string]*private{},
		zones:   map[string]*kiln.Zone{},
	}
	fleets := map[kiln.FleetID]members{}
	for id, endpoints := range t.Fleets {
		f, instances := g.registry.enter(id, endpoints)
		fleets[id] = members{f, instances}
	}
	c := compiler{g: g, out: out, fleets: fleets}
	c.listeners()
	for _, r := range t.Public {
		c.public(r)
	}
	for _, h := range out.hosts {
		slices.SortStableFunc(h.routes, func(a, b pathRoute) int { return len(b.path) - len(a.path) })
	}
	for _, p := range t.Private {
		c.private(p)
	}
	return out
}

type members struct {
	fleet     *fleet
	instances []*instance
}

type compiler struct {
	g      *gateway
	out    *table
	fleets map[kiln.FleetID]members
}

func (c *compiler) listeners() {
	t := c.out.source
	for _, a := range t.HTTP {
		c.out.roles["tcp://"+a] = roleHTTP
	}
	for i, a := range t.HTTPS {
		c.out.roles["tcp://"+a] = roleHTTPS
		if _, port, err := net.SplitHostPort(a); err == nil && i == 0 && port != "443" {
			c.out.secure = ":" + port
		}
	}
	for _, z := range t.DNS {
		address := netip.AddrPortFrom(z.Address, 53).String()
		for _, network := range []string{"udp://", "tcp://"} {
			c.out.roles[network+address] = roleDNS
			c.out.zones[network+address] = &z
		}
	}
}

func (c *compiler) public(r kiln.PublicRoute) {
	to := c.target(r.Environment, r.Route.Name, r.Protocol, r.Number, r.Fleets)
	if r.Protocol == kiln.ProtocolTCP {
		c.out.roles["tcp://"+r.Route.Listen] = roleTCP
		c.out.tcp["tcp://"+r.Route.Listen] = to
		return
	}
	name := hostKey(r.Route.Host)
	h := c.out.hosts[name]
	if h == nil {
		h = &host{environment: r.Environment, tls: r.Route.TLS, cert: c.certificate(name, r.Route.TLS.Mode)}
		c.out.hosts[name] = h
	}
	h.routes = append(h.routes, pathRoute{path: strings.TrimSuffix(r.Route.Path, "/"), target: to})
}

// certificate is what a host with TLS from files shows: the same as in the
// table before when it did not change.
func (c *compiler) certificate(name, mode string) *tls.Certificate {
	pem, ok := c.out.source.Certificates[name]
	if mode != "files" || !ok {
		return nil
	}
	if old := c.g.table.Load(); old != nil && old.hosts[name] != nil && old.hosts[name].cert != nil && old.source.Certificates[name] == pem {
		return old.hosts[name].cert
	}
	cert, err := tls.X509KeyPair([]byte(pem.Chain), []byte(pem.Key))
	if err != nil {
		c.g.slog.Error("a host's certificate is not used", "host", name, "error", err)
		return nil
	}
	return &cert
}

func (c *compiler) private(p kiln.PrivateListener) {
	name := "tcp://" + netip.AddrPortFrom(p.Address, p.Port.Number).String()
	out := &private{environment: p.Environment, protocol: p.Port.Protocol, releases: map[int]*target{}}
	newest := 0
	for _, r := range p.Releases {
		to := c.target(p.Environment, p.Service, p.Port.Protocol, p.Port.Number, r.Fleets)
		out.releases[r.Release] = to
		if out.live == nil || r.Release > newest {
			out.live, newest = to, r.Release
		}
	}
	c.out.roles[name] = rolePrivate
	c.out.private[name] = out
}

func (c *compiler) target(environment, name string, p kiln.Protocol, port uint16, weights []kiln.Weight) *target {
	t := &target{table: c.out, environment: environment, name: name, protocol: p}
	for _, w := range weights {
		m := c.fleets[w.Fleet]
		if m.fleet == nil { // no instance is ready, and the table says so
			m.fleet, _ = c.g.registry.enter(w.Fleet, nil)
			c.fleets[w.Fleet] = m
		}
		s := share{fleet: m.fleet, percent: w.Percent}
		for _, i := range m.instances {
			s.members = append(s.members, &member{instance: i, pool: i.pool(port, c.g)})
		}
		t.shares = append(t.shares, s)
	}
	t.order = interleave(weights)
	t.turn.Store(rand.Uint32()) //nolint:gosec // spreads load, guards nothing
	return t
}

// interleave spreads 100 turns over the weights as evenly as can be: the
// smooth weighted round robin.
func interleave(weights []kiln.Weight) []uint16 {
	total := 0
	for _, w := range weights {
		total += w.Percent
	}
	current := make([]int, len(weights))
	order := make([]uint16, 0, total)
	for range total {
		best := 0
		for i, w := range weights {
			current[i] += w.Percent
			if current[i] > current[best] {
				best = i
			}
		}
		current[best] -= total
		order = append(order, uint16(best))
	}
	return order
}

// hostKey is a host name as requests are matched by it.
func hostKey(name string) string {
	return strings.ToLower(strings.TrimSuffix(name, "."))
}
