package control

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/kilntest"
	"github.com/kilnproject/kiln/internal/ledger"
)

// busy is an engine whose fleets of the named services have a request in
// flight.
type busy struct {
	*kilntest.Fake
	mu       sync.Mutex
	inFlight int64
}

func (b *busy) set(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.inFlight = n
}

func (b *busy) Measure(ctx context.Context) ([]kiln.Measurement, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []kiln.Measurement
	for _, r := range b.Table().Private {
		for _, release := range r.Releases {
			out = append(out, kiln.Measurement{Fleet: release.Fleets[0].Fleet, InFlight: b.inFlight})
		}
	}
	return out, ctx.Err()
}

// full is a ledger that takes no records while it is full.
type full struct {
	*ledger.Ledger
	mu   sync.Mutex
	full bool
}

func (f *full) set(v bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.full = v
}

func (f *full) Commit(ctx context.Context, r kiln.Record) error {
	f.mu.Lock()
	refuse := f.full
	f.mu.Unlock()
	if refuse {
		return kiln.Errorf(kiln.CodeNoRoom, "", "the disk is full")
	}
	return f.Ledger.Commit(ctx, r)
}

func TestFleetsLeaveOnlyWhenTheirRequestsAreAnswered(t *testing.T) {
	for name, leave := range map[string]func(*testing.T, *bench){
		"rollback": func(t *testing.T, b *bench) {
			_, err := b.Rollback(t.Context(), RollbackRequest{Environment: "production"}, nil)
			check(t, err)
		},
		"down": func(t *testing.T, b *bench) {
			go func() { _ = b.Down(t.Context(), DownRequest{Environment: "production"}, nil) }()
		},
		"undo": func(_ *testing.T, b *bench) {
			a := shop("production", "3")
			b.engine.BehaveImage(kiln.DigestOf([]byte("mailer-3")), kilntest.Behaviour{StartFailed: "gone"})
			go func() { _, _ = b.up(a) }()
		},
	} {
		t.Run(name, func(t *testing.T) {
			onBench(t, func(t *testing.T, b *bench) {
				b.mustUp(shop("production", "1"))
				b.mustUp(shop("production", "2"))
				b.settled()
				b.halt()
				engine := &busy{Fake: b.engine, inFlight: 1}
				b.engineAs = engine
				b.start()
				leave(t, b)
				kilntest.Pass(2 * time.Second)
				for _, service := range []string{"web 2", "orders 2"} {
					if b.running("production")[service] == 0 {
						t.Fatalf("%s left with requests in flight: %v", service, b.running("production"))
					}
				}
				if name == "undo" && b.running("production")["web 3"] == 0 {
					t.Fatal("the undone release left with requests in flight")
				}
				engine.set(0)
				kilntest.Pass(200 * time.Millisecond)
				left := b.running("production")
				gone := map[string]string{"rollback": "web 2", "down": "web 1", "undo": "web 3"}[name]
				if left[gone] != 0 {
					t.Fatalf("%s stays: %v", gone, left)
				}
				b.settled()
			})
		})
	}
}

func TestNothingIsDoneThatTheLedgerDoesNotTake(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		first := shop("production", "1")
		b.mustUp(first)
		b.settled()
		b.halt()
		l := &full{Ledger: b.ledger}
		b.ledgerAs = l
		b.start()
		b.engine.Intercept(func(c kilntest.Call) error {
			if c.Method == "Admit" {
				l.set(true)
			}
			return nil
		})
		done := make(chan error, 1)
		go func() {
			_, err := b.up(shop("production", "2"))
			done <- err
		}()
		kilntest.Pass(10 * time.Second)
		b.wantRunning("production", map[string]int{"web 1": 3, "orders 1": 2, "mailer 1": 1})
		l.set(false)
		check(t, <-done)
		b.settled()
		b.wantStates("production", kiln.ReleaseParked, kiln.ReleaseLive)
	})
}

func TestTwoClaimsAtOnce(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.baker.block = make(chan struct{})
		done := make(chan error, 2)
		for _, name := range []string{"a", "b"} {
			a := shop(name, "1")
			a.Routes[0].Host = "shop.example.com"
			go func() {
				_, err := b.up(a)
				done <- err
			}()
		}
		synctest.Wait()
		close(b.baker.block)
		errs := []error{<-done, <-done}
		if (errs[0] == nil) == (errs[1] == nil) {
			t.Fatalf("claims ended with %v", errs)
		}
	})
}

func TestAReleaseWithoutARolloutFails(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.mustUp(shop("production", "1"))
		b.halt()
		_, err := b.ledger.CreateRelease(t.Context(), kiln.Release{Environment: "production", State: kiln.ReleasePending})
		check(t, err)
		b.start()
		b.settled()
		b.wantStates("production", kiln.ReleaseLive, kiln.ReleaseFailed)
	})
}

func TestAnAcceptedCondemnedReleaseIsCondemnedNoLonger(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		one, two := shop("production", "1"), shop("production", "2")
		b.mustUp(one)
		b.mustUp(two)
		_, err := b.Rollback(t.Context(), RollbackRequest{Environment: "production"}, nil)
		check(t, err)
		b.settled()
		again := two.request()
		again.Again = true
		_, err = b.Up(t.Context(), again, nil)
		check(t, err)
		b.mustUp(shop("production", "3"))
		b.mustUp(two)
	})
}

func TestProgressNamesStagesAndEnds(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		var mu sync.Mutex
		var stages []string
		_, err := b.Up(t.Context(), shop("production", "1").request(), func(p kiln.Progress) {
			mu.Lock()
			defer mu.Unlock()
			if p.Done {
				stages = append(stages, p.Stage)
			}
		})
		check(t, err)
		mu.Lock()
		n := len(stages)
		for _, want := range []string{"seal", "start", "switch"} {
			if !slices.Contains(stages, want) {
				t.Errorf("no stage %s in %v", want, stages)
			}
		}
		mu.Unlock()
		b.settled()
		mu.Lock()
		defer mu.Unlock()
		if len(stages) != n {
			t.Error("progress after the end")
		}
	})
}

func TestAddressesClash(t *testing.T) {
	listen := func(s string) kiln.Route { return kiln.Route{Listen: s} }
	for _, c := range []struct {
		a, b kiln.Route
		want bool
	}{
		{listen(":6379"), listen("127.0.0.1:6379"), true},
		{listen("0.0.0.0:6379"), listen("[::1]:6379"), true},
		{listen("127.0.0.1:6379"), listen("127.0.0.2:6379"), false},
		{listen(":6379"), listen(":6380"), false},
		{kiln.Route{Host: "a.example"}, kiln.Route{Host: "A.example"}, true},
		{kiln.Route{Host: "a.example"}, kiln.Route{Host: "b.example"}, false},
	} {
		if got := clash(c.a, c.b) != ""; got != c.want {
			t.Errorf("%+v and %+v: %v", c.a, c.b, got)
		}
	}
	if errors.Is(held("x", &holder{}), kiln.ErrNotFound) {
		t.Error("a conflict is no missing thing")
	}
}
