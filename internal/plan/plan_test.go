package plan

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kilnproject/kiln"
	"pgregory.net/rapid"
)

func release(services ...kiln.ReleaseService) *kiln.Release {
	return &kiln.Release{Environment: "p", Services: services}
}

func service(name, image string, count int) kiln.ReleaseService {
	return kiln.ReleaseService{Count: count, Template: kiln.Template{
		Service: name, Image: kiln.DigestOf([]byte(image)), Platform: "linux/amd64",
		Ports: []kiln.Port{{Name: "http", Number: 8080, Protocol: kiln.ProtocolHTTP}},
	}}
}

func background(s kiln.ReleaseService) kiln.ReleaseService {
	s.Template.Ports = nil
	return s
}

func TestSteps(t *testing.T) {
	live := release(service("api", "1", 2), service("cron", "1", 1), service("web", "1", 3), service("www", "1", 5))
	steps := Steps("p", live, *release(service("api", "1", 2), service("db", "1", 1), service("web", "2", 4), service("www", "1", 2)), nil)
	var got []string
	for _, s := range steps {
		got = append(got, string(s.Verb)+" "+s.Service)
	}
	if want := []string{"destroy cron", "create db", "replace web", "destroy www"}; !slices.Equal(got, want) {
		t.Fatalf("steps %v, want %v", got, want)
	}
	if web := steps[2]; web.Count != 4 || len(web.Reasons) != 2 || !strings.HasPrefix(web.Reasons[0], "image: ") || web.Reasons[1] != "count: 3 -> 4" {
		t.Fatalf("web %+v", web)
	}
	if www := steps[3]; www.Count != 3 {
		t.Fatalf("www %+v", www)
	}
}

func TestAnImageToBakeIsTheReason(t *testing.T) {
	to := service("web", "", 3)
	to.Template.Image, to.Template.Platform = "", ""
	steps := Steps("p", release(service("web", "1", 3)), *release(to), map[string]string{"web": "front"})
	if len(steps) != 1 || steps[0].Verb != kiln.VerbReplace || steps[0].To != "" || !slices.Equal(steps[0].Reasons, []string{"image: front is baked anew"}) {
		t.Fatalf("%+v", steps)
	}
}

func TestReasonsNameEachField(t *testing.T) {
	for want, change := range map[string]func(*kiln.Template){
		"env ORDERS_URL: a -> b":         func(t *kiln.Template) { t.Config.Env = map[string]string{"ORDERS_URL": "b", "API_TOKEN": "old"} },
		"env API_TOKEN: changed":         func(t *kiln.Template) { t.Config.Env = map[string]string{"ORDERS_URL": "a", "API_TOKEN": "new"} },
		"limits.memory: 10B -> 64MiB":    func(t *kiln.Template) { t.Config.Limits.Memory = 64 << 20 },
		"limits.core_size: none -> 1GiB": func(t *kiln.Template) { t.Config.Limits.CoreSize = 1 << 30 },
		"limits.log: 0B -> 1MiB":         func(t *kiln.Template) { t.Config.Limits.LogBytes = 1 << 20 },
		"limits.umask: 0000 -> 0022":     func(t *kiln.Template) { t.Config.Limits.Umask = 0o22 },
		"init: true -> false":            func(t *kiln.Template) { t.Config.NoInit = true },
		"writable: none -> /a 1MiB, /b 4KiB": func(t *kiln.Template) {
			t.Config.Writable = []kiln.Writable{{Path: "/a", Size: 1 << 20}, {Path: "/b", Size: 4 << 10}}
		},
		"egress: none -> api.example.com:443, 192.0.2.0/24:53/udp, [2001:db8::/32]:80": func(t *kiln.Template) {
			t.Config.Egress = []kiln.Egress{
				{Host: "api.example.com", Port: 443, Protocol: "tcp"},
				{Prefix: netip.MustParsePrefix("192.0.2.0/24"), Port: 53, Protocol: "udp"},
				{Prefix: netip.MustParsePrefix("2001:db8::/32"), Port: 80, Protocol: "tcp"},
			}
		},
		"env ORDERS_URL: a -> " + strings.Repeat("é", 60) + "...": func(t *kiln.Template) {
			t.Config.Env = map[string]string{"ORDERS_URL": strings.Repeat("é", 5000), "API_TOKEN": "old"}
		},
		`command: none -> ["serve"]`:             func(t *kiln.Template) { t.Config.Command = []string{"serve"} },
		"ports: http 8080/http -> http 9090/tcp": func(t *kiln.Template) { t.Ports = []kiln.Port{{Name: "http", Number: 9090, Protocol: "tcp"}} },
		`ready.http: "" -> /healthz`:             func(t *kiln.Template) { t.Config.Ready.HTTP = "/healthz" },
		"drain: 0s -> 5s":                        func(t *kiln.Template) { t.Config.Drain = 5 * time.Second },
		"host_root: false -> true":               func(t *kiln.Template) { t.Config.HostRoot = true },
	} {
		from := service("web", "1", 1).Template
		from.Config.Env = map[string]string{"ORDERS_URL": "a", "API_TOKEN": "old"}
		from.Config.Limits.Memory = 10
		to := from
		change(&to)
		if got := Reasons(from, to); !slices.Equal(got, []string{want}) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestRoutes(t *testing.T) {
	live := release()
	live.Routes = []kiln.Route{{Name: "a", Host: "a.example", Path: "/", Service: "web"}, {Name: "b", Host: "b.example", Path: "/", Service: "web"}}
	got := Routes(live, []kiln.Route{{Name: "b", Host: "b.example", Path: "/", Service: "api"}, {Name: "c", Listen: ":6379", Service: "redis"}})
	want := []string{
		"route a is removed: a.example/ -> web",
		"route b changes from b.example/ -> web to b.example/ -> api",
		"route c is added: tcp :6379 -> redis",
	}
	if !slices.Equal(got, want) {
		t.Fatalf("%q", got)
	}
}

// drawRelease draws a release of up to four services, some without ports.
func drawRelease(t *rapid.T, name string) *kiln.Release {
	var services []kiln.ReleaseService
	for _, s := range []string{"a", "b", "c", "d"} {
		if !rapid.Bool().Draw(t, name+s) {
			continue
		}
		one := service(s, rapid.SampledFrom([]string{"1", "2"}).Draw(t, name+s+"image"), rapid.IntRange(0, 4).Draw(t, name+s+"count"))
		if s == "d" {
			one = background(one)
		}
		services = append(services, one)
	}
	return release(services...)
}

// TestApplyingAPlanConverges takes the steps literally and demands the desired
// release.
func TestApplyingAPlanConverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		live, desired := drawRelease(t, "live"), drawRelease(t, "desired")
		have := counts(live)
		for _, s := range Steps("p", live, *desired, nil) {
			if len(s.Reasons) == 0 {
				t.Fatalf("no reason: %+v", s)
			}
			switch s.Verb {
			case kiln.VerbCreate:
				have[s.To] += s.Count
			case kiln.VerbDestroy:
				have[s.From] -= s.Count
			case kiln.VerbReplace:
				delete(have, s.From)
				have[s.To] = s.Count
			}
		}
		want := counts(desired)
		for id, n := range have {
			if n != want[id] {
				t.Fatalf("%s: %d, want %d", id, n, want[id])
			}
			delete(want, id)
		}
		for id, n := range want {
			if n != 0 {
				t.Fatalf("%s is missing", id)
			}
		}
		if again := Steps("p", desired, *desired, nil); len(again) != 0 {
			t.Fatalf("steps from a release to itself: %+v", again)
		}
	})
}

