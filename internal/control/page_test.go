package control

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/kilntest"
)

func TestReleasesComeInPages(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		for v := range 5 {
			b.mustUp(shop("production", fmt.Sprint(v)))
			b.settled()
		}
		b.mustUp(shop("staging", "0"))
		b.settled()
		q := ReleaseQuery{Limit: 2}
		var got []string
		for {
			page, err := b.ReleasePage(t.Context(), q)
			check(t, err)
			if len(page) == 0 {
				break
			}
			for _, r := range page {
				got = append(got, fmt.Sprint(r.Environment, " ", r.Number))
				q.After = ReleaseKey{r.Environment, r.Number}
			}
			if len(got) == 2 { // what is made meanwhile moves nothing
				b.mustUp(shop("production", "new"))
				b.settled()
			}
		}
		want := []string{"production 5", "production 4", "production 3", "production 2", "production 1", "staging 1"}
		if !slices.Equal(got, want) {
			t.Errorf("%q", got)
		}
		only, err := b.ReleasePage(t.Context(), ReleaseQuery{Reach: kiln.Reach{"stag*"}, Limit: 9})
		check(t, err)
		if len(only) != 1 || only[0].Environment != "staging" {
			t.Errorf("within reach: %+v", only)
		}
		if _, err := b.ReleasePage(t.Context(), ReleaseQuery{Environment: "nowhere", Limit: 9}); !errors.Is(err, kiln.ErrNotFound) {
			t.Error(err)
		}
		one, err := b.ReleasePage(t.Context(), ReleaseQuery{Environment: "production", Limit: 1})
		check(t, err)
		if len(one) != 1 || one[0].Number != 6 {
			t.Errorf("%+v", one)
		}
	})
}

func TestInstancesComeInPages(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.mustUp(shop("production", "1"))
		b.mustUp(shop("staging", "1"))
		b.settled()
		q := InstanceQuery{Limit: 5}
		seen := map[InstanceKey]bool{}
		var last InstanceKey
		for {
			page, err := b.InstancePage(t.Context(), q)
			check(t, err)
			if len(page) == 0 {
				break
			}
			for _, i := range page {
				if seen[KeyOf(i)] || KeyOf(i).compare(last) <= 0 {
					t.Errorf("%+v comes after %+v", KeyOf(i), last)
				}
				last = KeyOf(i)
				seen[last] = true
			}
			q.After = last
		}
		if len(seen) != 12 {
			t.Errorf("%d instances", len(seen))
		}
		if _, err := b.InstancePage(t.Context(), InstanceQuery{Environment: "staging", Reach: kiln.Reach{"production"}, Limit: 1}); !refused(err) {
			t.Error(err)
		}
	})
}

func refused(err error) bool { return errors.Is(err, &kiln.Error{Code: kiln.CodeRefused}) }

func TestNothingOutOfReachIsChangedOrShown(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.mustUp(shop("production", "1"))
		b.mustUp(shop("production", "2"))
		b.mustUp(shop("staging", "1"))
		b.settled()
		reach := kiln.Reach{"staging"}
		request := shop("production", "3").request() // the definition says which environment
		request.Reach = reach
		_, errUp := b.Up(t.Context(), request, nil)
		_, errBake := b.Bake(t.Context(), request, nil)
		_, errPlan := b.Plan(t.Context(), request)
		_, errRollback := b.Rollback(t.Context(), RollbackRequest{Environment: "production", Reach: reach}, nil)
		errDown := b.Down(t.Context(), DownRequest{Environment: "production", Reach: reach}, nil)
		errEvents := b.Events(t.Context(), EventQuery{Environment: "production", Reach: reach}, nil)
		for what, err := range map[string]error{
			"up": errUp, "bake": errBake, "plan": errPlan, "rollback": errRollback, "down": errDown, "events": errEvents,
		} {
			if !refused(err) || !strings.Contains(err.Error(), `environment "production" is not for this token, which is for: "staging"`) {
				t.Errorf("%s: %v", what, err)
			}
		}
		b.wantStates("production", kiln.ReleaseParked, kiln.ReleaseLive)
		check(t, b.ledger.Append(t.Context(), kiln.Event{Kind: "config.loaded"}))
		n := 0
		check(t, b.Events(t.Context(), EventQuery{Reach: reach}, func(e kiln.Event) error {
			if n++; e.Environment != "staging" {
				t.Errorf("%s of %q is shown", e.Kind, e.Environment)
			}
			return nil
		}))
		if n == 0 {
			t.Error("nothing is shown")
		}
		request = shop("staging", "2").request()
		request.Reach = reach
		_, err := b.Up(t.Context(), request, nil)
		check(t, err)
	})
}

func TestARollbackThatArrivesTwiceGoesBackOnce(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		for _, v := range []string{"1", "2", "3"} {
			b.mustUp(shop("production", v))
			b.settled()
		}
		request := RollbackRequest{Environment: "production", From: 3}
		_, err := b.Rollback(t.Context(), request, nil)
		check(t, err)
		b.settled()
		_, err = b.Rollback(t.Context(), request, nil)
		if !errors.Is(err, kiln.ErrConflict) || !strings.Contains(err.Error(), "nothing was done: release 2 is live of production, and not release 3") {
			t.Error(err)
		}
		b.wantStates("production", kiln.ReleaseRetired, kiln.ReleaseLive, kiln.ReleaseCondemned)
	})
}

func TestBakesAreRecordedWithTheirActor(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		r, err := b.Bake(t.Context(), shop("production", "1").request(), nil)
		check(t, err)
		events, err := b.ledger.Events(t.Context(), "production", 0, 0)
		check(t, err)
		if len(events) != 1 || events[0].Kind != "bundle.baked" || events[0].Actor != "ada" || events[0].Data["bundle"] != string(r.Bundle) {
			t.Errorf("%+v", events)
		}
	})
}

func TestTheNewestEventsAreNoMoreThanAskedFor(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		for n := range 2500 {
			check(t, b.ledger.Append(t.Context(), kiln.Event{Environment: "production", Kind: "n", Subject: fmt.Sprint(n)}))
		}
		for last, want := range map[int]int{1: 1, 100: 100, 1700: 1700, 2500: 2500, 9000: 2500, 0: 2500} {
			n := 0
			check(t, b.Events(t.Context(), EventQuery{Environment: "production", Last: last}, func(e kiln.Event) error {
				if n++; e.Subject != fmt.Sprint(2500-want+n-1) {
					t.Fatalf("the newest %d: %s is the %d.", last, e.Subject, n)
				}
				return nil
			}))
			if n != want {
				t.Errorf("the newest %d are %d", last, n)
			}
		}
	})
}

func TestAChangedBoundOfStorageHoldsAtOnce(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		c := &collector{used: 100}
		b.halt()
		b.storage = []Collector{c}
		b.start()
		b.mustUp(shop("production", "1"))
		synctest.Wait()
		b.SetStorageMax(30)
		synctest.Wait()
		if c.want != 70 {
			t.Errorf("wanted %d", c.want)
		}
		c.want = -1
		b.SetStorageMax(30)
		synctest.Wait()
		if c.want != -1 {
			t.Error("the same bound again made a collection")
		}
		b.gate.RLock() // something is baked
		b.SetStorageMax(20)
		kilntest.Pass(5 * collectEvery / 100)
		if c.want != -1 {
			t.Error("collected while something is baked")
		}
		b.gate.RUnlock()
		b.settled()
		if c.want != 80 {
			t.Errorf("after the bake: wanted %d", c.want)
		}
	})
}
