package gateway

import (
	"net/netip"
	"strings"
)

// route finds where a request goes: a target, a refusal, or neither when it
// must come again over TLS. The path is in normal form.
func (g *gateway) route(listener string, r role, client netip.Addr, sni string, name, path []byte) (*target, *refusal) {
	t := g.table.Load()
	if r == rolePrivate {
		return t.privately(listener, client)
	}
	h := t.hosts[string(name)]
	if h == nil {
		return nil, &refusal{status: 404, text: "No route serves the host " + string(name) + " here."}
	}
	secure := h.tls.Mode != "" && h.tls.Mode != "off"
	if r == roleHTTPS && (!secure || sni != "" && sni != string(name)) {
		return nil, &refusal{status: 421, text: "This connection was made for another host."}
	}
	to := h.match(path)
	if to == nil {
		return nil, &refusal{status: 404, text: "No route of " + string(name) + " serves this path."}
	}
	if secure && r == roleHTTP {
		return nil, nil
	}
	return to, nil
}

// privately finds where an instance's call goes: within the caller's release.
// A caller of a release that the service has no fleets for gets the newest.
func (t *table) privately(listener string, client netip.Addr) (*target, *refusal) {
	p := t.private[listener]
	caller, known := t.source.Callers[client]
	if p == nil || !known || caller.Environment != p.environment {
		return nil, &refusal{status: 403, text: "This address does not belong to an instance of the environment.", close: true}
	}
	to := p.releases[caller.Release]
	if to == nil {
		to = p.live
	}
	if to == nil {
		return nil, refuseBusy()
	}
	return to, nil
}

// redirect sends a plain request to the same address over TLS.
func (c *conn) redirect() bool {
	return c.refuse(c.g.redirection(string(c.req.Name), string(c.req.Path)+string(c.req.Query)))
}

func (g *gateway) redirection(name, target string) refusal {
	if strings.Contains(name, ":") {
		name = "[" + name + "]"
	}
	if !strings.HasPrefix(target, "/") {
		target = "/"
	}
	where := "https://" + name + g.table.Load().secure + target
	return refusal{status: 308, text: "This host is served over TLS: " + where, location: where}
}

// again finds the target anew when nobody was ready and a new table came
// meanwhile: its instances may be others. Nil means that there is no better.
func (g *gateway) again(t *target, find func() (*target, *refusal)) *target {
	if t.table == g.table.Load() {
		return nil
	}
	next, no := find()
	if no != nil || next == nil || next.protocol != t.protocol || next.table == t.table {
		return nil
	}
	return next
}

// find is the route of the request in c.
func (c *conn) find() (*target, *refusal) {
	return c.g.route(c.listener, c.role, c.client, c.sni, c.req.Name, c.req.Path)
}
