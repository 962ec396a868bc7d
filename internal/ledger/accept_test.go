package ledger

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kilnproject/kiln"
)

func TestAcceptGoesOnWithWhatCanBeRead(t *testing.T) {
	for name, damage := range map[string]string{
		"event":             "UPDATE events SET body = x'00' WHERE seq = 5",
		"hash":              "UPDATE events SET hash = zeroblob(32) WHERE seq = 5",
		"no events":         "DELETE FROM events WHERE seq BETWEEN 4 AND 9",
		"what they anchor":  "UPDATE events SET rows = x'' WHERE seq BETWEEN 4 AND 9",
		"the last":          "DELETE FROM events WHERE seq > 20",
		"release":           "UPDATE releases SET state = 'failed' WHERE number = 3",
		"no release":        "DELETE FROM releases WHERE number = 3",
		"releases":          "DELETE FROM releases; DELETE FROM release_copies WHERE number <> 3",
		"instance":          "UPDATE instances SET born = '2' WHERE id = 'p-web-10'",
		"rollout":           "DELETE FROM rollouts WHERE id = 'p-run-3'",
		"setting":           "UPDATE settings SET value = x'00'",
		"number of release": "DELETE FROM environments",
		"index":             "PRAGMA writable_schema = 1; UPDATE sqlite_schema SET rootpage = (SELECT rootpage FROM sqlite_schema WHERE name = 'instances_alive') WHERE name = 'rollouts_unfinished'; PRAGMA writable_schema = 0",
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "ledger.db")
			l := lived(t, path)
			_, err := l.files().write.ExecContext(t.Context(), "PRAGMA foreign_keys = 0; "+damage)
			check(t, err)
			check(t, l.Close())
			l = openAt(t, path)
			report, err := l.Verify(t.Context(), "")
			check(t, err)
			if len(report.Faults) == 0 {
				t.Fatal("nothing is damaged")
			}
			if _, err := l.Accept(t.Context(), "ada (1000)", kiln.DigestOf(nil)); !errors.Is(err, kiln.ErrConflict) {
				t.Fatalf("another damage was accepted: %v", err)
			}
			check(t, second(l.Accept(t.Context(), "ada (1000)", report.Damage)))
			accepted(t, l)
			check(t, l.Close())
			l = openAt(t, path)
			accepted(t, l)
			r, err := l.CreateRelease(t.Context(), kiln.Release{Environment: "p"})
			check(t, err)
			if r.Number != 4 {
				t.Fatalf("the next release is %d", r.Number)
			}
			sound(t, l)
			if !exists(path + asideSuffix) {
				t.Fatal("the damaged file is gone")
			}
		})
	}
}

// accepted checks a ledger in which somebody has gone on.
func accepted(t *testing.T, l *Ledger) {
	t.Helper()
	sound(t, l)
	live, err := l.Release(t.Context(), "p", 3)
	check(t, err)
	if live.State != kiln.ReleaseLive {
		t.Fatalf("release 3 is %s", live.State)
	}
	last, err := l.Events(t.Context(), "", 0, 1)
	check(t, err)
	if len(last) != 1 || last[0].Kind != "ledger.accepted" || last[0].Actor != "ada (1000)" || last[0].Data["record_01"] == "" {
		t.Fatalf("the chain tells %+v", last)
	}
}

func TestWhatWasAcceptedIsKnownAndNoMore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := lived(t, path)
	_, err := l.files().write.ExecContext(t.Context(), "UPDATE events SET body = x'00' WHERE seq = 5")
	check(t, err)
	check(t, second(l.Accept(t.Context(), "root", "")))
	if r := sound(t, l); len(r.Notes) != 1 || !strings.Contains(r.Notes[0], "event 5") {
		t.Fatalf("notes %q", r.Notes)
	}
	events, err := l.Events(t.Context(), "p", 4, 0)
	check(t, err)
	if events[0].Kind != "ledger.damaged" {
		t.Fatalf("event 5 reads %+v", events[0])
	}
	_, err = l.files().write.ExecContext(t.Context(), "UPDATE events SET body = x'01' WHERE seq = 5")
	check(t, err)
	if got := faultsOf(t, l); !slices.Equal(got, []string{"event 5"}) {
		t.Fatalf("a new damage of an accepted record: %q", got)
	}
}

func TestASoundLedgerHasNothingToAccept(t *testing.T) {
	l := lived(t, filepath.Join(t.TempDir(), "ledger.db"))
	if _, err := l.Accept(t.Context(), "root", ""); !errors.Is(err, kiln.ErrConflict) {
		t.Fatal(err)
	}
}

// TestAPageThatIsLostLosesWhatWasOnIt overwrites pages.
func TestAPageThatIsLostLosesWhatWasOnIt(t *testing.T) {
	dir := t.TempDir()
	l := openAt(t, filepath.Join(dir, "whole.db"))
	live(t, l, "p", 3)
	for n := range 400 {
		check(t, l.Append(t.Context(), event("p", n)))
	}
	check(t, l.Close())
	whole, err := os.ReadFile(filepath.Join(dir, "whole.db"))
	check(t, err)
	pages := len(whole) / 4096
	for page := 2; page < pages; page += 1 + pages/few(30) {
		path := filepath.Join(dir, fmt.Sprintf("%d.db", page))
		raw := slices.Clone(whole)
		for i := range 4096 {
			raw[page*4096+i] = 0xa5
		}
		check(t, os.WriteFile(path, raw, 0o600))
		l, err := Open(t.Context(), path)
		check(t, err)
		report, err := l.Verify(t.Context(), "")
		check(t, err)
		if len(report.Faults) == 0 {
			_ = l.Close()
			continue // a free page
		}
		_, err = l.Accept(t.Context(), "root", report.Damage)
		if err != nil {
			t.Fatalf("page %d: %v: %v", page, report.Faults, err)
		}
		sound(t, l)
		check(t, l.Append(t.Context(), event("p", 1)))
		if _, err := l.Release(t.Context(), "p", 3); err != nil {
			t.Errorf("page %d: the live release is lost: %v: %v", page, report.Faults, err)
		}
		check(t, l.Close())
	}
}

func TestAnAcceptanceThatWasCutOffIsFinished(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := lived(t, path)
	_, err := l.files().write.ExecContext(t.Context(), "UPDATE events SET body = x'00' WHERE seq = 5")
	check(t, err)
	l.verifying <- struct{}{}
	found, err := l.inspect(t.Context(), "", func(time.Duration) {})
	check(t, err)
	<-l.verifying
	s := &salvage{from: l, actor: "ada (1000)", found: found}
	check(t, s.build(t.Context()))
	check(t, setAside(path))
	check(t, l.Close())
	check(t, os.WriteFile(path+"-wal", []byte("of the damaged file"), 0o600))
	accepted(t, openAt(t, path))
}
