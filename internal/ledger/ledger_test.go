package ledger

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kilnproject/kiln"
)

func newLedger(t *testing.T) *Ledger {
	t.Helper()
	return openAt(t, filepath.Join(t.TempDir(), "ledger.db"))
}

func openAt(t *testing.T, path string) *Ledger {
	t.Helper()
	l, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func event(environment string, n int) kiln.Event {
	return kiln.Event{At: time.Unix(int64(n), 0), Environment: environment, Kind: "instance.born", Subject: fmt.Sprintf("web-%d", n), Message: "was started"}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func sound(t *testing.T, l *Ledger) kiln.LedgerReport {
	t.Helper()
	r, err := l.Verify(t.Context(), "")
	check(t, err)
	if len(r.Faults) > 0 {
		t.Fatalf("faults: %+v", r.Faults)
	}
	return r
}

func TestEventsPageAndSelect(t *testing.T) {
	l := newLedger(t)
	ctx := t.Context()
	for n := range 30 {
		check(t, l.Append(ctx, event([]string{"production", "staging"}[n%2], n)))
	}
	last, err := l.Events(ctx, "staging", 0, 3)
	check(t, err)
	if len(last) != 3 || last[0].Sequence != 26 || last[2].Sequence != 30 {
		t.Fatalf("last 3 of staging: %+v", last)
	}
	all, err := l.Events(ctx, "", 10, 0)
	check(t, err)
	if len(all) != 20 || all[0].Sequence != 11 || all[0].Subject != "web-10" {
		t.Fatalf("%d after 10, first %+v", len(all), all[0])
	}
}

func TestWatchSignalsAndEnds(t *testing.T) {
	l := newLedger(t)
	ctx, cancel := context.WithCancel(t.Context())
	w := l.Watch(ctx)
	check(t, l.Append(t.Context(), event("a", 1)))
	<-w
	cancel()
	for range w {
	}
	check(t, l.Append(t.Context(), event("a", 2)))
}

func TestAWatcherThatDoesNotReadHoldsNothingUp(t *testing.T) {
	l := newLedger(t)
	w := l.Watch(t.Context())
	for range 20 {
		check(t, l.Append(t.Context(), slices.Repeat([]kiln.Event{event("a", 1)}, 500)...))
	}
	<-w
	select {
	case <-w:
		t.Fatal("signals were piled up")
	default:
	}
}

func TestWhatStrangersWroteIsCut(t *testing.T) {
	l := newLedger(t)
	long := strings.Repeat("é", 100_000)
	e := event("a", 1)
	e.Message, e.Data = long, map[string]string{"log_01": long, "service": "web"}
	i := kiln.Instance{ID: "w", State: kiln.InstanceDead, Note: long, Cause: &kiln.Cause{Detail: long, LastLog: []string{long, "short"}}}
	check(t, l.Commit(t.Context(), kiln.Record{Events: []kiln.Event{e}, Instances: []kiln.Instance{i}}))
	events, err := l.Events(t.Context(), "a", 0, 1)
	check(t, err)
	got, err := l.Instance(t.Context(), "w")
	check(t, err)
	for what, s := range map[string]string{"message": events[0].Message, "data": events[0].Data["log_01"], "note": got.Note, "log": got.Cause.LastLog[0]} {
		if len(s) > longestText || !strings.HasSuffix(s, "é...") {
			t.Errorf("%s has %d bytes and ends with %q", what, len(s), s[len(s)-6:])
		}
	}
	if events[0].Data["service"] != "web" || got.Cause.LastLog[1] != "short" || len(i.Cause.LastLog[0]) != len(long) {
		t.Error("more was cut")
	}
}

func TestReleaseNumbersHaveNoGaps(t *testing.T) {
	l := newLedger(t)
	const writers, each = 8, 10
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for range each {
				if _, err := l.CreateRelease(t.Context(), kiln.Release{Environment: fmt.Sprintf("e%d", w%2), State: kiln.ReleasePending}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for _, name := range []string{"e0", "e1"} {
		list, err := l.Releases(t.Context(), name)
		check(t, err)
		if len(list) != writers*each/2 {
			t.Fatalf("%s has %d releases", name, len(list))
		}
		for i, r := range list {
			if r.Number != i+1 {
				t.Fatalf("release %d at place %d", r.Number, i)
			}
		}
	}
	if r := sound(t, l); r.Rows != writers*each+2 {
		t.Fatalf("verified %d rows", r.Rows)
	}
}

func TestCommitIsAllOrNothingAndTouchesNoOther(t *testing.T) {
	l := newLedger(t)
	ctx := t.Context()
	_, err := l.CreateRelease(ctx, kiln.Release{Environment: "p", State: kiln.ReleasePending})
	check(t, err)
	var wg sync.WaitGroup
	for n := range 20 {
		wg.Go(func() {
			bad := n%2 == 1
			err := l.Commit(ctx, kiln.Record{
				Events:    []kiln.Event{event("p", n)},
				Instances: []kiln.Instance{{ID: fmt.Sprint("i", n), Environment: "p"}},
				Marks:     []kiln.ReleaseMark{{Environment: "p", Number: 1 + n%2, State: kiln.ReleaseLive}},
			})
			if bad != errors.Is(err, kiln.ErrNotFound) || (!bad && err != nil) {
				t.Errorf("commit %d: %v", n, err)
			}
		})
	}
	wg.Wait()
	alive, err := l.Alive(ctx)
	check(t, err)
	if r := sound(t, l); r.Events != 11 || len(alive) != 10 {
		t.Fatalf("%d events, %d instances", r.Events, len(alive))
	}
}

func TestStateIsReadBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := openAt(t, path)
	ctx := t.Context()
	r, err := l.CreateRelease(ctx, kiln.Release{Environment: "p", State: kiln.ReleasePending, CreatedAt: time.Unix(1, 0).UTC(), Bundle: kiln.DigestOf(nil)})
	check(t, err)
	until := time.Date(2026, 1, 2, 3, 4, 5, 600, time.UTC)
	running := kiln.Rollout{ID: "a", Environment: "p", To: 1, Step: "admit", State: []byte(`{"step":"admit"}`)}
	check(t, l.Commit(ctx, kiln.Record{Rollout: &running, Marks: []kiln.ReleaseMark{{Environment: "p", Number: 1, State: kiln.ReleaseParked, ParkedUntil: until}}}))
	dead := kiln.Instance{ID: "w-1", Environment: "p", State: kiln.InstanceDead}
	check(t, l.Commit(ctx, kiln.Record{Instances: []kiln.Instance{dead}}))
	dead.State = kiln.InstanceReady
	check(t, l.Commit(ctx, kiln.Record{Instances: []kiln.Instance{dead}}))
	check(t, l.SetSetting(ctx, "x", []byte("1"), kiln.Event{}))
	told := kiln.Record{Events: []kiln.Event{{Environment: "p", Kind: "finding.new"}}, Settings: map[string][]byte{"told": []byte("2"), "z": []byte("3")}}
	check(t, l.Commit(ctx, told))
	// Of what is not taken nothing is: neither the event nor the setting.
	told.Settings["told"], told.Marks = []byte("4"), []kiln.ReleaseMark{{Environment: "p", Number: 99}}
	if err := l.Commit(ctx, told); err == nil {
		t.Error("a mark of an unknown release was taken")
	}
	if got, err := l.Setting(ctx, "told"); err != nil || string(got) != "2" {
		t.Errorf("the setting is %q, %v", got, err)
	}
	check(t, l.Close())

	l = openAt(t, path)
	got, err := l.Release(ctx, "p", 1)
	check(t, err)
	if got.State != kiln.ReleaseParked || !got.ParkedUntil.Equal(until) || got.Identity() != r.Identity() {
		t.Fatalf("release %+v", got)
	}
	open, err := l.Unfinished(ctx)
	check(t, err)
	if len(open) != 1 || open[0].Step != "admit" {
		t.Fatalf("unfinished %+v", open)
	}
	running.EndedAt = time.Unix(2, 0)
	check(t, l.Commit(ctx, kiln.Record{Rollout: &running}))
	if open, _ = l.Unfinished(ctx); len(open) != 0 {
		t.Fatal("an ended rollout is unfinished")
	}
	if alive, _ := l.Alive(ctx); len(alive) != 0 {
		t.Fatal("a dead instance lives again")
	}
	if v, err := l.Setting(ctx, "x"); err != nil || string(v) != "1" {
		t.Fatalf("setting %q, %v", v, err)
	}
	for _, err := range []error{second(l.Release(ctx, "p", 2)), second(l.Rollout(ctx, "b")), second(l.Setting(ctx, "y"))} {
		if !errors.Is(err, kiln.ErrNotFound) {
			t.Errorf("want not found, got %v", err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestPragmasHoldOnEveryConnection(t *testing.T) {
	l := newLedger(t)
	for range readers {
		conn, err := l.files().read.Conn(t.Context())
		check(t, err)
		defer func() { _ = conn.Close() }()
		if _, err := conn.ExecContext(t.Context(), "DELETE FROM events"); err == nil {
			t.Fatal("a reader wrote")
		}
	}
	var mode string
	var level int
	check(t, l.files().write.QueryRowContext(t.Context(), "PRAGMA journal_mode").Scan(&mode))
	check(t, l.files().write.QueryRowContext(t.Context(), "PRAGMA synchronous").Scan(&level))
	if mode != "wal" || level != 2 {
		t.Fatalf("journal_mode %s, synchronous %d", mode, level)
	}
}
