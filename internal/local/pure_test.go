package local

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/kilntest"
)

// TestMain looks for goroutines that outlive their owner, and gives the tests
// a folder for programs, which the gateway's user must be able to enter.
func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "kiln-local-bin-")
	if err == nil {
		err = errors.Join(os.Chmod(dir, 0o755), os.Setenv("KILN_TEST_BIN", dir))
	}
	if err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		_ = os.RemoveAll(dir)
		os.Exit(code)
	}))
}

func TestConverge(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	a, b, c := view{id: "a", created: at(1), ready: true}, view{id: "b", created: at(2), ready: true}, view{id: "c", created: at(3)}
	leaving := func(v view) view { v.leaving = true; return v }
	for name, test := range map[string]struct {
		count int
		have  []view
		want  step
	}{
		"nothing":                     {0, nil, step{}},
		"from nothing":                {2, nil, step{create: 2}},
		"as it should be":             {2, []view{a, b}, step{}},
		"one less: the unready":       {2, []view{a, b, c}, step{destroy: []string{"c"}}},
		"one less: the youngest":      {1, []view{a, b}, step{destroy: []string{"b"}}},
		"none":                        {0, []view{a, c}, step{destroy: []string{"c", "a"}}},
		"leaving waits":               {1, []view{leaving(a)}, step{create: 1}},
		"leaving still waits":         {1, []view{leaving(a), c}, step{}},
		"leaving goes":                {1, []view{leaving(a), b}, step{replace: []string{"a"}}},
		"leaving is not wanted":       {0, []view{leaving(a)}, step{replace: []string{"a"}}},
		"leaving serves nobody":       {1, []view{leaving(c)}, step{create: 1, replace: []string{"c"}}},
		"leaving one of two, one new": {2, []view{leaving(a), b, c}, step{}},
	} {
		if d := cmp.Diff(test.want, converge(test.count, test.have), cmp.AllowUnexported(step{})); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

// Whatever is there, taking steps ends with the count and nothing that
// leaves, and never has fewer ready than before until enough are.
func TestConvergeArrives(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		count := rapid.IntRange(0, 8).Draw(r, "count")
		var have []view
		for i := range rapid.IntRange(0, 12).Draw(r, "have") {
			have = append(have, view{
				id: string(rune('a' + i)), created: time.Unix(int64(i), 0),
				ready: rapid.Bool().Draw(r, "ready"), leaving: rapid.Bool().Draw(r, "leaving"),
			})
		}
		for range 20 {
			before := ready(have)
			s := converge(count, have)
			have = slices.DeleteFunc(have, func(v view) bool { return slices.Contains(s.destroy, v.id) || slices.Contains(s.replace, v.id) })
			if now := ready(have); now < min(before, count) {
				r.Fatalf("ready went from %d to %d with %d desired", before, now, count)
			}
			for range s.create {
				have = append(have, view{id: "new" + string(rune('a'+len(have))), created: time.Unix(100, 0)})
			}
			for i := range have {
				have[i].ready = true
			}
		}
		if len(have) != count || slices.ContainsFunc(have, func(v view) bool { return v.leaving }) {
			r.Fatalf("ended with %+v, %d desired", have, count)
		}
	})
}

func ready(have []view) int {
	n := 0
	for _, v := range have {
		if v.ready {
			n++
		}
	}
	return n
}

func TestBackoff(t *testing.T) {
	var b backoff
	now := time.Unix(0, 0)
	var got []time.Duration
	for range 13 {
		b.failed(now, 1)
		got = append(got, max(0, b.until.Sub(now)))
	}
	want := []time.Duration{0, 100e6, 200e6, 400e6, 800e6, 1600e6, 3200e6, 6400e6, 12800e6, 25600e6, 30e9, 30e9, 30e9}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if b.reset(); b.until.After(now) {
		t.Error("still waits after a reset")
	}
}

