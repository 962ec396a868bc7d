package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kilnproject/kiln"
)

// lived is a ledger with a bit of everything: releases, a rollout that runs
// and one that ended, instances alive and dead, a setting.
func lived(t *testing.T, path string) *Ledger {
	t.Helper()
	l := openAt(t, path)
	live(t, l, "p", 3)
	return l
}

// live adds so many releases of an environment, with what comes with them.
func live(t *testing.T, l *Ledger, environment string, releases int) {
	t.Helper()
	ctx := t.Context()
	for n := 1; n <= releases; n++ {
		r, err := l.CreateRelease(ctx, kiln.Release{Environment: environment, Actor: "root", CreatedAt: time.Unix(int64(n), 0), State: kiln.ReleasePending})
		check(t, err)
		run := kiln.Rollout{ID: fmt.Sprintf("%s-run-%d", environment, n), Environment: environment, To: r.Number, State: []byte(`{}`)}
		check(t, l.Commit(ctx, kiln.Record{Rollout: &run, Events: []kiln.Event{event(environment, n)}}))
		for i := range 4 {
			one := kiln.Instance{ID: fmt.Sprintf("%s-web-%d%d", environment, n, i), Environment: environment, State: kiln.InstanceReady}
			check(t, l.Commit(ctx, kiln.Record{Instances: []kiln.Instance{one}, Events: []kiln.Event{event(environment, 10*n+i)}}))
			if i%2 == 1 {
				one.State = kiln.InstanceDead
				check(t, l.Commit(ctx, kiln.Record{Instances: []kiln.Instance{one}, Events: []kiln.Event{event(environment, 10*n+i)}}))
			}
		}
		marks := []kiln.ReleaseMark{{Environment: environment, Number: n, State: kiln.ReleaseLive, LiveAt: time.Unix(9, 0)}}
		if n > 1 {
			marks = append(marks, kiln.ReleaseMark{Environment: environment, Number: n - 1, State: kiln.ReleaseRetired})
		}
		if n < releases {
			run.EndedAt = time.Unix(5, 0)
		}
		check(t, l.Commit(ctx, kiln.Record{Rollout: &run, Marks: marks}))
	}
	check(t, l.SetSetting(ctx, "colour", []byte("blue"), kiln.Event{}))
}

func faultsOf(t *testing.T, l *Ledger) []string {
	t.Helper()
	r, err := l.Verify(t.Context(), "")
	check(t, err)
	var out []string
	for _, f := range r.Faults {
		out = append(out, f.Record)
	}
	return out
}

