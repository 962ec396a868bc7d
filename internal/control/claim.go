package control

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"

	"github.com/kilnproject/kiln"
)

// claim gives host names and addresses to an environment for as long as it is
// held, and refuses those that belong to another one.
func (c *Control) claim(name string, routes []kiln.Route) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, other := range slices.Sorted(maps.Keys(c.environments)) {
		if other == name {
			continue
		}
		for _, theirs := range c.environments[other].routes() {
			for _, ours := range routes {
				if what := clash(ours, theirs); what != "" {
					return kiln.Errorf(kiln.CodeRefused,
						fmt.Sprintf("choose another one, or free it with kiln down %s", other),
						"route %q claims %s, which belongs to environment %s", ours.Name, what, other)
				}
			}
		}
	}
	c.environment(name).claims = routes
	return nil
}

// routes are those of all releases that an environment stands for or is about
// to.
func (e *environment) routes() []kiln.Route {
	out := slices.Clone(e.claims)
	if e.view.Live != nil {
		out = append(out, e.view.Live.Routes...)
	}
	for _, r := range e.view.Others {
		out = append(out, r.Routes...)
	}
	return out
}

// clash names what two routes cannot both have; "" for nothing.
func clash(a, b kiln.Route) string {
	if a.Host != "" && strings.EqualFold(a.Host, b.Host) {
		return "the host name " + a.Host
	}
	if a.Listen == "" || b.Listen == "" {
		return ""
	}
	hostA, portA, errA := net.SplitHostPort(a.Listen)
	hostB, portB, errB := net.SplitHostPort(b.Listen)
	if errA != nil || errB != nil || portA != portB {
		return ""
	}
	if hostA == hostB || everywhere(hostA) || everywhere(hostB) {
		return "the address " + a.Listen
	}
	return ""
}

func everywhere(host string) bool {
	ip := net.ParseIP(host)
	return host == "" || (ip != nil && ip.IsUnspecified())
}
