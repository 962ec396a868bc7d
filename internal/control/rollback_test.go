package control

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/kilntest"
)

func TestRollbackToTheParkedReleaseIsOneSwap(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		first := shop("production", "1")
		b.mustUp(first)
		b.mustUp(shop("production", "2"))
		b.settled()
		calls := len(b.engine.Calls())
		r, err := b.Rollback(t.Context(), RollbackRequest{Environment: "production", Actor: "ada"}, nil)
		check(t, err)
		if r.From != 2 || r.To != 1 || !r.Parked {
			t.Fatalf("result %+v", r)
		}
		if methods := b.engine.Methods()[calls:]; methods[0] != "Route" {
			t.Fatalf("calls %v, want Route first", methods)
		}
		b.wantPublic(b.fleet(*first.service("web")))
		b.settled()
		b.wantStates("production", kiln.ReleaseLive, kiln.ReleaseCondemned)
		b.wantRunning("production", map[string]int{"web 1": 3, "orders 1": 2, "mailer 1": 1})
		if b.baker.bakes != 2 {
			t.Fatalf("%d bakes", b.baker.bakes)
		}

		again := shop("production", "2").request()
		_, err = b.Up(t.Context(), again, nil)
		var refused *kiln.Error
		if !errors.As(err, &refused) || refused.Code != kiln.CodeRefused || !strings.Contains(refused.Hint, "--again") {
			t.Fatalf("up of the condemned: %v", err)
		}
		again.Again = true
		up, err := b.Up(t.Context(), again, nil)
		check(t, err)
		if up.Release.Number != 3 {
			t.Fatalf("release %d", up.Release.Number)
		}
	})
}

func TestRollbackToAnOlderReleaseStartsItFirst(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		for _, v := range []string{"1", "2", "3"} {
			b.mustUp(shop("production", v))
			b.settled()
		}
		r, err := b.Rollback(t.Context(), RollbackRequest{Environment: "production", Release: 1}, nil)
		check(t, err)
		if r.Parked || r.From != 3 {
			t.Fatalf("%+v", r)
		}
		b.settled()
		b.wantStates("production", kiln.ReleaseLive, kiln.ReleaseParked, kiln.ReleaseCondemned)
		b.wantRunning("production", map[string]int{"web 1": 3, "orders 1": 2, "mailer 1": 1, "web 2": 3, "orders 2": 2})
		if b.baker.bakes != 3 {
			t.Fatalf("%d bakes", b.baker.bakes)
		}
	})
}

func TestRollbackThatCannotStartChangesNothing(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		for _, v := range []string{"1", "2", "3"} {
			b.mustUp(shop("production", v))
			b.settled()
		}
		b.engine.BehaveImage(kiln.DigestOf([]byte("web-1")), kilntest.Behaviour{StartFailed: "gone"})
		if _, err := b.Rollback(t.Context(), RollbackRequest{Environment: "production", Release: 1}, nil); err == nil {
			t.Fatal("rolled back to what cannot start")
		}
		b.settled()
		b.wantStates("production", kiln.ReleaseRetired, kiln.ReleaseParked, kiln.ReleaseLive)
		b.wantRunning("production", map[string]int{"web 2": 3, "orders 2": 2, "web 3": 3, "orders 3": 2, "mailer 3": 1})
	})
}

func TestRollbackTargets(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		try := func(release int) error {
			_, err := b.Rollback(t.Context(), RollbackRequest{Environment: "production", Release: release}, nil)
			return err
		}
		if err := try(0); !errors.Is(err, kiln.ErrNotFound) {
			t.Errorf("unknown environment: %v", err)
		}
		b.mustUp(shop("production", "1"))
		if err := try(0); !errors.Is(err, kiln.ErrConflict) {
			t.Errorf("nothing before: %v", err)
		}
		if err := try(1); !errors.Is(err, kiln.ErrConflict) {
			t.Errorf("the live one: %v", err)
		}
		if err := try(7); !errors.Is(err, kiln.ErrNotFound) {
			t.Errorf("unknown release: %v", err)
		}
		bad := shop("production", "2")
		b.engine.BehaveImage(kiln.DigestOf([]byte("web-2")), kilntest.Behaviour{StartFailed: "gone"})
		if _, err := b.up(bad); err == nil {
			t.Fatal("release 2 went live")
		}
		var refused *kiln.Error
		if err := try(2); !errors.As(err, &refused) || refused.Code != kiln.CodeRefused {
			t.Errorf("a failed one: %v", err)
		}
	})
}