func TestVerifyNamesTheRecordThatChanged(t *testing.T) {
	for name, c := range map[string]struct {
		damage string
		record []string
	}{
		"content":            {"UPDATE events SET body = CAST(replace(CAST(body AS TEXT), 'web', 'wob') AS BLOB) WHERE seq = 5", []string{"event 5"}},
		"scope":              {"UPDATE events SET environment = 'q' WHERE seq = 5", []string{"event 5"}},
		"schema":             {"UPDATE events SET schema = 3 WHERE seq = 5", []string{"event 5"}},
		"no event":           {"DELETE FROM events WHERE seq = 6", []string{"event 6", "instance p-web-12"}},
		"hash":               {"UPDATE events SET hash = zeroblob(32) WHERE seq = 5", []string{"event 5"}},
		"what it anchors":    {"UPDATE events SET rows = x'' WHERE seq = 3", []string{"event 3", "instance p-web-10"}},
		"the last":           {"DELETE FROM events WHERE seq = (SELECT max(seq) FROM events)", []string{"setting colour", "event 28"}},
		"release":            {"UPDATE releases SET body = CAST(replace(CAST(body AS TEXT), 'root', 'toor') AS BLOB) WHERE number = 2", []string{"release 2 of p"}},
		"state of a release": {"UPDATE releases SET state = 'live' WHERE number = 2", []string{"release 2 of p"}},
		"no release":         {"DELETE FROM releases WHERE number = 3", []string{"release 3 of p"}},
		"copy":               {"DELETE FROM release_copies WHERE number = 3", []string{"the copy of release 3 of p"}},
		"releases":           {"DELETE FROM releases; DELETE FROM release_copies WHERE number > 1", []string{"release 1 of p", "release 2 of p", "release 3 of p"}},
		"rollout":            {"UPDATE rollouts SET ended = 1 WHERE id = 'p-run-3'", []string{"rollout p-run-3"}},
		"ended rollout":      {"UPDATE rollouts SET environment = 'q' WHERE id = 'p-run-1'", []string{"rollout p-run-1"}},
		"instance":           {"UPDATE instances SET born = '2' WHERE id = 'p-web-10'", []string{"instance p-web-10"}},
		"dead instance":      {"UPDATE instances SET body = x'00' WHERE id = 'p-web-11'", []string{"instance p-web-11"}},
		"no instance":        {"DELETE FROM instances WHERE id = 'p-web-10'", []string{"instance p-web-10"}},
		"setting":            {"UPDATE settings SET value = x'00'", []string{"setting colour"}},
		"no setting":         {"DELETE FROM settings", []string{"setting colour"}},
		"number":             {"UPDATE environments SET next_number = 2", []string{"environment p"}},
		"place in the chain": {"UPDATE settings SET anchor = 1", []string{"setting colour"}},
		"digest":             {"UPDATE instances SET digest = zeroblob(32) WHERE id = 'p-web-10'", []string{"instance p-web-10"}},
		"schema number":      {"PRAGMA user_version = 2", nil},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "ledger.db")
			l := lived(t, path)
			sound(t, l)
			_, err := l.files().write.ExecContext(t.Context(), c.damage)
			check(t, err)
			if got := faultsOf(t, l); !slices.Equal(got, c.record) {
				t.Errorf("faults %q, want %q", got, c.record)
			}
			check(t, l.Close())
			l = openAt(t, path)
			_ = faultsOf(t, l)
			if err := l.Append(t.Context(), event("p", 1)); !isRefusal(err) {
				t.Errorf("history was written over it: %v", err)
			}
		})
	}
}

func isRefusal(err error) bool {
	var known *kiln.Error
	return errors.As(err, &known) && known.Code == kiln.CodeRefused && strings.Contains(known.Message, "damaged") && strings.Contains(known.Hint, "kiln ledger accept")
}

// TestARowThatIsForgedIsFound gives a changed row the right digest: only the
// chain knows better.
func TestARowThatIsForgedIsFound(t *testing.T) {
	l := lived(t, filepath.Join(t.TempDir(), "ledger.db"))
	for table, where := range map[*table]string{
		l.tables.instances: "p-web-11", l.tables.settings: "colour", l.tables.rollouts: "p-run-1",
	} {
		rows, err := l.rows(t.Context(), table, "WHERE "+table.columns[0]+" = ?", where)
		check(t, err)
		r := rows[0]
		r.values[len(r.values)-1] = append([]byte("x"), r.values[len(r.values)-1].([]byte)...)
		sum := r.sum()
		_, err = l.files().write.ExecContext(t.Context(), table.put, append(r.values, r.anchor, sum[:])...)
		check(t, err)
	}
	got := faultsOf(t, l)
	slices.Sort(got)
	if want := []string{"instance p-web-11", "rollout p-run-1", "setting colour"}; !slices.Equal(got, want) {
		t.Fatalf("faults %q", got)
	}
}

