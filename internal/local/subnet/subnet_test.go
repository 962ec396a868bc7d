package subnet_test

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/kilnproject/kiln/internal/local/subnet"
)

func TestChooseAvoidsWhatIsTaken(t *testing.T) {
	taken := []netip.Prefix{netip.MustParsePrefix("10.64.0.0/16"), netip.MustParsePrefix("10.65.3.0/24")}
	got, err := subnet.Choose(0, taken)
	if err != nil || got != netip.MustParsePrefix("10.66.0.0/16") {
		t.Errorf("%v %v", got, err)
	}
	wide := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	if got, err := subnet.Choose(0, wide); err != nil || got != netip.MustParsePrefix("100.64.0.0/16") {
		t.Errorf("beside a wide route: %v %v", got, err)
	}
	wide = append(wide, netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("172.0.0.0/8"))
	if _, err := subnet.Choose(7, wide); err == nil {
		t.Error("found room where there is none")
	}
}

func TestNothingIsGivenTwice(t *testing.T) {
	p := subnet.New(netip.MustParsePrefix("10.70.0.0/16"), 1)
	seen := map[netip.Addr]bool{p.Source(): true}
	ids := map[uint32]bool{}
	give := func(a netip.Addr) {
		t.Helper()
		if seen[a] || !p.Subnet.Contains(a) {
			t.Fatalf("%v was given twice or is foreign", a)
		}
		seen[a] = true
	}
	for _, name := range []string{"a", "b", "c"} {
		e, changed, err := p.Open(name, nil)
		if err != nil || !changed || ids[e.UIDBase] {
			t.Fatal(err, changed)
		}
		ids[e.UIDBase] = true
		give(e.Resolver)
		for _, s := range []string{"web", "db"} {
			a, changed, err := p.Service(e, s)
			if err != nil || !changed {
				t.Fatal(err, changed)
			}
			give(a)
			if b, changed, _ := p.Service(e, s); b != a || changed {
				t.Errorf("%s moved from %v to %v", s, a, b)
			}
		}
		for range 600 {
			a, _, err := p.Take(e, time.Unix(0, 0))
			if err != nil {
				t.Fatal(err)
			}
			give(a)
		}
	}
}

func TestReleasedAddressesRest(t *testing.T) {
	p := subnet.New(netip.MustParsePrefix("10.70.0.0/16"), 1)
	e, _, err := p.Open("a", nil)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(0, 0)
	first, _, _ := p.Take(e, now)
	for range 253 {
		if _, _, err := p.Take(e, now); err != nil {
			t.Fatal(err)
		}
	}
	p.Release(first, now.Add(time.Minute))
	if a, changed, _ := p.Take(e, now); a == first || !changed {
		t.Errorf("got %v while it rests", a)
	}
	for range 253 {
		_, _, _ = p.Take(e, now)
	}
	if a, _, _ := p.Take(e, now.Add(time.Minute)); a != first {
		t.Errorf("got %v after its rest, want %v", a, first)
	}
	if free := p.Free(e); free != 240*254-508 {
		t.Errorf("%d are free", free)
	}
}

func TestForeignIDsAreAvoided(t *testing.T) {
	p := subnet.New(netip.MustParsePrefix("10.70.0.0/16"), 1)
	e, _, err := p.Open("a", nil)
	if err != nil {
		t.Fatal(err)
	}
	q := subnet.New(netip.MustParsePrefix("10.70.0.0/16"), 1)
	f, _, err := q.Open("a", []subnet.Range{{First: e.UIDBase + 5, Last: e.UIDBase + 6}})
	if err != nil || f.UIDBase == e.UIDBase {
		t.Errorf("%d overlaps with somebody's IDs: %v", f.UIDBase, err)
	}
}

func TestPlanSurvivesTheDisk(t *testing.T) {
	p := subnet.New(netip.MustParsePrefix("10.70.0.0/16"), 7)
	e, _, err := p.Open("a", nil)
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := p.Take(e, time.Unix(0, 0))
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	var q subnet.Plan
	if err := json.Unmarshal(b, &q); err != nil {
		t.Fatal(err)
	}
	q.Init()
	q.Claim(first)
	f, changed, err := q.Open("a", nil)
	if err != nil || changed || f.UIDBase != e.UIDBase || f.Resolver != e.Resolver {
		t.Errorf("%+v became %+v: %v", e, f, err)
	}
	if a, _, _ := q.Take(f, time.Unix(0, 0)); a == first {
		t.Errorf("%v lives and was given again", a)
	}
}
