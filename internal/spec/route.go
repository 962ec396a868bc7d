package spec

import (
	"net/netip"
	"path"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/hclfile"
)

// routes reads all route blocks, sorted by name.
func (l *loader) routes(services []kiln.Service) []kiln.Route {
	byName := map[string]kiln.Service{}
	for _, s := range services {
		byName[s.Name] = s
	}
	var out []kiln.Route
	claimed := map[string]*instance{}
	for _, i := range l.all("route") {
		r := l.route(i, byName)
		l.claim(r, i, claimed)
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b kiln.Route) int { return compare(a.Name, b.Name) })
	return out
}

// claim reports a host and path, or an address, that two routes want.
func (l *loader) claim(r kiln.Route, i *instance, claimed map[string]*instance) {
	key := r.Listen
	if r.Host != "" {
		key = r.Host + r.Path
	}
	if key == "" {
		return // wrong, and reported
	}
	if first, ok := claimed[key]; ok {
		l.report.Error(i.at(), "Claimed twice", "Routes %q (at %s) and %q both claim %s. A host and path, or an address, belongs to one route.", first.name, hclfile.Place(first.at()), r.Name, key)
		return
	}
	claimed[key] = i
}

func (l *loader) route(i *instance, services map[string]kiln.Service) kiln.Route {
	d := l.scope.decode(i.block.Body, i)
	r := kiln.Route{Name: i.name, Service: d.block("to", "service")}
	service, ok := services[r.Service]
	if !ok {
		return r // reported by the reference
	}
	if len(service.Ports) == 0 {
		l.report.Error(d.At("to"), "No port", "Service %q has no port, so no traffic can go to it. Add a port block to it.", r.Service)
		return r
	}
	port := service.Ports[0]
	if d.Has("port") {
		if port, ok = d.port("port", service.Ports, ""); !ok {
			return r
		}
	}
	r.Port = port.Name
	if port.Protocol == kiln.ProtocolTCP {
		l.tcpRoute(d, &r)
		return r
	}
	l.httpRoute(d, &r)
	return r
}

func (l *loader) tcpRoute(d *decoder, r *kiln.Route) {
	for _, name := range []string{"host", "path"} {
		if d.Has(name) {
			l.report.Error(d.At(name), "Conflicting arguments", "Port %q of service %q speaks tcp, which knows no %s. Write listen = \"ADDRESS:PORT\".", r.Port, r.Service, name)
		}
	}
	if tls := d.single("tls"); tls != nil {
		l.report.Error(d.At("listen"), "Conflicting arguments", "A tcp route carries bytes as they are; its service does the TLS.")
	}
	if !d.Has("listen") {
		l.report.Error(d.At("listen"), "Missing argument", "Port %q of service %q speaks tcp, so its route needs listen = \"ADDRESS:PORT\".", r.Port, r.Service)
		return
	}
	listen := d.Checked("listen", "Invalid address", badListen)
	if a, err := netip.ParseAddrPort(listen); err == nil {
		r.Listen = a.String()
	}
}

func badListen(s string) string {
	a, err := netip.ParseAddrPort(s)
	switch {
	case strings.HasPrefix(s, ":"):
		return "has no address. For all addresses write \"0.0.0.0" + s + "\" or \"[::]" + s + "\"."
	case err != nil || a.Port() == 0 || a.Addr().Zone() != "" || a.Addr().Is4In6() || a.Addr().IsMulticast():
		return "is not an address and a port: \"0.0.0.0:5432\", \"[::]:5432\"."
	}
	return ""
}

func (l *loader) httpRoute(d *decoder, r *kiln.Route) {
	if d.Has("listen") {
		l.report.Error(d.At("listen"), "Conflicting arguments", "Port %q of service %q is reached by its host through the gateway's own listeners; listen is for tcp ports.", r.Port, r.Service)
	}
	if !d.Has("host") {
		l.report.Error(d.At("host"), "Missing argument", "A route to an http port needs the host that requests are for: host = \"shop.example.com\".")
	}
	r.Host = strings.ToLower(d.Checked("host", "Invalid host", func(s string) string {
		if strings.HasPrefix(s, "*") {
			return "has a wildcard. Write one route for each host; for_each makes them."
		}
		return badHost(strings.ToLower(s))
	}))
	r.Path = "/"
	if p := d.Checked("path", "Invalid path", badRoutePath); p != "" {
		r.Path = p
	}
	r.TLS = l.tls(d, r)
}

func badRoutePath(s string) string {
	if problem := badRequestPath(s); problem != "" {
		return problem
	}
	if strings.ContainsAny(s, "?%\\;") || path.Clean(s) != s {
		return "is not a plain prefix: no query, no percent signs, no doubled or final slash."
	}
	return ""
}

func (l *loader) tls(d *decoder, r *kiln.Route) kiln.TLS {
	local := r.Host == "localhost" || strings.HasSuffix(r.Host, ".localhost")
	inner := d.single("tls")
	if inner == nil {
		if !local && r.Host != "" {
			l.report.Warn(d.At("host"), "No TLS", "Traffic of %s is not encrypted. Add tls { mode = \"acme\" }, or say tls { mode = \"off\" } when that is meant.", r.Host)
		}
		return kiln.TLS{Mode: "off"}
	}
	mode := inner.Checked("mode", "Unknown mode", func(s string) string {
		modes := []string{"off", "acme", "local", "files"}
		if slices.Contains(modes, s) {
			return ""
		}
		return "is not a mode of TLS." + hclfile.Suggest(s, modes)
	})
	out := kiln.TLS{Mode: mode, Cert: inner.Checked("cert", "Invalid path", badAbsolute), Key: inner.Checked("key", "Invalid path", badAbsolute)}
	at := inner.At("mode")
	switch {
	case mode == "files" && (!inner.Has("cert") || !inner.Has("key")):
		l.report.Error(at, "Missing argument", "Mode files needs cert and key.")
	case mode != "files":
		inner.refuse("mode = \""+mode+"\"", "cert", "key")
	}
	l.checkTLS(mode, at, local, r.Host)
	return out
}

func (l *loader) checkTLS(mode string, at hcl.Range, local bool, host string) {
	switch {
	case mode == "acme" && (local || !strings.Contains(host, ".")):
		l.report.Error(at, "Wrong mode", "No public authority certifies %q. Use mode = \"local\".", host)
	case mode == "local" && !local:
		l.report.Error(at, "Wrong mode", "The local authority is for .localhost names; %q is not one.", host)
	}
}
