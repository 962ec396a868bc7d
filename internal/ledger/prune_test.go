package ledger

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kilnproject/kiln"
)

func TestPruneKeepsTheChain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := openAt(t, path)
	ctx := t.Context()
	for n := range 50 {
		check(t, l.Append(ctx, event("p", n)))
	}
	check(t, l.Prune(ctx, 100))
	check(t, l.Prune(ctx, 10))
	if r := sound(t, l); r.Events != 11 || len(r.Notes) != 1 { // the checkpoint's own entry is one
		t.Fatalf("%+v", r)
	}
	check(t, l.Prune(ctx, 0))
	check(t, l.Close())
	l = openAt(t, path)
	check(t, l.Append(ctx, event("p", 50)))
	events, err := l.Events(ctx, "p", 0, 0)
	check(t, err)
	if r := sound(t, l); r.Events != 2 || len(events) != 1 || events[0].Sequence <= 50 {
		t.Fatalf("%+v, events %+v", r, events)
	}
}

func TestPruneKeepsWhatGoesOn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := lived(t, path)
	before := contents(t, l)
	for n := range 30 {
		check(t, l.Append(t.Context(), event("q", n)))
	}
	check(t, l.Prune(t.Context(), 5))
	sound(t, l)
	check(t, l.Close())
	l = openAt(t, path)
	sound(t, l)
	// All but the events is as it was.
	if state := func(s string) string { return strings.Join(strings.SplitN(s, "\n", 6)[:5], "\n") }; state(contents(t, l)) != state(before) {
		t.Fatalf("it reads\n%s\nnot\n%s", state(contents(t, l)), state(before))
	}
	for id, kept := range map[string]bool{"p-web-10": true, "p-web-11": false} {
		if _, err := l.Instance(t.Context(), id); (err == nil) != kept {
			t.Errorf("instance %s: %v", id, err)
		}
	}
	if _, err := l.Rollout(t.Context(), "p-run-1"); err == nil {
		t.Error("a rollout that ended long ago is kept")
	}
	live(t, l, "r", 2)
	check(t, l.Prune(t.Context(), 3))
	sound(t, l)
}

func TestNothingOfAnEnvironmentThatIsOverIsKept(t *testing.T) {
	l := openAt(t, filepath.Join(t.TempDir(), "ledger.db"))
	ctx := t.Context()
	for _, name := range []string{"over", "quiet"} {
		live(t, l, name, 2)
	}
	check(t, l.Commit(ctx, kiln.Record{Marks: []kiln.ReleaseMark{{Environment: "over", Number: 2, State: kiln.ReleaseRetired}}}))
	for n := range 20 {
		check(t, l.Append(ctx, event("busy", n)))
	}
	check(t, l.Prune(ctx, 10))
	sound(t, l)
	names, err := l.Environments(ctx)
	check(t, err)
	if !slices.Equal(names, []string{"quiet"}) {
		t.Fatalf("environments %q", names)
	}
	r, err := l.CreateRelease(ctx, kiln.Release{Environment: "over"})
	check(t, err)
	if r.Number != 3 {
		t.Fatalf("number %d was given twice", r.Number)
	}
}