func TestABrokenParkedReleaseIsStartedFirst(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.mustUp(shop("production", "1"))
		b.mustUp(shop("production", "2"))
		b.settled()
		b.engine.BehaveImage(kiln.DigestOf([]byte("web-1")), kilntest.Behaviour{Start: 3 * time.Second})
		list, err := b.Instances(t.Context(), "production")
		check(t, err)
		for _, i := range list {
			if i.Image == kiln.DigestOf([]byte("web-1")) {
				check(t, b.engine.Kill(i.ID, kiln.Cause{Kind: kiln.CauseExited, ExitCode: 1}))
			}
		}
		synctest.Wait()
		r, err := b.Rollback(t.Context(), RollbackRequest{Environment: "production"}, nil)
		check(t, err)
		if r.Parked {
			t.Fatal("swapped to a release of which nothing is ready")
		}
		b.settled()
		b.wantStates("production", kiln.ReleaseLive, kiln.ReleaseCondemned)
	})
}

func TestLeavingFleetsEndWhenTheirRequestsAreAnswered(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.mustUp(shop("production", "1"))
		second := shop("production", "2")
		b.mustUp(second)
		b.settled()
		_, err := b.Rollback(t.Context(), RollbackRequest{Environment: "production"}, nil)
		check(t, err)
		// Calls between the leaving fleets stay within their release.
		for _, c := range slices.Backward(b.engine.Calls()) {
			if c.Method != "Route" {
				continue
			}
			if n := c.Table.Callers[b.fleet(*second.service("web"))]; n != 2 {
				t.Fatalf("calls of the leaving front end go to release %d", n)
			}
			break
		}
		b.settled()
		if n := len(b.engine.Table().Callers); n != 3 {
			t.Fatalf("%d callers are left", n)
		}
	})
}

func TestDownEndsAnEnvironment(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.mustUp(shop("production", "1"))
		b.mustUp(shop("production", "2"))
		b.mustUp(shop("staging", "1"))
		b.engine.BehaveService("web", kilntest.Behaviour{IgnoresTerm: true})
		b.mustUp(shop("production", "2.5"))
		check(t, b.Down(t.Context(), DownRequest{Environment: "production", Actor: "ada"}, nil))
		b.wantRunning("production", nil)
		b.settled()
		b.wantStates("production", kiln.ReleaseRetired, kiln.ReleaseRetired, kiln.ReleaseRetired)
		b.wantRunning("staging", map[string]int{"web 1": 3, "orders 1": 2, "mailer 1": 1})
		check(t, b.Down(t.Context(), DownRequest{Environment: "production"}, nil))
		if err := b.Down(t.Context(), DownRequest{Environment: "nowhere"}, nil); !errors.Is(err, kiln.ErrNotFound) {
			t.Fatalf("down of the unknown: %v", err)
		}
		r := b.mustUp(shop("production", "2"))
		if r.Release.Number != 4 {
			t.Fatalf("release %d", r.Release.Number)
		}
	})
}

func TestParkOfZeroEndsAtOnce(t *testing.T) {
	onBench(t, func(_ *testing.T, b *bench) {
		b.mustUp(shop("production", "1"))
		a := shop("production", "2")
		for i := range a.Services {
			a.Services[i].Rollout.Park = 0
		}
		b.mustUp(a)
		b.settled()
		b.wantStates("production", kiln.ReleaseRetired, kiln.ReleaseLive)
		b.wantRunning("production", map[string]int{"web 2": 3, "orders 2": 2, "mailer 2": 1})
	})
}