func TestPublisherGathers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int64
		var broken atomic.Bool
		fail := errors.New("no")
		p := newPublisher(slog.New(slog.DiscardHandler), func(context.Context) error {
			<-time.After(time.Second) // of the bubble
			runs.Add(1)
			if broken.Load() {
				return fail
			}
			return nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		go p.run(ctx)
		for range 100 {
			go func() { _ = p.publish(ctx) }()
		}
		if err := p.publish(ctx); err != nil {
			t.Error(err)
		}
		kilntest.Pass(5 * time.Second)
		if n := runs.Load(); n > 2 {
			t.Errorf("%d runs for 101 requests at once", n)
		}
		broken.Store(true)
		if err := p.publish(ctx); !errors.Is(err, fail) {
			t.Errorf("a failed run told %v", err)
		}
		broken.Store(false)
		before := runs.Load()
		kilntest.Pass(2 * time.Second) // and is tried again, unasked
		if n := runs.Load() - before; n != 1 {
			t.Errorf("%d runs after a failed one", n)
		}
		cancel()
		synctest.Wait()
	})
}

func TestAttemptsAreToldOnce(t *testing.T) {
	var a attempts
	now := time.Unix(0, 0)
	key := attempt{"web-1", netip.MustParseAddrPort("192.0.2.1:443"), "tcp"}
	for i, want := range []bool{true, false, false} {
		if tell, _ := a.take(key, now.Add(time.Duration(i)*time.Second)); tell != want {
			t.Errorf("attempt %d: told %v", i, tell)
		}
	}
	if tell, before := a.take(key, now.Add(quiet)); !tell || before != 2 {
		t.Errorf("after the quiet time: told %v with %d", tell, before)
	}
}

func TestNewIDSorts(t *testing.T) {
	at := time.UnixMilli(1_800_000_000_000)
	a, b := newID("a-very-long-name-of-a-service-that-goes-on", at), newID("a-very-long-name-of-a-service-that-goes-on", at.Add(time.Millisecond))
	if a >= b || len(a) > 40 {
		t.Errorf("%s (%d), %s", a, len(a), b)
	}
}

func TestResolverKeepsWhatItKnew(t *testing.T) {
	e := &Engine{environments: map[string]*environment{}}
	e.Log = slog.New(slog.DiscardHandler)
	r := newResolver(e)
	one, two := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	now := time.Unix(0, 0)
	if !r.learn("host", []netip.Addr{one}, now) || r.learn("host", []netip.Addr{one}, now) {
		t.Error("a change is not told from none")
	}
	r.learn("host", []netip.Addr{two}, now.Add(time.Minute))
	if got := r.allowed("Host."); !slices.Equal(got, []netip.Addr{one, two}) {
		t.Errorf("allowed %v", got)
	}
	if got := r.current("host"); !slices.Equal(got, []netip.Addr{two}) {
		t.Errorf("current %v", got)
	}
	r.lookup = func(context.Context, string) ([]netip.Addr, error) { return nil, errors.New("no answer") }
	r.resolve(t.Context(), "host")
	if got := r.current("host"); len(got) != 1 {
		t.Error("a failure forgot the last addresses")
	}
	if !r.learn("host", []netip.Addr{two}, now.Add(time.Hour)) || len(r.allowed("host")) != 1 {
		t.Error("an old address stays allowed for ever")
	}
}

func TestCheckFleets(t *testing.T) {
	good := kiln.Fleet{Environment: "test", Template: kiln.Template{Service: "web"}, Count: 1}
	bad := func(change func(*kiln.Fleet)) kiln.Fleet { f := good; change(&f); return f }
	if err := checkFleets("test", []kiln.Fleet{good}); err != nil {
		t.Error(err)
	}
	for name, fleets := range map[string][]kiln.Fleet{
		"twice":   {good, good},
		"climbs":  {bad(func(f *kiln.Fleet) { f.Template.Service = "../x" })},
		"foreign": {bad(func(f *kiln.Fleet) { f.Environment = "other" })},
		"many":    {bad(func(f *kiln.Fleet) { f.Count = 1001 })},
	} {
		if err := checkFleets("test", fleets); !errors.Is(err, kiln.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"", "..", "a/b", "-x", "a\x00"} {
		if err := checkFleets(name, nil); err == nil {
			t.Errorf("%q is a name", name)
		}
	}
}

func TestEachOfAFleetMayDieOnceWithoutADelay(t *testing.T) {
	var b backoff
	now := time.Now()
	for range 3 {
		b.failed(now, 3)
		if b.until.After(now) {
			t.Fatalf("delayed after %d deaths of 3 instances", b.failures)
		}
	}
	if b.failed(now, 3); !b.until.Equal(now.Add(firstDelay)) {
		t.Errorf("delay after the fourth death: %s", b.until.Sub(now))
	}
}
