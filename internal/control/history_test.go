package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/kilntest"
	"github.com/kilnproject/kiln/internal/ledger"
)

// hurt is a ledger that is damaged as long as it is said so.
type hurt struct {
	*ledger.Ledger
	mu     sync.Mutex
	faults []kiln.LedgerFault
	blind  bool // production's releases cannot be read
}

func (h *hurt) set(blind bool, records ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.faults, h.blind = nil, blind
	for _, r := range records {
		h.faults = append(h.faults, kiln.LedgerFault{Record: r, Problem: "its content is not what was written"})
	}
}

func (h *hurt) Damage() []kiln.LedgerFault {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.faults
}

func (h *hurt) Writable(context.Context) error {
	if d := h.Damage(); len(d) > 0 {
		return kiln.Errorf(kiln.CodeRefused, "kiln ledger verify", "the ledger is damaged (%s)", d[0].Record)
	}
	return nil
}

func (h *hurt) Commit(ctx context.Context, r kiln.Record) error {
	return errors.Join(h.Writable(ctx), h.sound(func() error { return h.Ledger.Commit(ctx, r) }))
}

// sound does what a damaged ledger refuses.
func (h *hurt) sound(do func() error) error {
	if len(h.Damage()) > 0 {
		return nil
	}
	return do()
}

func (h *hurt) Releases(ctx context.Context, name string) ([]kiln.Release, error) {
	h.mu.Lock()
	blind := h.blind && name == "production"
	h.mu.Unlock()
	if blind {
		return nil, kiln.Errorf(kiln.CodeRefused, "", "release 1 of production of the ledger is damaged")
	}
	return h.Ledger.Releases(ctx, name)
}

// onHurt is a bench over such a ledger, with release 2 of production live.
func onHurt(t *testing.T, test func(t *testing.T, b *bench, l *hurt)) {
	t.Helper()
	onBench(t, func(t *testing.T, b *bench) {
		b.halt()
		l := &hurt{Ledger: b.ledger}
		b.ledgerAs = l
		b.start()
		b.mustUp(shop("production", "1"))
		b.mustUp(shop("production", "2"))
		b.settled()
		test(t, b, l)
	})
}

func second[T any](_ T, err error) error { return err }

func TestADamagedLedgerRefusesChangesAndServesOn(t *testing.T) {
	onHurt(t, func(t *testing.T, b *bench, l *hurt) {
		l.set(false, "event 5", "event 6", "event 7", "event 8")
		for what, err := range map[string]error{
			"up":       second(b.up(shop("production", "3"))),
			"rollback": second(b.Rollback(t.Context(), RollbackRequest{Environment: "production"}, nil)),
			"down":     b.Down(t.Context(), DownRequest{Environment: "production"}, nil),
		} {
			if err == nil || !strings.Contains(err.Error(), "event 5") {
				t.Errorf("%s: %v", what, err)
			}
		}
		before := len(b.kinds())
		for range 20 {
			list, err := b.Instances(t.Context(), "production")
			check(t, err)
			alive := func(i kiln.Instance) bool { return i.State == kiln.InstanceReady }
			check(t, b.engine.Kill(list[slices.IndexFunc(list, alive)].ID, kiln.Cause{Kind: kiln.CauseExited}))
			kilntest.Pass(time.Second)
		}
		check(t, b.engine.Apply(t.Context(), "production", nil, "somebody else"))
		kilntest.Pass(time.Minute)
		running := map[string]int{"web 2": 3, "orders 2": 2, "mailer 2": 1, "web 1": 1, "orders 1": 1}
		for name, n := range running {
			if got := b.running("production")[name]; got < n {
				t.Errorf("%d of %s run", got, name)
			}
		}
		s, err := b.Status(t.Context())
		check(t, err)
		if p := strings.Join(s.Problems, "\n"); !strings.Contains(p, "event 5") || !strings.Contains(p, "1 more") || !strings.Contains(p, "kiln ledger accept") {
			t.Errorf("problems %q", s.Problems)
		}
		if got := len(b.kinds()); got != before {
			t.Errorf("%d events were written over it", got-before)
		}
		l.set(false)
		b.settled()
		if s, _ := b.Status(t.Context()); len(s.Problems) > 0 {
			t.Errorf("problems %q", s.Problems)
		}
		if !slices.Contains(b.kinds()[before:], "instance.died") {
			t.Error("what happened meanwhile is not told")
		}
		b.sameAlive(t)
		b.mustUp(shop("production", "3"))
	})
}

