package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/kilntest"
)

func TestTheHistoryTellsALife(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.mustUp(shop("production", "1"))
		b.settled()
		list, err := b.Instances(t.Context(), "production")
		check(t, err)
		check(t, b.engine.Kill(list[0].ID, kiln.Cause{Kind: kiln.CauseOutOfMemory}))
		b.settled()
		kinds := b.kinds()
		for _, want := range []string{"release.created", "rollout.begun", "instance.born", "instance.ready", "release.live", "instance.died"} {
			if !slices.Contains(kinds, want) {
				t.Errorf("no event %s in %v", want, kinds)
			}
		}
		alive, err := b.ledger.Alive(t.Context())
		check(t, err)
		if len(alive) != 6 {
			t.Errorf("%d alive", len(alive))
		}
		s, err := b.Status(t.Context())
		check(t, err)
		e := s.Environments[0]
		if e.Name != "production" || e.Live.Number != 1 || len(e.Services) != 3 || e.Services[0].Deaths+e.Services[1].Deaths+e.Services[2].Deaths != 1 || len(e.Problems) > 0 {
			t.Errorf("status %+v", e)
		}
	})
}

// TestADeathIsToldOnce has it told by whoever looks first after a restart, and
// later by the engine.
func TestADeathIsToldOnce(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.mustUp(shop("production", "1"))
		b.settled()
		list, err := b.Instances(t.Context(), "production")
		check(t, err)
		check(t, b.engine.Kill(list[0].ID, kiln.Cause{Kind: kiln.CauseLost}))
		b.settled()
		b.halt()
		dead, err := b.ledger.Instance(t.Context(), list[0].ID)
		check(t, err)
		if r := b.describe(t.Context(), []kiln.Change{{At: time.Now(), Instance: &dead}}); len(r.Events)+len(r.Instances) > 0 {
			t.Errorf("told again: %+v", r)
		}
		stranger := dead
		stranger.ID = "web-born-and-gone"
		if r := b.describe(t.Context(), []kiln.Change{{At: time.Now(), Instance: &stranger}}); len(r.Events) != 1 {
			t.Errorf("one that nobody saw alive: %+v", r)
		}
	})
}

func TestStatusNamesWhatIsWrong(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.mustUp(shop("production", "1"))
		b.settled()
		b.engine.BehaveService("web", kilntest.Behaviour{StartFailed: "no such file"})
		list, err := b.Instances(t.Context(), "production")
		check(t, err)
		for _, i := range list {
			if i.Service == "web" {
				check(t, b.engine.Kill(i.ID, kiln.Cause{Kind: kiln.CauseExited, ExitCode: 1}))
			}
		}
		b.settled()
		s, err := b.Status(t.Context())
		check(t, err)
		if p := strings.Join(s.Environments[0].Problems, "\n"); !strings.Contains(p, "service web: 0 of 3") || !strings.Contains(p, "no such file") {
			t.Fatalf("problems %q", p)
		}
	})
}

func TestARunningRolloutIsShown(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.engine.BehaveService("web", kilntest.Behaviour{Start: 5 * time.Second})
		done := make(chan error, 1)
		go func() {
			_, err := b.up(shop("production", "1"))
			done <- err
		}()
		kilntest.Pass(time.Second)
		s, err := b.Status(t.Context())
		check(t, err)
		if r := s.Environments[0].Rollout; r == nil || r.To != 1 || r.Step != "ready" {
			t.Fatalf("rollout %+v", r)
		}
		check(t, <-done)
		b.settled()
		if s, err = b.Status(t.Context()); err != nil || s.Environments[0].Rollout != nil {
			t.Fatalf("a rollout that ended is shown: %v", err)
		}
	})
}

func TestDriftIsMended(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		a := shop("production", "1")
		b.mustUp(a)
		b.settled()
		check(t, b.engine.Apply(t.Context(), "production", nil, "somebody else"))
		kilntest.Pass(time.Minute)
		b.settled()
		b.wantRunning("production", map[string]int{"web 1": 3, "orders 1": 2, "mailer 1": 1})
		if !slices.Contains(b.kinds(), "drift.mended") {
			t.Fatal("drift was not told")
		}
	})
}

func TestAnEngineThatComesBackIsToldAgain(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.mustUp(shop("production", "1"))
		b.settled()
		b.halt()
		check(t, b.engine.Apply(t.Context(), "production", nil, "the machine restarted"))
		b.engine.Intercept(func(c kilntest.Call) error {
			if c.Method == "Apply" || c.Method == "Route" {
				return errors.New("not there yet")
			}
			return nil
		})
		b.start()
		b.settled()
		s, err := b.Status(t.Context())
		check(t, err)
		if len(s.Environments[0].Problems) == 0 {
			t.Fatal("no problem is shown")
		}
		b.engine.Intercept(nil)
		b.settled()
		b.wantRunning("production", map[string]int{"web 1": 3, "orders 1": 2, "mailer 1": 1})
		b.wantOneLive()
	})
}

func TestAFirstUpThatFailsLeavesNothing(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.engine.BehaveService("web", kilntest.Behaviour{StartFailed: "gone"})
		if _, err := b.up(shop("production", "1")); err == nil {
			t.Fatal("it went live")
		}
		b.settled()
		b.wantStates("production", kiln.ReleaseFailed)
		b.wantRunning("production", nil)
		b.wantPublic()
	})
}

