package plan

import (
	"fmt"

	"github.com/kilnproject/kiln"
)

// Routes are the changes of the public routes, one sentence each, by name.
func Routes(live *kiln.Release, desired []kiln.Route) []string {
	was, will := map[string]kiln.Route{}, map[string]kiln.Route{}
	if live != nil {
		for _, r := range live.Routes {
			was[r.Name] = r
		}
	}
	for _, r := range desired {
		will[r.Name] = r
	}
	var out []string
	for _, name := range names(was, will) {
		from, had := was[name]
		to, has := will[name]
		switch {
		case !had:
			out = append(out, fmt.Sprintf("route %s is added: %s", name, path(to)))
		case !has:
			out = append(out, fmt.Sprintf("route %s is removed: %s", name, path(from)))
		case from != to && path(from) != path(to):
			out = append(out, fmt.Sprintf("route %s changes from %s to %s", name, path(from), path(to)))
		case from != to:
			out = append(out, fmt.Sprintf("route %s gets its certificate another way: %q instead of %q", name, to.TLS.Mode, from.TLS.Mode))
		}
	}
	return out
}

// path is where a route leads: "shop.example.com/ -> web:http".
func path(r kiln.Route) string {
	at := r.Host + r.Path
	if r.Listen != "" {
		at = "tcp " + r.Listen
	}
	to := r.Service
	if r.Port != "" {
		to += ":" + r.Port
	}
	return at + " -> " + to
}
