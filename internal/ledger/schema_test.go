package ledger

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
)

// written unpacks a ledger that an older version of this package wrote.
func written(t *testing.T, schema int) (path string) {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", fmt.Sprintf("schema-%d.db.gz", schema)))
	check(t, err)
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(f)
	check(t, err)
	raw, err := io.ReadAll(z)
	check(t, err)
	path = filepath.Join(t.TempDir(), "ledger.db")
	check(t, os.WriteFile(path, raw, 0o600))
	return path
}

func TestLedgersOfOlderSchemasAreReadAndGoOn(t *testing.T) {
	for schema, entries := range map[int]int64{1: 57, 2: 30} {
		t.Run(fmt.Sprint(schema), func(t *testing.T) {
			path := written(t, schema)
			l := openAt(t, path)
			report := sound(t, l)
			if report.Events < entries || report.Rows < 6+6+12+1 {
				t.Fatalf("%+v", report)
			}
			events, err := l.Events(t.Context(), "staging", 0, 1)
			check(t, err)
			if len(events) != 1 || events[0].Kind != "instance.ready" || events[0].Sequence != 57 || events[0].Environment != "staging" {
				t.Fatalf("the last event %+v", events)
			}
			for name, want := range map[string]string{"production": "retired parked live", "staging": "parked live pending"} {
				releases, err := l.Releases(t.Context(), name)
				check(t, err)
				var states []string
				for _, r := range releases {
					states = append(states, string(r.State))
					if r.Services[0].Template.Config.Env["VERSION"] != fmt.Sprint(r.Number) {
						t.Errorf("release %+v", r)
					}
				}
				if got := strings.Join(states, " "); got != want {
					t.Errorf("%s: %s", name, got)
				}
				if schema == 2 && releases[1].LiveAt.IsZero() {
					t.Error("nobody knows when it went live")
				}
			}
			open, err := l.Unfinished(t.Context())
			check(t, err)
			alive, err := l.Alive(t.Context())
			check(t, err)
			if len(open) != 1 || open[0].Step != "ready" || len(alive) != 4 {
				t.Fatalf("unfinished %+v, %d alive", open, len(alive))
			}
			if v, err := l.Setting(t.Context(), "colour"); err != nil || string(v) != "blue" {
				t.Fatalf("setting %q, %v", v, err)
			}
			r, err := l.CreateRelease(t.Context(), kiln.Release{Environment: "production", State: kiln.ReleasePending})
			check(t, err)
			if r.Number != 4 {
				t.Fatalf("the next release is %d", r.Number)
			}
			check(t, l.Commit(t.Context(), kiln.Record{Marks: []kiln.ReleaseMark{{Environment: "production", Number: 2, State: kiln.ReleaseRetired}}}))
			check(t, l.Prune(t.Context(), 5))
			sound(t, l)
			if !exists(fmt.Sprintf("%s.schema-%d", path, schema)) {
				t.Error("there is no copy from before")
			}
		})
	}
}

func TestDamageFromBeforeAMigrationIsFoundAfterIt(t *testing.T) {
	path := written(t, 2)
	flip(t, path, `{"environment":"production","number":2`)
	l := openAt(t, path)
	if got := faultsOf(t, l); len(got) != 1 || got[0] != "release 2 of production" {
		t.Fatalf("faults %q", got)
	}
	if err := l.Append(t.Context(), event("p", 1)); !isRefusal(err) {
		t.Fatal(err)
	}
	check(t, second(l.Accept(t.Context(), "root", "")))
	sound(t, l)
}

func TestAMigrationCopiesAndADowngradeIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := openAt(t, path)
	check(t, l.Append(t.Context(), event("p", 1)))
	check(t, l.Close())
	newer := standard()
	newer.steps = append(newer.steps, migration{script: "CREATE TABLE more (x INTEGER) STRICT"})
	check(t, os.WriteFile(l.copyPath(2), nil, 0o600))
	check(t, os.WriteFile(l.copyPath(3)+".tmp", []byte("half a copy"), 0o600))
	l, err := open(t.Context(), path, newer)
	check(t, err)
	sound(t, l)
	check(t, l.Close())
	if exists(l.copyPath(2)) || exists(l.copyPath(3)+".tmp") {
		t.Error("older copies are kept")
	}
	_, err = Open(t.Context(), path)
	var refused *kiln.Error
	if !errors.As(err, &refused) || refused.Code != kiln.CodeRefused || !strings.Contains(refused.Hint, l.copyPath(3)) {
		t.Fatalf("an older program opened it: %v", err)
	}
	old := openAt(t, l.copyPath(3))
	if r := sound(t, old); r.Events != 1 {
		t.Fatalf("the copy has %d events", r.Events)
	}
	bad := newer
	bad.steps = append(bad.steps[:4:4], migration{script: "CREATE TABLE even (x INTEGER) STRICT; CREATE TABLE more (x INTEGER)"})
	if l, err := open(t.Context(), path, bad); err == nil && len(l.Damage()) == 0 {
		t.Fatal("a migration that failed was taken")
	}
	l, err = open(t.Context(), path, newer)
	check(t, err)
	sound(t, l)
	check(t, l.Close())
}

func TestACopyThatFailsIsNoMigration(t *testing.T) {
	path := written(t, 2)
	check(t, os.MkdirAll(path+".schema-2.tmp/in the way", 0o700))
	if _, err := Open(t.Context(), path); err == nil {
		t.Fatal("it was migrated without a copy")
	}
	check(t, os.RemoveAll(path+".schema-2.tmp"))
	sound(t, openAt(t, path))
}

// TestAMigrationNeedsRoom has a disk on which a copy does not fit.
func TestAMigrationNeedsRoom(t *testing.T) {
	if os.Geteuid() != 0 || os.Getenv("KILN_TEST_ROOT") != "1" {
		t.Skip("needs root and KILN_TEST_ROOT=1: `make test` as root sets it")
	}
	dir := t.TempDir()
	check(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"))
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	raw, err := os.ReadFile(written(t, 2))
	check(t, err)
	path := filepath.Join(dir, "ledger.db")
	check(t, os.WriteFile(path, raw, 0o600))
	if _, err := Open(t.Context(), path); !errors.Is(err, kiln.ErrNoRoom) {
		t.Fatalf("open: %v", err)
	}
	now, err := os.ReadFile(path)
	check(t, err)
	if !bytes.Equal(now, raw) {
		t.Fatal("the ledger was changed")
	}
	check(t, unix.Mount("", dir, "", unix.MS_REMOUNT, "size=64m"))
	l, err := Open(t.Context(), path)
	check(t, err)
	sound(t, l)
	check(t, l.Close())
}
