// Package plan compares what should be with what is: which fleets a release
// creates, replaces and destroys, with the reason for each. It is pure: no
// clock, context, files, network or randomness.
package plan

import (
	"fmt"
	"slices"
	"strings"

	"github.com/kilnproject/kiln"
)

// Steps are what leads from the live release, nil for none, to a desired one,
// by service. A service whose template and count are the same has no step; one
// whose count alone changes creates or destroys the difference. Unbaked maps
// the services whose image is not baked yet to the image's name: they are
// replaced because of it.
func Steps(environment string, live *kiln.Release, desired kiln.Release, unbaked map[string]string) []kiln.Step {
	was := byService(live)
	will := byService(&desired)
	steps := []kiln.Step{}
	for _, name := range names(was, will) {
		from, had := was[name]
		to, has := will[name]
		switch {
		case !had:
			steps = append(steps, kiln.Step{
				Verb: kiln.VerbCreate, Service: name, Count: to.Count, To: fleetID(environment, to, unbaked),
				Reasons: []string{"service: new"},
			})
		case !has:
			steps = append(steps, kiln.Step{
				Verb: kiln.VerbDestroy, Service: name, Count: from.Count, From: kiln.FleetIDOf(environment, from.Template),
				Reasons: []string{"service: no longer defined"},
			})
		default:
			steps = append(steps, change(environment, from, to, unbaked)...)
		}
	}
	return steps
}

// change are the steps of a service that both releases have.
func change(environment string, from, to kiln.ReleaseService, unbaked map[string]string) []kiln.Step {
	reasons := Reasons(from.Template, to.Template)
	if image, ok := unbaked[to.Template.Service]; ok {
		reasons = slices.DeleteFunc(reasons, func(r string) bool {
			return strings.HasPrefix(r, "image: ") || strings.HasPrefix(r, "platform: ")
		})
		reasons = append([]string{"image: " + image + " is baked anew"}, reasons...)
	}
	old := kiln.FleetIDOf(environment, from.Template)
	counts := fmt.Sprintf("count: %d -> %d", from.Count, to.Count)
	switch {
	case len(reasons) > 0:
		if from.Count != to.Count {
			reasons = append(reasons, counts)
		}
		return []kiln.Step{{
			Verb: kiln.VerbReplace, Service: to.Template.Service, Count: to.Count,
			From: old, To: fleetID(environment, to, unbaked), Reasons: reasons,
		}}
	case to.Count > from.Count:
		return []kiln.Step{{Verb: kiln.VerbCreate, Service: to.Template.Service, Count: to.Count - from.Count, From: old, To: old, Reasons: []string{counts}}}
	case to.Count < from.Count:
		return []kiln.Step{{Verb: kiln.VerbDestroy, Service: to.Template.Service, Count: from.Count - to.Count, From: old, To: old, Reasons: []string{counts}}}
	}
	return nil
}

// fleetID is empty where the image, and so the fleet, is not known yet.
func fleetID(environment string, s kiln.ReleaseService, unbaked map[string]string) kiln.FleetID {
	if _, ok := unbaked[s.Template.Service]; ok {
		return ""
	}
	return kiln.FleetIDOf(environment, s.Template)
}

func byService(r *kiln.Release) map[string]kiln.ReleaseService {
	out := map[string]kiln.ReleaseService{}
	if r != nil {
		for _, s := range r.Services {
			out[s.Template.Service] = s
		}
	}
	return out
}

// names are the sorted keys of both maps.
func names[V any](a, b map[string]V) []string {
	var out []string
	for name := range a {
		out = append(out, name)
	}
	for name := range b {
		if _, both := a[name]; !both {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}
