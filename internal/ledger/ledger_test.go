package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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

func sound(t *testing.T, l *Ledger) Report {
	t.Helper()
	r, err := l.Verify(t.Context())
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
	if r := sound(t, l); r.Releases != writers*each {
		t.Fatalf("verified %d releases", r.Releases)
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
	check(t, l.SetSetting(ctx, "x", []byte("1")))
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
		conn, err := l.read.Conn(t.Context())
		check(t, err)
		defer func() { _ = conn.Close() }()
		if _, err := conn.ExecContext(t.Context(), "DELETE FROM events"); err == nil {
			t.Fatal("a reader wrote")
		}
	}
	var mode string
	var level int
	check(t, l.write.QueryRowContext(t.Context(), "PRAGMA journal_mode").Scan(&mode))
	check(t, l.write.QueryRowContext(t.Context(), "PRAGMA synchronous").Scan(&level))
	if mode != "wal" || level != 2 {
		t.Fatalf("journal_mode %s, synchronous %d", mode, level)
	}
}

func TestVerifyNamesTheRecordThatChanged(t *testing.T) {
	for name, c := range map[string]struct{ damage, record string }{
		"content":  {"UPDATE events SET body = CAST(replace(CAST(body AS TEXT), 'web-4', 'web-9') AS BLOB) WHERE seq = 5", "event 5"},
		"scope":    {"UPDATE events SET environment = 'q' WHERE seq = 5", "event 5"},
		"schema":   {"UPDATE events SET schema = 2 WHERE seq = 5", "event 5"},
		"missing":  {"DELETE FROM events WHERE seq = 5", "event 6"},
		"replaced": {"UPDATE events SET hash = zeroblob(32) WHERE seq = 5", "event 5"},
		"release":  {"UPDATE releases SET body = CAST(replace(CAST(body AS TEXT), 'root', 'toor') AS BLOB)", "release 1 of p"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLedger(t)
			for n := range 10 {
				check(t, l.Append(t.Context(), event("p", n)))
			}
			check(t, second(l.CreateRelease(t.Context(), kiln.Release{Environment: "p", Actor: "root"})))
			sound(t, l)
			_, err := l.write.ExecContext(t.Context(), c.damage)
			check(t, err)
			r, err := l.Verify(t.Context())
			check(t, err)
			if len(r.Faults) == 0 || r.Faults[0].Record != c.record {
				t.Fatalf("faults %+v, want %s", r.Faults, c.record)
			}
		})
	}
}

func TestAFlippedByteInTheFileIsNamed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := openAt(t, path)
	for n := range 200 {
		check(t, l.Append(t.Context(), event("p", n)))
	}
	check(t, l.Close())
	raw, err := os.ReadFile(path)
	check(t, err)
	at := bytes.Index(raw, []byte(`"subject":"web-41"`))
	if at < 0 {
		t.Fatal("the event is not in the file")
	}
	raw[at+12] ^= 1
	check(t, os.WriteFile(path, raw, 0o600))
	r, err := openAt(t, path).Verify(t.Context())
	check(t, err)
	if len(r.Faults) != 1 || r.Faults[0].Record != "event 42" {
		t.Fatalf("faults %+v", r.Faults)
	}
}

func TestWhatIsNoLedgerIsRefusedInWords(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	check(t, os.WriteFile(path, bytes.Repeat([]byte("no ledger "), 1000), 0o600))
	_, err := Open(t.Context(), path)
	var known *kiln.Error
	if !errors.As(err, &known) || known.Hint == "" {
		t.Fatalf("open: %v", err)
	}
}

