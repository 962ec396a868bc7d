package control

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/kilntest"
	"github.com/kilnproject/kiln/internal/rollout"
)

// hangs begins an up of release 2 whose web fleet starts and never answers.
func hangs(t *testing.T, b *bench) chan error {
	t.Helper()
	b.mustUp(shop("production", "1"))
	b.settled()
	b.engine.BehaveImage(kiln.DigestOf([]byte("web-2")), kilntest.Behaviour{NeverReady: true})
	ended := make(chan error, 1)
	go func() {
		_, err := b.Up(t.Context(), shop("production", "2").request(), nil)
		ended <- err
	}()
	synctest.Wait()
	return ended
}

func TestRollbackCallsOffARolloutThatRuns(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		ended := hangs(t, b)
		r, err := b.Rollback(t.Context(), RollbackRequest{Environment: "production", Actor: "ada"}, nil)
		check(t, err)
		if !r.CalledOff || r.From != 2 || r.To != 1 {
			t.Errorf("result %+v", r)
		}
		if err := <-ended; err == nil || !strings.Contains(err.Error(), "ada called it off") {
			t.Errorf("the up that was called off said: %v", err)
		}
		b.settled()
		b.wantStates("production", kiln.ReleaseLive, kiln.ReleaseFailed)
		b.wantRunning("production", map[string]int{"web 1": 3, "orders 1": 2, "mailer 1": 1})
	})
}

func TestDownCallsOffARolloutThatRuns(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		ended := hangs(t, b)
		check(t, b.Down(t.Context(), DownRequest{Environment: "production"}, nil))
		if err := <-ended; err == nil {
			t.Error("the up that was called off said nothing")
		}
		b.settled()
		b.wantStates("production", kiln.ReleaseRetired, kiln.ReleaseFailed)
		b.wantRunning("production", map[string]int{})
	})
}

func TestAnUndoingThatDoesNotWorkIsTold(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.mustUp(shop("production", "1"))
		b.settled()
		b.engine.Intercept(func(c kilntest.Call) error {
			if c.Method == "Route" {
				return errors.New("the table was refused")
			}
			return nil
		})
		_, err := b.Up(t.Context(), shop("production", "2").request(), nil)
		if err == nil || !strings.Contains(err.Error(), "not undone yet") || !strings.Contains(err.Error(), "the table was refused") {
			t.Errorf("up: %v", err)
		}
		b.engine.Intercept(nil)
		b.settled()
		b.wantStates("production", kiln.ReleaseLive, kiln.ReleaseFailed)
	})
}

func TestACallOffThatComesTooLateIsNotTakenForOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := New(Options{})
		c.base = t.Context()
		h := c.newHolder("kiln up", "ada", time.Now())
		d := &drive{c: c, holder: h, stuck: make(chan struct{}), state: rollout.State{Kind: rollout.Up, Step: rollout.Switch}}
		h.drive = d
		c.environment("production").holder = h
		type answer struct {
			undone *drive
			err    error
		}
		answers := make(chan answer)
		go func() {
			undone, err := c.callOff(t.Context(), "production", "kiln rollback", "ada")
			answers <- answer{undone, err}
		}()
		synctest.Wait()
		// The step that decides was being journalled.
		d.mu.Lock()
		d.state.Step = rollout.Done
		d.mu.Unlock()
		c.mu.Lock()
		h.decide()
		c.mu.Unlock()
		if a := <-answers; a.undone != nil || a.err != nil {
			t.Errorf("a rollout that went through was said to be called off: %v", a.err)
		}
	})
}
