package control

import (
	"maps"
	"slices"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/rollout"
)

// table makes the whole traffic table of all environments.
func table(views map[string]rollout.View) kiln.RouteTable {
	t := kiln.RouteTable{Callers: map[kiln.FleetID]int{}}
	for _, name := range slices.Sorted(maps.Keys(views)) {
		view := views[name]
		if view.Live != nil {
			t.Public = append(t.Public, public(name, *view.Live)...)
		}
		reachable := reachable(view)
		t.Private = append(t.Private, private(name, reachable)...)
		for _, r := range reachable {
			for _, s := range r.Services {
				id := kiln.FleetIDOf(name, s.Template)
				if _, known := t.Callers[id]; !known {
					t.Callers[id] = r.Number
				}
			}
		}
	}
	return t
}

// reachable are a view's releases in the order in which a fleet that several
// of them have belongs to one: the live one first.
func reachable(v rollout.View) []kiln.Release {
	var out []kiln.Release
	seen := map[int]bool{}
	if v.Live != nil {
		out = append(out, *v.Live)
		seen[v.Live.Number] = true
	}
	for _, r := range v.Others {
		if !seen[r.Number] {
			seen[r.Number] = true
			out = append(out, r)
		}
	}
	return out
}

// public are the routes of a live release.
func public(name string, r kiln.Release) []kiln.PublicRoute {
	var out []kiln.PublicRoute
	for _, route := range r.Routes {
		for _, s := range r.Services {
			if s.Template.Service != route.Service {
				continue
			}
			port, ok := s.Template.Port(route.Port)
			if !ok {
				continue
			}
			out = append(out, kiln.PublicRoute{
				Environment: name, Route: route, Protocol: port.Protocol, Number: port.Number,
				Fleets: whole(name, s.Template), Drain: s.Template.Config.Drain,
			})
		}
	}
	return out
}

// private are the ports of all services of an environment, each with where
// every release's callers are sent. Where two releases disagree about what a
// port number speaks, the first of them is believed.
func private(name string, releases []kiln.Release) []kiln.PrivateRoute {
	type key struct {
		service string
		number  uint16
	}
	var order []key
	routes := map[key]*kiln.PrivateRoute{}
	for _, r := range releases {
		for _, s := range r.Services {
			for _, p := range s.Template.Ports {
				k := key{s.Template.Service, p.Number}
				route, ok := routes[k]
				if !ok {
					route = &kiln.PrivateRoute{Environment: name, Service: s.Template.Service, Port: p, Drain: s.Template.Config.Drain}
					routes[k] = route
					order = append(order, k)
				}
				route.Releases = append(route.Releases, kiln.ReleaseRoute{Release: r.Number, Fleets: whole(name, s.Template)})
			}
		}
	}
	out := make([]kiln.PrivateRoute, 0, len(order))
	for _, k := range order {
		out = append(out, *routes[k])
	}
	return out
}

func whole(name string, t kiln.Template) []kiln.Weight {
	return []kiln.Weight{{Fleet: kiln.FleetIDOf(name, t), Percent: 100}}
}
