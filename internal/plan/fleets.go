package plan

import (
	"slices"
	"strings"

	"github.com/kilnproject/kiln"
)

// Part is a release's share in what should run.
type Part struct {
	Release *kiln.Release // nil is no part
	// Workers run too; otherwise they are at zero, with their image ready.
	Workers bool
	// Spare yields: where another part has the same fleet, that one's count
	// holds.
	Spare bool
}

// Fleets unites what the parts need into one desired set, sorted by ID. A
// fleet that several parts need has the highest of their counts.
func Fleets(environment string, parts ...Part) []kiln.Fleet {
	type want struct {
		fleet kiln.Fleet
		spare bool
	}
	wants := map[kiln.FleetID]want{}
	for _, p := range parts {
		if p.Release == nil {
			continue
		}
		for _, s := range p.Release.Services {
			f := kiln.Fleet{Environment: environment, Template: s.Template, Count: s.Count}
			if s.Template.Worker() && !p.Workers {
				f.Count = 0
			}
			id := f.ID()
			have, ok := wants[id]
			// A worker at zero never outvotes one that runs, spare or not.
			if !ok || (have.spare && !p.Spare) || (have.spare == p.Spare && f.Count > have.fleet.Count) {
				wants[id] = want{fleet: f, spare: p.Spare}
			}
		}
	}
	out := make([]kiln.Fleet, 0, len(wants))
	for _, w := range wants {
		out = append(out, w.fleet)
	}
	slices.SortFunc(out, func(a, b kiln.Fleet) int { return strings.Compare(string(a.ID()), string(b.ID())) })
	return out
}

// stays says whether a fleet has an instance that is not on its way out.
func stays(f kiln.FleetStatus) bool {
	return slices.ContainsFunc(f.Instances, func(i kiln.Instance) bool {
		return i.State != kiln.InstanceDraining && i.State != kiln.InstanceQuarantined && i.State != kiln.InstanceDead
	})
}

// Drift lists the differences between the desired fleets and what an engine
// was last told, one sentence each.
func Drift(desired []kiln.Fleet, observed kiln.Observation) []string {
	var out []string
	wanted := map[kiln.FleetID]bool{}
	for _, f := range desired {
		id := f.ID()
		wanted[id] = true
		status, ok := observed.Fleet(id)
		switch {
		case !ok && f.Count > 0:
			out = append(out, "fleet "+string(id)+" is missing")
		case ok && status.Fleet.Count != f.Count:
			out = append(out, "fleet "+string(id)+" has another count than released")
		}
	}
	for _, status := range observed.Fleets {
		if !wanted[status.ID] && stays(status) {
			out = append(out, "fleet "+string(status.ID)+" is of no release")
		}
	}
	return out
}