func TestThousandsOfInstancesAndAStormOfEvents(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		a := shop("production", "1")
		a.service("web").Count = 1000
		b.mustUp(a)
		for n := range 5000 {
			b.engine.Emit(kiln.Event{At: time.Now(), Environment: "production", Kind: "egress.blocked", Subject: fmt.Sprint(n)})
		}
		b.settled()
		alive, err := b.ledger.Alive(t.Context())
		check(t, err)
		if len(alive) != 1003 {
			t.Fatalf("the ledger knows %d instances", len(alive))
		}
		count := map[string]int{}
		for _, kind := range b.kinds() {
			count[kind]++
		}
		if count["instance.ready"] != 1003 || count["egress.blocked"] != stormBurst || count["events.dropped"] != 1 {
			t.Fatalf("events %v", count)
		}
	})
}

func TestAnOlderParkedReleaseMakesRoom(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.engine.SetRoom(12)
		b.mustUp(shop("production", "1"))
		b.mustUp(shop("production", "2"))
		b.settled()
		b.wantStates("production", kiln.ReleaseParked, kiln.ReleaseLive)
		b.mustUp(shop("production", "3"))
		b.settled()
		b.wantStates("production", kiln.ReleaseRetired, kiln.ReleaseParked, kiln.ReleaseLive)
		a := shop("production", "4")
		a.service("web").Count = 9
		if _, err := b.up(a); !errors.Is(err, kiln.ErrNoRoom) {
			t.Fatalf("up without room: %v", err)
		}
		b.settled()
		b.wantStates("production", kiln.ReleaseRetired, kiln.ReleaseRetired, kiln.ReleaseLive, kiln.ReleaseFailed)
		b.wantRunning("production", map[string]int{"web 3": 3, "orders 3": 2, "mailer 3": 1})
	})
}

func TestEventsAreFollowed(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.mustUp(shop("production", "1"))
		b.settled()
		ctx, cancel := context.WithCancel(t.Context())
		var got []int64
		done := make(chan error, 1)
		go func() {
			done <- b.Events(ctx, EventQuery{Last: 2, Follow: true}, func(e kiln.Event) error {
				got = append(got, e.Sequence)
				return nil
			})
		}()
		synctest.Wait()
		b.engine.Emit(kiln.Event{Environment: "production", Kind: "egress.blocked"})
		b.settled()
		cancel()
		check(t, <-done)
		if len(got) != 3 || !slices.IsSorted(got) {
			t.Fatalf("sequences %v", got)
		}
	})
}

// collector counts. What it needs for each kept bundle cannot be freed.
type collector struct {
	used, want, each int64
	keep             Keep
	kept             []int
}

func (c *collector) Usage(context.Context) (int64, error) { return c.used, nil }

func (c *collector) Collect(_ context.Context, keep Keep, want int64) (int64, error) {
	c.keep, c.want, c.kept = keep, want, append(c.kept, len(keep.Bundles))
	return max(0, min(want, c.used-c.each*int64(len(keep.Bundles)))), nil
}

func TestStorageKeepsWhatReleasesNeed(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		caches, images := &collector{used: 60}, &collector{used: 100}
		b.halt()
		b.storage = []Collector{caches, images}
		b.start()
		for v := range 14 {
			b.mustUp(shop("production", fmt.Sprint(v)))
			b.settled()
		}
		kilntest.Pass(11 * time.Minute)
		if len(images.keep.Bundles) != keptReleases || len(images.keep.Images) != 3*keptReleases || len(images.keep.Templates) != 6 {
			t.Fatalf("keep %d bundles, %d images, %d templates", len(images.keep.Bundles), len(images.keep.Images), len(images.keep.Templates))
		}
		if caches.want != 80 || images.want != 20 {
			t.Fatalf("wanted %d and %d", caches.want, images.want)
		}
	})
}

// TestABoundOfStorageHoldsAtOnce: after each up, and against older releases
// where nothing else is left; what runs stays.
func TestABoundOfStorageHoldsAtOnce(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		images := &collector{used: 100, each: 20} // the bound of a bench is 80
		b.halt()
		b.storage = []Collector{images}
		b.start()
		for v := range 12 {
			b.mustUp(shop("production", fmt.Sprint(v)))
			b.settled()
		}
		synctest.Wait()
		last := images.kept[len(images.kept)-2:]
		if last[0] != keptReleases || last[1] != 3 {
			t.Fatalf("kept %v", images.kept)
		}
		images.each = 100
		b.mustUp(shop("production", "last"))
		b.settled()
		synctest.Wait()
		if last := images.kept[len(images.kept)-1]; last != 2 || len(images.keep.Templates) != 6 {
			t.Fatalf("kept %v: the live release and the parked one must stay", images.kept)
		}
	})
}

func TestProblemsOfOtherPartsAreInTheStatus(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.others = func() []string { return []string{"source shop: no route"} }
		s, err := b.Status(t.Context())
		check(t, err)
		if !slices.Equal(s.Problems, []string{"source shop: no route"}) {
			t.Errorf("problems: %q", s.Problems)
		}
	})
}