func TestPruneKeepsTheChain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := openAt(t, path)
	ctx := t.Context()
	for n := range 50 {
		check(t, l.Append(ctx, event("p", n)))
	}
	check(t, l.Prune(ctx, 100, 100))
	check(t, l.Prune(ctx, 10, 100))
	if r := sound(t, l); r.Events != 10 || len(r.Notes) != 1 {
		t.Fatalf("%+v", r)
	}
	check(t, l.Prune(ctx, 0, 100))
	check(t, l.Close())
	l = openAt(t, path)
	check(t, l.Append(ctx, event("p", 50)))
	if r := sound(t, l); r.Events != 1 {
		t.Fatalf("%+v", r)
	}
}

func TestPruneKeepsTheLivingAndTheNewest(t *testing.T) {
	l := openAt(t, filepath.Join(t.TempDir(), "ledger.db"))
	ctx := t.Context()
	check(t, l.Prune(ctx, 10, 10)) // of nothing
	born := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	for n := range 20 {
		i := kiln.Instance{ID: fmt.Sprintf("web-%02d", n), Environment: "p", State: kiln.InstanceDead, CreatedAt: born.Add(time.Duration(n) * time.Minute)}
		if n == 0 {
			i.State = kiln.InstanceReady
		}
		check(t, l.Commit(ctx, kiln.Record{Instances: []kiln.Instance{i}}))
	}
	check(t, l.Prune(ctx, 10, 5))
	left, err := l.Instances(ctx, "p", 100)
	check(t, err)
	if len(left) != 6 || left[0].ID != "web-19" || left[4].ID != "web-15" || left[5].ID != "web-00" {
		t.Fatalf("%+v", left)
	}
}

func TestReleasesOfTheFirstSchemaAreRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l, err := open(t.Context(), path, migrations()[:1])
	check(t, err)
	_, err = l.write.ExecContext(t.Context(), `
		INSERT INTO environments (name, next_number) VALUES ('p', 2);
		INSERT INTO releases (environment, number, state, body, digest) VALUES ('p', 1, 'live', CAST('{"environment":"p","number":1}' AS BLOB), '')`)
	check(t, err)
	check(t, l.Close())
	l = openAt(t, path)
	old, err := l.Release(t.Context(), "p", 1)
	check(t, err)
	if old.State != kiln.ReleaseLive || !old.LiveAt.IsZero() {
		t.Fatalf("%+v", old)
	}
	at := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	check(t, l.Commit(t.Context(), kiln.Record{Marks: []kiln.ReleaseMark{{Environment: "p", Number: 1, State: kiln.ReleaseLive, LiveAt: at}}}))
	check(t, l.Commit(t.Context(), kiln.Record{Marks: []kiln.ReleaseMark{{Environment: "p", Number: 1, State: kiln.ReleaseRetired}}}))
	if now, err := l.Release(t.Context(), "p", 1); err != nil || !now.LiveAt.Equal(at) || now.State != kiln.ReleaseRetired {
		t.Fatalf("%+v, %v", now, err)
	}
}

func TestMigrationCopiesAndRefusesDowngrade(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := openAt(t, path)
	check(t, l.Append(t.Context(), event("p", 1)))
	check(t, l.Close())
	steps := append(migrations(), "CREATE TABLE more (x INTEGER) STRICT")
	l, err := open(t.Context(), path, steps)
	check(t, err)
	sound(t, l)
	check(t, l.Close())
	_, err = Open(t.Context(), path)
	var refused *kiln.Error
	if !errors.As(err, &refused) || refused.Code != kiln.CodeRefused {
		t.Fatalf("an older program opened it: %v", err)
	}
	old := openAt(t, fmt.Sprintf("%s.schema-%d", path, len(migrations())))
	if r := sound(t, old); r.Events != 1 {
		t.Fatalf("the copy has %d events", r.Events)
	}
	check(t, old.Close())
	bad := append(steps, "CREATE TABLE more (x INTEGER)")
	if _, err := open(t.Context(), path, bad); err == nil {
		t.Fatal("a migration that failed was taken")
	}
	l, err = open(t.Context(), path, steps)
	check(t, err)
	check(t, l.Close())
}