// TestAnyFlippedByteIsFoundOrHarmless flips bytes all over the file: what is
// read afterwards is what was written, or the damage is named, and nothing is
// written over it.
func TestAnyFlippedByteIsFoundOrHarmless(t *testing.T) {
	dir := t.TempDir()
	l := lived(t, filepath.Join(dir, "whole.db"))
	for n := range 200 {
		check(t, l.Append(t.Context(), event("p", n)))
	}
	want := contents(t, l)
	check(t, l.Close())
	whole, err := os.ReadFile(filepath.Join(dir, "whole.db"))
	check(t, err)
	tip, err := os.ReadFile(filepath.Join(dir, "whole.db.tip"))
	check(t, err)
	flips := few(300)
	named := 0
	for n := range flips {
		raw := slices.Clone(whole)
		at := rand.IntN(len(raw))
		if n < flips/3 {
			at = n * 100 / (flips / 3) // the head of the file
		}
		bit := byte(1) << rand.IntN(8)
		raw[at] ^= bit
		path := filepath.Join(dir, fmt.Sprintf("%d.db", n))
		check(t, os.WriteFile(path, raw, 0o600))
		check(t, os.WriteFile(path+".tip", tip, 0o600))
		l, err := Open(t.Context(), path)
		if err != nil {
			var known *kiln.Error
			if !errors.As(err, &known) || known.Hint == "" {
				t.Fatalf("byte %d, bit %x: open: %v", at, bit, err)
			}
			continue
		}
		report, err := l.Verify(t.Context(), "")
		check(t, err)
		if len(report.Faults) > 0 {
			named++
			if err := l.Append(t.Context(), event("p", 1)); !isRefusal(err) {
				t.Errorf("byte %d, bit %x: %v: written over: %v", at, bit, report.Faults, err)
			}
		} else if got := contents(t, l); got != want {
			t.Errorf("byte %d, bit %x: nothing was found, and it reads\n%s\nnot\n%s", at, bit, got, want)
		}
		_ = l.Close()
	}
	t.Logf("%d of %d flips were named", named, flips)
	if named < flips/5 {
		t.Errorf("only %d of %d flips were named", named, flips)
	}
}

// contents is all that can be read, as text.
func contents(t *testing.T, l *Ledger) string {
	t.Helper()
	ctx := t.Context()
	var b bytes.Buffer
	add := func(v any, err error) {
		check(t, err)
		fmt.Fprintf(&b, "%+v\n", v)
	}
	add(l.Environments(ctx))
	releases, err := l.Releases(ctx, "p")
	add(releases, err)
	add(l.Unfinished(ctx))
	add(l.Alive(ctx))
	add(l.Setting(ctx, "colour"))
	add(l.Events(ctx, "p", 0, 0))
	for _, e := range []string{"", "p"} {
		events, err := l.Events(ctx, e, 0, 30)
		add(events, err)
	}
	return b.String()
}

func TestAFlippedByteOfAnEventInTheFileIsNamed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := openAt(t, path)
	for n := range 200 {
		check(t, l.Append(t.Context(), event("p", n)))
	}
	check(t, l.Close())
	flip(t, path, `"subject":"web-41"`)
	if got := faultsOf(t, openAt(t, path)); !slices.Equal(got, []string{"event 42"}) {
		t.Fatalf("faults %q", got)
	}
}

// flip changes the twelfth byte behind a text of the file, wherever it is:
// pages keep what was on them before.
func flip(t *testing.T, path, text string) {
	t.Helper()
	raw, err := os.ReadFile(path)
	check(t, err)
	found := false
	for at := 0; ; {
		next := bytes.Index(raw[at:], []byte(text))
		if next < 0 {
			break
		}
		at += next + 12
		raw[at] ^= 1
		found = true
	}
	if !found {
		t.Fatalf("%s is not in the file", text)
	}
	check(t, os.WriteFile(path, raw, 0o600))
}