func counts(r *kiln.Release) map[kiln.FleetID]int {
	out := map[kiln.FleetID]int{}
	for _, s := range r.Services {
		out[kiln.FleetIDOf("p", s.Template)] = s.Count
	}
	return out
}

// TestFleetsUnite checks that no part that is not spare gets less than it
// needs, and that spare ones never raise a count.
func TestFleetsUnite(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b, spare := drawRelease(t, "a"), drawRelease(t, "b"), drawRelease(t, "spare")
		got := map[kiln.FleetID]int{}
		for _, f := range Fleets("p", Part{Release: a, Workers: true}, Part{Release: b}, Part{Release: spare, Spare: true}) {
			got[f.ID()] = f.Count
		}
		wantA, wantB, wantSpare := counts(a), counts(b), counts(spare)
		for id, n := range got {
			_, inA := wantA[id]
			_, inB := wantB[id]
			fromB := wantB[id]
			if strings.HasPrefix(string(id), "p/d/") {
				fromB = 0
			}
			want := max(wantA[id], fromB)
			if !inA && !inB {
				if want = wantSpare[id]; strings.HasPrefix(string(id), "p/d/") {
					want = 0
				}
			}
			if n != want {
				t.Fatalf("%s: %d, want %d", id, n, want)
			}
		}
		if drift := Drift(nil, kiln.Observation{}); drift != nil {
			t.Fatalf("drift of nothing: %v", drift)
		}
	})
}

func TestDriftNamesWhatDiffers(t *testing.T) {
	want := Fleets("p", Part{Release: release(service("web", "1", 2), service("api", "1", 1)), Workers: true})
	stray := kiln.Fleet{Environment: "p", Template: service("old", "1", 1).Template, Count: 1}
	seen := kiln.Observation{Fleets: []kiln.FleetStatus{
		{ID: want[1].ID(), Fleet: kiln.Fleet{Environment: "p", Template: want[1].Template, Count: 7}},
		{ID: stray.ID(), Fleet: stray, Instances: []kiln.Instance{{State: kiln.InstanceReady}}},
	}}
	if got := Drift(want, seen); len(got) != 3 {
		t.Fatalf("%q", got)
	}
	seen.Fleets[1].Instances[0].State = kiln.InstanceDraining
	if got := Drift(want, seen); len(got) != 2 {
		t.Fatalf("%q", got)
	}
}