func TestWhatEndedIsBoundedByNumber(t *testing.T) {
	small := standard()
	small.kept = kept{dead: 200, ended: 30, releases: 10}
	l, err := open(t.Context(), filepath.Join(t.TempDir(), "ledger.db"), small)
	check(t, err)
	t.Cleanup(func() { _ = l.Close() })
	keptDead, keptEnded, keptReleases := small.kept.dead, small.kept.ended, small.kept.releases
	ctx := t.Context()
	var dead []kiln.Instance
	for n := range keptDead + 110 {
		dead = append(dead, kiln.Instance{ID: fmt.Sprintf("w-%06d", n), Environment: "p", State: kiln.InstanceDead})
	}
	for batch := range slices.Chunk(dead, 25) {
		check(t, l.Commit(ctx, kiln.Record{Instances: batch}))
	}
	var wg sync.WaitGroup
	for w := range 10 {
		wg.Go(func() {
			for n := range (keptEnded + 50) / 10 {
				run := kiln.Rollout{ID: fmt.Sprintf("%d-%d", w, n), Environment: "p", EndedAt: time.Unix(1, 0), State: []byte("{}")}
				if err := l.Commit(ctx, kiln.Record{Rollout: &run}); err != nil {
					t.Error(err)
				}
			}
			for range (keptReleases + 20) / 10 {
				r, err := l.CreateRelease(ctx, kiln.Release{Environment: "p", State: kiln.ReleasePending})
				state := kiln.ReleaseRetired
				switch r.Number {
				case 1:
					state = kiln.ReleaseLive
				case 2:
					state = kiln.ReleaseCondemned
				}
				if err == nil {
					err = l.Commit(ctx, kiln.Record{Marks: []kiln.ReleaseMark{{Environment: "p", Number: r.Number, State: state}}})
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	check(t, l.Prune(ctx, 1_000_000))
	sound(t, l)
	count := func(table string) (n int) {
		check(t, l.files().read.QueryRowContext(ctx, "SELECT count(*) FROM "+table).Scan(&n))
		return n
	}
	// One entry anchors 25 instances: they go together.
	if n := count("instances"); n > keptDead || n < keptDead-25 {
		t.Errorf("%d instances", n)
	}
	if n := count("rollouts"); n != keptEnded {
		t.Errorf("%d rollouts", n)
	}
	for _, table := range []string{"releases", "release_copies"} {
		if n := count(table); n != keptReleases+2 {
			t.Errorf("%d in %s", n, table)
		}
	}
	check(t, second(l.Release(ctx, "p", 1)))
	check(t, second(l.Release(ctx, "p", 2)))
}

func TestAPruneThatWasCutOffIsFinished(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := lived(t, path)
	point, err := l.movePoint(t.Context(), 5)
	check(t, err)
	sound(t, l)
	check(t, l.pruneEnded(t.Context(), point))
	sound(t, l)
	check(t, l.Close())
	l = openAt(t, path)
	sound(t, l)
	check(t, l.Prune(t.Context(), 1000))
	events, err := l.Events(t.Context(), "", 0, 0)
	check(t, err)
	if len(events) == 0 || events[0].Sequence <= point {
		t.Fatalf("events %+v", events)
	}
}

func TestDamageIsNotPrunedAway(t *testing.T) {
	for _, damage := range []string{
		"UPDATE settings SET value = x'00'", "UPDATE instances SET born = '1' WHERE id = 'p-web-10'", "UPDATE environments SET next_number = 1",
	} {
		l := lived(t, filepath.Join(t.TempDir(), "ledger.db"))
		_, err := l.files().write.ExecContext(t.Context(), damage)
		check(t, err)
		if err := l.Prune(t.Context(), 0); !isRefusal(err) {
			t.Errorf("%s: %v", damage, err)
		}
		if events, err := l.Events(t.Context(), "", 0, 1000); err != nil || events[0].Sequence != 1 {
			t.Errorf("%s: events are gone: %v", damage, err)
		}
	}
}

func TestTheFileShrinks(t *testing.T) {
	l := openAt(t, filepath.Join(t.TempDir(), "ledger.db"))
	pages := func() (n int) {
		check(t, l.files().read.QueryRowContext(t.Context(), "PRAGMA page_count").Scan(&n))
		return n
	}
	e := event("p", 1)
	e.Message = strings.Repeat("x", 3500)
	for range 8 {
		check(t, l.Append(t.Context(), slices.Repeat([]kiln.Event{e}, 500)...))
	}
	full := pages()
	check(t, l.Prune(t.Context(), 100))
	if now := pages(); full < vacuumSlack+1000 || now > vacuumSlack+200 {
		t.Fatalf("%d pages, %d before", now, full)
	}
	sound(t, l)
}

// TestVerifyingWhileMuchChanges looks for faults that are none.
func TestVerifyingWhileMuchChanges(t *testing.T) {
	l := lived(t, filepath.Join(t.TempDir(), "ledger.db"))
	rounds := few(20)
	done := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 3 {
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-done:
					return
				default:
				}
				name := fmt.Sprintf("e%d", w)
				one := kiln.Instance{ID: fmt.Sprintf("%s-web-%d", name, n/3), Environment: name, State: []kiln.InstanceState{kiln.InstanceStarting, kiln.InstanceReady, kiln.InstanceDead}[n%3]}
				run := kiln.Rollout{ID: fmt.Sprintf("%s-%d", name, n/4), Environment: name, State: []byte("{}")}
				if n%4 == 3 {
					run.EndedAt = time.Unix(1, 0)
				}
				err := l.Commit(t.Context(), kiln.Record{Rollout: &run, Instances: []kiln.Instance{one}, Events: []kiln.Event{event(name, n)}})
				if err == nil && n%10 == 0 {
					_, err = l.CreateRelease(t.Context(), kiln.Release{Environment: name, State: kiln.ReleaseFailed})
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			if err := l.Prune(t.Context(), 40); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range rounds {
		r, err := l.Verify(t.Context(), "")
		if err != nil || len(r.Faults) > 0 {
			t.Errorf("faults %+v, %v", r.Faults, err)
			break
		}
	}
	close(done)
	wg.Wait()
	sound(t, l)
}