// sameAlive compares what the ledger knows to be alive with what is.
func (b *bench) sameAlive(t *testing.T) {
	t.Helper()
	seen, err := b.engine.Observe(t.Context(), "production")
	check(t, err)
	var want, got []string
	for _, f := range seen.Fleets {
		for _, i := range f.Instances {
			want = append(want, i.ID)
		}
	}
	alive, err := b.ledger.Alive(t.Context())
	check(t, err)
	for _, i := range alive {
		got = append(got, i.ID)
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("the ledger knows %d, %v to %v, and there are %d, %v to %v", len(got), got[:1], got[len(got)-1:], len(want), want[:1], want[len(want)-1:])
	}
}

func TestARolloutWaitsWhileTheLedgerIsDamaged(t *testing.T) {
	onHurt(t, func(t *testing.T, b *bench, l *hurt) {
		b.engine.Intercept(func(c kilntest.Call) error {
			if c.Method == "Admit" {
				l.set(false, "event 5")
			}
			return nil
		})
		_, err := b.up(shop("production", "3"))
		if err == nil || !strings.Contains(err.Error(), "waits") {
			t.Fatalf("up: %v", err)
		}
		s, err := b.Status(t.Context())
		check(t, err)
		if p := strings.Join(s.Environments[0].Problems, "\n"); !strings.Contains(p, "release 3 waits") {
			t.Errorf("problems %q", p)
		}
		b.wantPublic(b.fleet(shop("", "2").Services[1]))
		b.engine.Intercept(nil)
		l.set(false)
		b.settled()
		b.wantStates("production", kiln.ReleaseRetired, kiln.ReleaseParked, kiln.ReleaseLive)
	})
}

// TestWhatIsDesiredAndUnknownStays restarts over a ledger of which the live
// release cannot be read.
func TestWhatIsDesiredAndUnknownStays(t *testing.T) {
	onHurt(t, func(t *testing.T, b *bench, l *hurt) {
		b.mustUp(shop("staging", "1"))
		b.settled()
		check(t, second(b.ledger.CreateRelease(t.Context(), kiln.Release{Environment: "staging", State: kiln.ReleasePending})))
		b.halt()
		l.set(true, "release 1 of production")
		public := len(b.engine.Table().Public)
		calls := len(b.engine.Calls())
		b.start()
		b.settled()
		for _, c := range b.engine.Calls()[calls:] {
			if c.Method == "Route" || c.Method == "Apply" {
				t.Errorf("the engine was told: %s %s", c.Method, c.Environment)
			}
		}
		s, err := b.Status(t.Context())
		check(t, err)
		if p := strings.Join(s.Problems, "\n"); !strings.Contains(p, "stays as the engine has it") {
			t.Errorf("problems %q", s.Problems)
		}
		l.set(false)
		kilntest.Pass(time.Minute)
		s, err = b.Status(t.Context())
		check(t, err)
		if len(s.Environments) != 2 || len(s.Problems) > 0 || len(b.engine.Table().Public) != public {
			t.Errorf("status %+v, %d public routes", s, len(b.engine.Table().Public))
		}
		b.mustUp(shop("production", "3"))
	})
}