// TestALogThatLostItsEndIsFound: SQLite takes a write-ahead log up to the first
// frame that is not whole, without a word.
func TestALogThatLostItsEndIsFound(t *testing.T) {
	dir := t.TempDir()
	l := lived(t, filepath.Join(dir, "ledger.db"))
	check(t, l.Append(t.Context(), event("p", 100)))
	for _, suffix := range []string{"", "-wal", ".tip"} { // as after kill -9
		raw, err := os.ReadFile(filepath.Join(dir, "ledger.db"+suffix))
		check(t, err)
		if suffix == "-wal" {
			raw[len(raw)-100] ^= 1
		}
		check(t, os.WriteFile(filepath.Join(dir, "copy.db"+suffix), raw, 0o600))
	}
	torn := openAt(t, filepath.Join(dir, "copy.db"))
	if d := torn.Damage(); len(d) != 1 || !strings.Contains(d[0].Problem, "acknowledged") {
		t.Fatalf("damage %v", d)
	}
	if err := torn.Append(t.Context(), event("p", 1)); !isRefusal(err) {
		t.Fatal(err)
	}
}

func TestAnOlderLedgerInItsPlaceIsFound(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := lived(t, path)
	check(t, l.Close())
	old, err := os.ReadFile(path)
	check(t, err)
	l = openAt(t, path)
	check(t, l.Append(t.Context(), event("p", 100)))
	check(t, l.Close())
	check(t, os.WriteFile(path, old, 0o600))
	l = openAt(t, path)
	if got := faultsOf(t, l); !slices.Equal(got, []string{"event 29"}) {
		t.Fatalf("faults %q", got)
	}
}

func TestADamagedReleaseIsReadFromItsCopy(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := lived(t, path)
	for _, damage := range []string{"UPDATE releases SET body = x'00' WHERE number = 3", "UPDATE releases SET state = 'failed' WHERE number = 3"} {
		_, err := l.files().write.ExecContext(t.Context(), damage)
		check(t, err)
		r, err := l.Release(t.Context(), "p", 3)
		check(t, err)
		if r.State != kiln.ReleaseLive || r.Actor != "root" {
			t.Fatalf("read %+v", r)
		}
	}
	if d := l.Damage(); len(d) != 1 || d[0].Record != "release 3 of p" {
		t.Fatalf("damage %v", d)
	}
	_, err := l.files().write.ExecContext(t.Context(), "UPDATE release_copies SET body = x'00' WHERE number = 3")
	check(t, err)
	if _, err := l.Releases(t.Context(), "p"); err == nil || !strings.Contains(err.Error(), "release 3 of p") {
		t.Fatalf("both are damaged: %v", err)
	}
}

func TestDamagedRowsAreLeftOutAndNotWrittenOver(t *testing.T) {
	l := lived(t, filepath.Join(t.TempDir(), "ledger.db"))
	_, err := l.files().write.ExecContext(t.Context(), "UPDATE instances SET born = '3' WHERE id = 'p-web-10'")
	check(t, err)
	one := kiln.Instance{ID: "p-web-10", Environment: "p", State: kiln.InstanceDraining}
	if err := l.Commit(t.Context(), kiln.Record{Instances: []kiln.Instance{one}}); !isRefusal(err) {
		t.Fatalf("written over: %v", err)
	}
	alive, err := l.Alive(t.Context())
	check(t, err)
	if len(alive) != 5 {
		t.Fatalf("%d are alive", len(alive))
	}
	if _, err := l.Instance(t.Context(), "p-web-10"); !isRefusal(err) {
		t.Fatalf("read: %v", err)
	}
	check(t, second(l.Instance(t.Context(), "p-web-12")))
}

