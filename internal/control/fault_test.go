package control

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/kilntest"
	"github.com/kilnproject/kiln/internal/rollout"
)

// once fails the first hit of a label.
type once struct {
	mu    sync.Mutex
	label string
	hit   bool
}

func (o *once) Hit(label string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if label != o.label || o.hit {
		return nil
	}
	o.hit = true
	return errors.New("asked for")
}

// TestARestartAtAnyLabelEndsTheSame stops the control plane at every label of
// every kind of rollout and starts another over the same ledger and engine.
func TestARestartAtAnyLabelEndsTheSame(t *testing.T) {
	moves := map[string]func(*testing.T, *bench) error{
		"up":         verified,
		"warm back":  back(0),
		"cold back":  back(1),
		"crowded":    crowded,
		"failed up":  failing(kilntest.Behaviour{StartFailed: "gone"}, "web"),
		"bad worker": failing(kilntest.Behaviour{Exits: true, Start: time.Minute}, "mailer"),
	}
	var hit sync.Map
	t.Run("label", func(t *testing.T) {
		for name, move := range moves {
			for _, step := range rollout.Steps() {
				if skipped(name, step) {
					continue
				}
				for _, when := range []string{"before", "after"} {
					label := string(step) + "." + when
					t.Run(name+" "+label, func(t *testing.T) {
						t.Parallel() // it waits for the disk most of the time
						onBench(t, func(t *testing.T, b *bench) {
							if restartAt(t, b, label, name, move) {
								hit.Store(label, true)
							}
						})
					})
				}
			}
		}
	})
	for _, step := range rollout.Steps() {
		for _, when := range []string{"before", "after"} {
			if _, ok := hit.Load(string(step) + "." + when); !ok && step != rollout.Done && step != rollout.Failed {
				t.Errorf("no move stopped %s %s", when, step)
			}
		}
	}
}

// verified ups a release with a check.
func verified(_ *testing.T, b *bench) error {
	a := shop("production", "3")
	a.service("web").Rollout.Verify = []kiln.Verify{{Name: "page", HTTP: "/", Timeout: time.Second}}
	_, err := b.up(a)
	return err
}

// crowded ups on a machine without room for a third release.
func crowded(_ *testing.T, b *bench) error {
	b.engine.SetRoom(12)
	_, err := b.up(shop("production", "3"))
	return err
}

// skipped are steps that a move cannot come by.
func skipped(name string, s rollout.Step) bool {
	switch s {
	case rollout.Evict, rollout.Vacate:
		return name != "crowded"
	case rollout.UndoRoute, rollout.UndoDrain:
		return name != "bad worker"
	case rollout.Undo, rollout.Failed:
		return name != "bad worker" && name != "failed up"
	case rollout.Verify:
		return name != "up"
	case rollout.Admit, rollout.Start, rollout.Ready:
		return name == "warm back"
	case rollout.Settle:
		return name == "warm back" || name == "cold back"
	case rollout.Switch, rollout.Workers, rollout.Drain, rollout.Retire, rollout.Done:
	}
	return name == "failed up"
}

func back(to int) func(*testing.T, *bench) error {
	return func(t *testing.T, b *bench) error {
		if to == 1 {
			b.mustUp(shop("production", "2.5"))
			b.settled()
		}
		b.inject()
		_, err := b.Rollback(t.Context(), RollbackRequest{Environment: "production", Release: to}, nil)
		return err
	}
}

func failing(behave kilntest.Behaviour, service string) func(*testing.T, *bench) error {
	return func(_ *testing.T, b *bench) error {
		a := shop("production", "3")
		b.engine.BehaveImage(kiln.DigestOf([]byte(a.service(service).Image)), behave)
		_, err := b.up(a)
		return err
	}
}

// inject makes the control plane stop at the bench's label from now on.
func (b *bench) inject() { b.Control.faults = b.pending }

func restartAt(t *testing.T, b *bench, label, name string, move func(*testing.T, *bench) error) bool {
	b.mustUp(shop("production", "1"))
	b.mustUp(shop("production", "2"))
	b.settled()
	fault := &once{label: label}
	b.pending = fault
	if name != "warm back" && name != "cold back" {
		b.inject()
	}
	_ = move(t, b)
	b.settled()
	if fault.hit {
		if err := <-b.ended; !errors.Is(err, errStopped) {
			t.Fatalf("the control plane ended with %v", err)
		}
		b.start()
	}
	b.settled()
	kilntest.Pass(time.Minute)
	b.settled()
	b.wantWhole(name)
	return fault.hit
}

// wantWhole checks the end of a move: one release or the other, and nothing
// else.
func (b *bench) wantWhole(name string) {
	b.t.Helper()
	two := map[string]int{"web 2": 3, "orders 2": 2, "mailer 2": 1, "web 1": 3, "orders 1": 2}
	one := map[string]int{"web 1": 3, "orders 1": 2, "mailer 1": 1}
	switch name {
	case "up", "crowded":
		b.wantStates("production", kiln.ReleaseRetired, kiln.ReleaseParked, kiln.ReleaseLive)
		b.wantRunning("production", map[string]int{"web 3": 3, "orders 3": 2, "mailer 3": 1, "web 2": 3, "orders 2": 2})
	case "warm back":
		b.wantStates("production", kiln.ReleaseLive, kiln.ReleaseCondemned)
		b.wantRunning("production", one)
	case "cold back":
		b.wantStates("production", kiln.ReleaseLive, kiln.ReleaseParked, kiln.ReleaseCondemned)
		b.wantRunning("production", map[string]int{"web 1": 3, "orders 1": 2, "mailer 1": 1, "web 2": 3, "orders 2": 2})
	default:
		b.wantStates("production", kiln.ReleaseParked, kiln.ReleaseLive, kiln.ReleaseFailed)
		b.wantRunning("production", two)
	}
	b.wantOneLive()
}