// TestWhatTheLedgerDoesNotTakeIsBounded lets a thousand instances die on a full
// disk.
func TestWhatTheLedgerDoesNotTakeIsBounded(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.halt()
		l := &full{Ledger: b.ledger}
		b.ledgerAs = l
		b.start()
		a := shop("production", "1")
		a.service("web").Count = 1000
		b.mustUp(a)
		b.settled()
		before := b.lastSequence(t)
		l.set(true)
		for range 5 {
			seen, err := b.engine.Observe(t.Context(), "production")
			check(t, err)
			for _, f := range seen.Fleets {
				for _, i := range f.Instances {
					check(t, b.engine.Kill(i.ID, kiln.Cause{Kind: kiln.CauseExited}))
				}
				kilntest.Pass(100 * time.Millisecond)
			}
			kilntest.Pass(time.Second)
		}
		s, err := b.Status(t.Context())
		check(t, err)
		if len(s.Problems) != 1 || !strings.Contains(s.Problems[0], "disk is full") {
			t.Errorf("problems %q", s.Problems)
		}
		l.set(false)
		b.settled()
		b.sameAlive(t)
		after, err := b.ledger.Events(t.Context(), "", before, 1_000_000)
		check(t, err)
		kinds := map[string]int{}
		for _, e := range after {
			kinds[e.Kind]++
		}
		if kinds["events.dropped"] != 1 || len(after) > maxBacklog+3*1003 {
			t.Errorf("%d events were recorded: %v", len(after), kinds)
		}
	})
}

// TestAStormIsBounded sends a hundred thousand events within a second.
func TestAStormIsBounded(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.mustUp(shop("production", "1"))
		b.settled()
		heap := func() int64 {
			var m runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&m)
			return int64(m.HeapAlloc)
		}
		first, before := b.lastSequence(t), heap()
		for n := range 100_000 {
			b.engine.Emit(kiln.Event{At: time.Now(), Environment: "production", Kind: fmt.Sprintf("kind.%d", n%10), Subject: fmt.Sprint(n), Message: strings.Repeat("x", 200)})
			if n%200 == 0 {
				kilntest.Pass(2 * time.Millisecond)
			}
		}
		kilntest.Pass(0)
		if grown := heap() - before; grown > 16<<20 {
			t.Errorf("the heap grew by %d MB", grown>>20)
		}
		b.settled()
		if n := b.lastSequence(t) - first; n < stormBurst || n > 10*(stormBurst+3*stormRate)+100 {
			t.Errorf("%d events were recorded", n)
		}
	})
}

func (b *bench) lastSequence(t *testing.T) int64 {
	t.Helper()
	last, err := b.ledger.Events(t.Context(), "", 0, 1)
	check(t, err)
	return last[0].Sequence
}

func TestTheBacklogHoldsNoMoreThanItsBound(t *testing.T) {
	var b backlog
	for n := range 10_000 {
		b.add(kiln.Record{Events: make([]kiln.Event, 7), Instances: []kiln.Instance{{ID: fmt.Sprint(n)}}})
	}
	if len(b.record.Events) > maxBacklog || len(b.record.Instances) > maxBacklog || len(b.record.Events)+b.lost != 70_000 || !b.missed {
		t.Fatalf("%d events, %d instances, %d lost", len(b.record.Events), len(b.record.Instances), b.lost)
	}
}

func TestWhatIsTriedAgainIsLoggedOnce(t *testing.T) {
	var out bytes.Buffer
	c := New(Options{Log: slog.New(slog.NewTextHandler(&out, nil))})
	for range 3 {
		c.complain(t.Context(), "it failed", "production", errors.New("full"))
	}
	c.complain(t.Context(), "it failed", "staging", errors.New("full"))
	c.complain(t.Context(), "it failed", "production", errors.New("damaged"))
	c.complain(t.Context(), "it failed", "production", nil)
	c.complain(t.Context(), "it failed", "production", errors.New("damaged"))
	if n := strings.Count(out.String(), "it failed"); n != 4 {
		t.Fatalf("logged %d times:\n%s", n, &out)
	}
}