func TestTheTipIsTheWholeHistory(t *testing.T) {
	l := lived(t, filepath.Join(t.TempDir(), "ledger.db"))
	kept := sound(t, l).Tip
	live(t, l, "q", 1)
	r, err := l.Verify(t.Context(), kept)
	check(t, err)
	if len(r.Faults) > 0 {
		t.Fatalf("%+v", r.Faults)
	}
	other := lived(t, filepath.Join(t.TempDir(), "ledger.db"))
	check(t, other.Append(t.Context(), event("p", 7)))
	anew, _, _ := strings.Cut(kept, ":")
	anew += ":" + strings.Repeat("ab", 32)
	for _, c := range []struct {
		l   *Ledger
		tip string
	}{{l, anew}, {other, "4000:" + strings.Repeat("ab", 32)}} {
		r, err := c.l.Verify(t.Context(), c.tip)
		check(t, err)
		if len(r.Faults) != 1 {
			t.Fatalf("%s: %+v", c.tip, r.Faults)
		}
	}
	if _, err := l.Verify(t.Context(), "12:xyz"); !errors.Is(err, kiln.ErrInvalid) {
		t.Fatalf("a tip that is none: %v", err)
	}
}

func TestWhatIsNoLedgerIsDamaged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	check(t, os.WriteFile(path, bytes.Repeat([]byte("no ledger "), 1000), 0o600))
	l := openAt(t, path)
	if d := l.Damage(); len(d) == 0 || d[0].Record != "database" {
		t.Fatalf("damage %v", d)
	}
	if err := l.Append(t.Context(), event("p", 1)); !isRefusal(err) {
		t.Fatal(err)
	}
	if _, err := l.Environments(t.Context()); err == nil {
		t.Fatal("it was read")
	}
	if _, err := l.Accept(t.Context(), "root", ""); err == nil || !strings.Contains(err.Error(), "nothing of the ledger can be read") {
		t.Fatalf("accept: %v", err)
	}
	raw, err := os.ReadFile(path)
	check(t, err)
	if !bytes.HasPrefix(raw, []byte("no ledger ")) {
		t.Fatal("it was changed")
	}
}

func TestWritersWaitForTheFirstVerification(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := lived(t, path)
	check(t, l.Close())
	flip(t, path, `"subject":"web-11"`)
	l = openAt(t, path)
	check(t, l.Writable(t.Context()))
	l.willCheck()
	done := make(chan error, 1)
	go func() { done <- l.Writable(t.Context()) }()
	_ = faultsOf(t, l)
	if err := <-done; !isRefusal(err) {
		t.Fatalf("writable: %v", err)
	}
}

func TestTendFindsDamageAndTells(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := lived(t, path)
	check(t, l.Close())
	flip(t, path, `"subject":"web-11"`)
	l = openAt(t, path)
	logged := make(chan string, 100)
	log := slog.New(slog.NewTextHandler(writer(func(b []byte) { logged <- string(b) }), nil))
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); l.Tend(ctx, Care{Keep: func() int64 { return 5 }, Log: log}) }()
	for line := range logged {
		if strings.Contains(line, `record="event 4"`) {
			break
		}
	}
	stop()
	<-ended
	if r, err := l.Verify(t.Context(), ""); err != nil || r.Events != 28 {
		t.Fatalf("damage was pruned away: %+v, %v", r, err)
	}
}

func TestAnotherBoundHoldsAtOnce(t *testing.T) {
	l := lived(t, filepath.Join(t.TempDir(), "ledger.db"))
	before := sound(t, l).Events
	var keep atomic.Int64
	keep.Store(1000)
	changed := make(chan struct{}) // what is taken from it ends what came before
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		l.Tend(ctx, Care{Keep: keep.Load, Changed: changed, Log: slog.New(slog.DiscardHandler)})
	}()
	changed <- struct{}{}
	if r := sound(t, l); r.Events != before {
		t.Errorf("%d events of %d", r.Events, before)
	}
	keep.Store(5)
	changed <- struct{}{}
	changed <- struct{}{}
	if r := sound(t, l); r.Events > before/2 {
		t.Errorf("%d events of %d are kept, not five and some", r.Events, before)
	}
	stop()
	<-ended
}

type writer func([]byte)

func (w writer) Write(b []byte) (int, error) { w(slices.Clone(b)); return len(b), nil }
