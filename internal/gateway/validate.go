package gateway

import (
	"net"
	"net/netip"
	"path/filepath"
	"strconv"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/gateway/http1"
)

// validate checks a whole table before any of it is used.
func validate(t kiln.Traffic) error {
	v := validator{
		hosts: map[string]kiln.PublicRoute{}, paths: map[string]string{}, listeners: map[string]string{},
	}
	for _, a := range t.HTTP {
		v.listen("tcp://"+a, "public HTTP")
		v.address(a)
	}
	for _, a := range t.HTTPS {
		v.listen("tcp://"+a, "public HTTPS")
		v.address(a)
	}
	for _, r := range t.Public {
		v.public(r)
	}
	for _, p := range t.Private {
		v.private(p)
	}
	for _, z := range t.DNS {
		v.zone(z)
	}
	for id, endpoints := range t.Fleets {
		v.fleet(id, endpoints)
	}
	for a, c := range t.Callers {
		if !a.IsValid() || c.Environment == "" {
			v.invalid("caller %q has no address or environment", a)
		}
	}
	return v.err
}

type validator struct {
	err       error // the first
	hosts     map[string]kiln.PublicRoute
	paths     map[string]string // host and path -> route
	listeners map[string]string // -> what for
}

func (v *validator) invalid(format string, args ...any) {
	if v.err == nil {
		v.err = kiln.Errorf(kiln.CodeInvalid, "", format, args...)
	}
}

// listen claims a listener for one use.
func (v *validator) listen(name, use string) {
	if other, taken := v.listeners[name]; taken {
		v.invalid("listener %s is used twice: by %s and by %s", name, other, use)
	}
	v.listeners[name] = use
}

func (v *validator) address(a string) {
	host, port, err := net.SplitHostPort(a)
	if err == nil && host != "" {
		_, err = netip.ParseAddr(host)
	}
	n, perr := strconv.ParseUint(port, 10, 16)
	if err != nil || perr != nil || n == 0 {
		v.invalid("listener %q is not address:port", a)
	}
}

func (v *validator) public(r kiln.PublicRoute) {
	if r.Environment == "" || r.Number == 0 || r.Drain < 0 {
		v.invalid("route %q of environment %q has no environment, no port, or a negative drain", r.Route.Name, r.Environment)
	}
	v.weights("route "+r.Route.Name, r.Fleets)
	switch r.Protocol {
	case kiln.ProtocolTCP:
		v.address(r.Route.Listen)
		v.listen("tcp://"+r.Route.Listen, "route "+r.Route.Name+" of environment "+r.Environment)
		return
	case kiln.ProtocolHTTP, kiln.ProtocolH2C:
	default:
		v.invalid("route %q speaks %q, which is not known", r.Route.Name, r.Protocol)
	}
	name, err := http1.HostName([]byte(r.Route.Host))
	if err != nil || len(name) < len(hostKey(r.Route.Host)) {
		v.invalid("route %q has host %q, which is not a host name", r.Route.Name, r.Route.Host)
	}
	v.claim(r)
}

// claim takes host and path for one route of one environment.
func (v *validator) claim(r kiln.PublicRoute) {
	host := hostKey(r.Route.Host)
	if first, ok := v.hosts[host]; !ok {
		v.hosts[host] = r
	} else if first.Environment != r.Environment {
		if v.err == nil {
			v.err = kiln.Errorf(kiln.CodeConflict, "give the route of one of them another host",
				"host %s belongs to environment %s, and environment %s claims it too", host, first.Environment, r.Environment)
		}
	} else if first.Route.TLS != r.Route.TLS {
		v.invalid("routes %s and %s of host %s differ in their TLS", first.Route.Name, r.Route.Name, host)
	}
	path := r.Route.Path
	if path == "" {
		path = "/"
	}
	normal, _, err := http1.NormalPath([]byte(path), nil)
	if err != nil || string(normal) != path {
		v.invalid("route %q has path %q, which is not in normal form", r.Route.Name, path)
	}
	if len(path) > 1 && path[len(path)-1] == '/' {
		path = path[:len(path)-1]
	}
	if other, ok := v.paths[host+path]; ok {
		v.invalid("routes %s and %s both serve %s%s", other, r.Route.Name, host, path)
	}
	v.paths[host+path] = r.Route.Name
	v.tls(r.Route)
}

func (v *validator) tls(r kiln.Route) {
	switch r.TLS.Mode {
	case "", "off", "acme", "local":
	case "files":
		if !filepath.IsAbs(r.TLS.Cert) || !filepath.IsAbs(r.TLS.Key) {
			v.invalid("route %q needs absolute paths of its certificate and key", r.Name)
		}
	default:
		v.invalid("route %q has TLS mode %q, which is not known", r.Name, r.TLS.Mode)
	}
}

func (v *validator) private(p kiln.PrivateListener) {
	what := "service " + p.Service + " of environment " + p.Environment
	if !p.Address.IsValid() || p.Port.Number == 0 || p.Environment == "" {
		v.invalid("%s has no address, port or environment", what)
	}
	switch p.Port.Protocol {
	case kiln.ProtocolHTTP, kiln.ProtocolH2C, kiln.ProtocolTCP:
	default:
		v.invalid("%s speaks %q, which is not known", what, p.Port.Protocol)
	}
	v.listen("tcp://"+netip.AddrPortFrom(p.Address, p.Port.Number).String(), what)
	for _, r := range p.Releases {
		v.weights(what, r.Fleets)
	}
}

func (v *validator) weights(what string, weights []kiln.Weight) {
	sum := 0
	for _, w := range weights {
		if w.Percent < 0 || w.Percent > 100 || w.Fleet == "" {
			v.invalid("%s gives fleet %q %d percent", what, w.Fleet, w.Percent)
		}
		sum += w.Percent
	}
	if len(weights) > 0 && sum != 100 {
		v.invalid("%s gives its fleets %d percent together, not 100", what, sum)
	}
}

func (v *validator) zone(z kiln.Zone) {
	if !z.Address.IsValid() || z.Environment == "" {
		v.invalid("the resolver of environment %q has no address", z.Environment)
	}
	address := netip.AddrPortFrom(z.Address, 53).String()
	what := "the resolver of environment " + z.Environment
	v.listen("udp://"+address, what)
	v.listen("tcp://"+address, what)
}

func (v *validator) fleet(id kiln.FleetID, endpoints []kiln.Endpoint) {
	seen := map[string]bool{}
	for _, e := range endpoints {
		if e.Instance == "" || !e.Address.IsValid() {
			v.invalid("fleet %s has an instance without a name or address", id)
		}
		if seen[e.Instance] {
			v.invalid("fleet %s lists instance %s twice", id, e.Instance)
		}
		seen[e.Instance] = true
	}
}
