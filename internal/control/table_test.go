package control

import (
	"testing"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/kilntest"
	"github.com/kilnproject/kiln/internal/rollout"
)

var _ Faults = (*kilntest.Faults)(nil)

func tableRelease(number int, services ...kiln.Service) kiln.Release {
	r := kiln.Release{Environment: "p", Number: number}
	for _, s := range services {
		r.Services = append(r.Services, kiln.ReleaseService{Count: s.Count, Template: kiln.Template{
			Service: s.Name, Image: kiln.DigestOf([]byte(s.Image)), Platform: "linux/amd64", Ports: s.Ports, Config: s.Config,
		}})
	}
	r.Routes = []kiln.Route{{Name: "shop", Service: "web", Host: "p.example.com"}, {Name: "lost", Service: "nowhere", Host: "x.example.com"}}
	return r
}

// TestCallsStayWithinARelease has three releases that share some fleets: a
// fleet belongs to the first of live, candidate and parked that has it, and
// each release's callers reach its own fleets.
func TestCallsStayWithinARelease(t *testing.T) {
	web1, web2, web3 := serving("web", "1", 1), serving("web", "2", 1), serving("web", "3", 1)
	api1, api3 := serving("api", "1", 1), serving("api", "3", 1)
	live, candidate, parked := tableRelease(2, web2, api1), tableRelease(3, web3, api3), tableRelease(1, web1, api1)
	got := table(map[string]rollout.View{"p": {Live: &live, Others: []kiln.Release{candidate, parked}}, "q": {}})

	fleet := func(r kiln.Release, n int) kiln.FleetID { return kiln.FleetIDOf("p", r.Services[n].Template) }
	for id, want := range map[kiln.FleetID]int{
		fleet(live, 0): 2, fleet(live, 1): 2, fleet(candidate, 0): 3, fleet(candidate, 1): 3, fleet(parked, 0): 1,
	} {
		if got.Callers[id] != want {
			t.Errorf("calls of %s stay within release %d, want %d", id, got.Callers[id], want)
		}
	}
	if len(got.Public) != 1 || got.Public[0].Fleets[0] != (kiln.Weight{Fleet: fleet(live, 0), Percent: 100}) || got.Public[0].Number != 8080 {
		t.Errorf("public %+v", got.Public)
	}
	if len(got.Private) != 2 {
		t.Fatalf("private %+v", got.Private)
	}
	for _, p := range got.Private {
		if len(p.Releases) != 3 {
			t.Errorf("%s is reached from %d releases", p.Service, len(p.Releases))
		}
		for _, r := range p.Releases {
			want := map[string]map[int]kiln.FleetID{
				"web": {1: fleet(parked, 0), 2: fleet(live, 0), 3: fleet(candidate, 0)},
				"api": {1: fleet(live, 1), 2: fleet(live, 1), 3: fleet(candidate, 1)},
			}[p.Service][r.Release]
			if r.Fleets[0].Fleet != want {
				t.Errorf("%s of release %d is %s, want %s", p.Service, r.Release, r.Fleets[0].Fleet, want)
			}
		}
	}
}