// wantOneLive checks that public traffic, private routes, the journal and the
// chain of events agree with the states.
func (b *bench) wantOneLive() {
	b.t.Helper()
	live, err := b.Release(b.t.Context(), "production", 0)
	check(b.t, err)
	for _, s := range live.Services {
		if s.Template.Service == "web" {
			b.wantPublic(kiln.FleetIDOf("production", s.Template))
		}
	}
	numbers := map[int]bool{}
	for _, p := range b.engine.Table().Private {
		for _, r := range p.Releases {
			numbers[r.Release] = true
		}
	}
	for i, state := range b.states("production") {
		runs := state == kiln.ReleaseLive || state == kiln.ReleaseParked
		if numbers[i+1] != runs {
			b.t.Fatalf("release %d is %s and reachable: %v", i+1, state, numbers[i+1])
		}
	}
	open, err := b.ledger.Unfinished(b.t.Context())
	check(b.t, err)
	if len(open) > 0 {
		b.t.Fatalf("unfinished: %+v", open)
	}
	report, err := b.ledger.Verify(b.t.Context(), "")
	check(b.t, err)
	if len(report.Faults) > 0 {
		b.t.Fatalf("chain: %+v", report.Faults)
	}
}

// TestEveryStepCanFail makes each engine call of an up fail once, and demands
// the old release or the new one, whole.
func TestEveryStepCanFail(t *testing.T) {
	for _, method := range []string{"Admit", "Apply", "Route"} {
		for nth := 1; nth <= 4; nth++ {
			t.Run(fmt.Sprintf("%s %d", method, nth), func(t *testing.T) {
				onBench(t, func(_ *testing.T, b *bench) {
					b.mustUp(shop("production", "1"))
					b.mustUp(shop("production", "2"))
					b.settled()
					n := 0
					b.engine.Intercept(func(c kilntest.Call) error {
						if c.Method != method {
							return nil
						}
						if n++; n == nth {
							return errors.New("asked for")
						}
						return nil
					})
					_, err := b.up(shop("production", "3"))
					b.settled()
					if err != nil {
						b.wantWhole("failed up")
					} else {
						b.wantWhole("up")
					}
				})
			})
		}
	}
}

// TestTheActionsOfEveryStepCanFail fails them once at their label, and demands
// the old release or the new one, whole.
func TestTheActionsOfEveryStepCanFail(t *testing.T) {
	moves := map[string]func(*testing.T, *bench) error{
		"up":         verified,
		"bad worker": failing(kilntest.Behaviour{Exits: true, Start: time.Minute}, "mailer"),
	}
	var hit sync.Map
	t.Run("label", func(t *testing.T) {
		for name, move := range moves {
			for _, step := range rollout.Steps() {
				t.Run(name+" "+string(step), func(t *testing.T) {
					t.Parallel()
					onBench(t, func(t *testing.T, b *bench) {
						b.mustUp(shop("production", "1"))
						b.mustUp(shop("production", "2"))
						b.settled()
						fault := &once{label: string(step) + ".act"}
						b.pending = fault
						b.inject()
						err := move(t, b)
						b.settled()
						if kilntest.Pass(time.Minute); fault.hit {
							hit.Store(step, true)
						}
						want := name
						if want == "up" && err != nil {
							want = "failed up"
						}
						b.settled()
						b.wantWhole(want)
					})
				})
			}
		}
	})
	for _, step := range []rollout.Step{
		rollout.Admit, rollout.Start, rollout.Verify, rollout.Switch, rollout.Workers, rollout.Retire, rollout.UndoRoute, rollout.Undo,
	} {
		if _, ok := hit.Load(step); !ok {
			t.Errorf("no move failed at %s", step)
		}
	}
}

func TestARestartTouchesNothing(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.mustUp(shop("production", "1"))
		b.mustUp(shop("production", "2"))
		b.settled()
		before, err := b.Instances(t.Context(), "production")
		check(t, err)
		b.halt()
		check(t, b.engine.Kill(before[0].ID, kiln.Cause{Kind: kiln.CauseExited}))
		b.start()
		b.settled()
		after, err := b.Instances(t.Context(), "production")
		check(t, err)
		for _, i := range before[1:] {
			if !slices.ContainsFunc(after, func(o kiln.Instance) bool { return o.ID == i.ID && o.State == i.State }) {
				t.Errorf("%s was touched", i.ID)
			}
		}
		alive, err := b.ledger.Alive(t.Context())
		check(t, err)
		if len(alive) != len(before) {
			t.Fatalf("the ledger knows %d alive, want %d", len(alive), len(before))
		}
		if !slices.Contains(b.kinds(), "instance.died") {
			t.Fatal("a death while the control plane was away is not in the history")
		}
		kilntest.Pass(31 * time.Minute)
		b.settled()
		b.wantStates("production", kiln.ReleaseRetired, kiln.ReleaseLive)
	})
}
