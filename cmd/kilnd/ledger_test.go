package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/cli"
	"github.com/kilnproject/kiln/internal/ledger"
)

func openLedger(t *testing.T, dir string) *ledger.Ledger {
	t.Helper()
	l, err := ledger.Open(t.Context(), filepath.Join(dir, "ledger", "ledger.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func TestADataDirectoryOfAnotherMachineIsRefused(t *testing.T) {
	l := openLedger(t, t.TempDir())
	here, there := machine{ID: "1", Host: "here"}, machine{ID: "2", Host: "there"}
	claim := func(m machine, adopt bool) error { return claimMachine(t.Context(), l, m, adopt) }
	for _, m := range []machine{there, there, {ID: "2", Host: "renamed"}, {Host: "without an ID"}} {
		if err := claim(m, false); err != nil {
			t.Fatalf("%+v: %v", m, err)
		}
	}
	err := claim(here, false)
	var speech bytes.Buffer
	if code := cli.Explain(&speech, err); code != cli.ExitRefused || !strings.Contains(speech.String(), "another machine, renamed") || !strings.Contains(speech.String(), "kiln ledger adopt") {
		t.Fatalf("exit %d: %s", code, &speech)
	}
	if err := claim(here, true); err != nil {
		t.Fatal(err)
	}
	if err := claim(here, false); err != nil {
		t.Fatal(err)
	}
	events, err := l.Events(t.Context(), "", 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for _, e := range events {
		kinds = append(kinds, e.Kind)
	}
	if got := strings.Join(kinds, " "); got != "machine.recorded machine.renamed machine.adopted" {
		t.Errorf("history %s", got)
	}
}

func TestThisMachineHasAnIDOfItsOwn(t *testing.T) {
	raw, err := os.ReadFile("/etc/machine-id")
	if err != nil {
		t.Skip("no machine-id(5)")
	}
	if m := thisMachine(); m.ID == "" || strings.Contains(string(raw), m.ID) || m != thisMachine() {
		t.Errorf("%+v", m)
	}
}

// ledgerCommand runs "kilnd ledger".
func ledgerCommand(t *testing.T, dir string, args ...string) (code int, report kiln.LedgerReport, speech string) {
	t.Helper()
	var out, said bytes.Buffer
	code = runLedger(t.Context(), append(args, "--data", dir), &out, &said)
	if code == 0 {
		if err := json.Unmarshal(out.Bytes(), &report); err != nil {
			t.Fatalf("%v: %s", err, &out)
		}
	}
	return code, report, said.String()
}

func TestTheLedgerIsCheckedAndAcceptedWithoutAControlPlane(t *testing.T) {
	dir := t.TempDir()
	if code, _, speech := ledgerCommand(t, dir, "verify"); code != cli.ExitNotFound {
		t.Errorf("no ledger: exit %d: %s", code, speech)
	}
	l := openLedger(t, dir)
	for range 5 {
		if err := l.Append(context.Background(), kiln.Event{Kind: "test.written", Subject: "something", Message: "a word"}); err != nil {
			t.Fatal(err)
		}
	}
	_ = l.Close()
	code, report, _ := ledgerCommand(t, dir, "verify")
	if code != 0 || report.Events != 5 || len(report.Faults) > 0 {
		t.Fatalf("exit %d: %+v", code, report)
	}
	if code, report, _ := ledgerCommand(t, dir, "verify", "--tip", report.Tip); code != 0 || len(report.Faults) > 0 {
		t.Errorf("its own tip: exit %d: %+v", code, report)
	}
	if code, _, speech := ledgerCommand(t, dir, "accept"); code != cli.ExitConflict {
		t.Errorf("a sound ledger was accepted: exit %d: %s", code, speech)
	}
	path := filepath.Join(dir, "ledger", "ledger.db")
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, bytes.Replace(raw, []byte("a word"), []byte("a lord"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	code, report, _ = ledgerCommand(t, dir, "verify")
	if code != 0 || len(report.Faults) != 1 || report.Damage == "" {
		t.Fatalf("exit %d: %+v", code, report)
	}
	if code, _, speech := ledgerCommand(t, dir, "accept", "--damage", string(kiln.DigestOf(nil))); code != cli.ExitConflict {
		t.Errorf("another damage: exit %d: %s", code, speech)
	}
	if code, _, speech := ledgerCommand(t, dir, "accept", "--damage", string(report.Damage)); code != 0 {
		t.Fatalf("exit %d: %s", code, speech)
	}
	if code, report, _ := ledgerCommand(t, dir, "verify"); code != 0 || len(report.Faults) > 0 || len(report.Notes) != 1 {
		t.Errorf("afterwards: exit %d: %+v", code, report)
	}
	lock, err := lockData(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lock.Close() }()
	for _, command := range []string{"verify", "accept", "adopt"} {
		if code, _, speech := ledgerCommand(t, dir, command); code != cli.ExitConflict {
			t.Errorf("%s beside a control plane: exit %d: %s", command, code, speech)
		}
	}
	if code, _, _ := ledgerCommand(t, dir); code != cli.ExitInvalid {
		t.Errorf("no command: exit %d", code)
	}
}

// TestWhatCannotBeUsedIsSaidInWords tries data directories that are of no use.
func TestWhatCannotBeUsedIsSaidInWords(t *testing.T) {
	if os.Geteuid() != 0 || os.Getenv("KILN_TEST_ROOT") != "1" {
		t.Skip("needs root and KILN_TEST_ROOT=1: `make test` as root sets it")
	}
	mount := func(t *testing.T, options string) string {
		t.Helper()
		dir := t.TempDir()
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
		return dir
	}
	for name, c := range map[string]struct {
		dir  func(t *testing.T) string
		code kiln.Code
		word string
	}{
		"a file": {func(t *testing.T) string {
			path := filepath.Join(t.TempDir(), "data")
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			return path
		}, kiln.CodeInvalid, "--data"},
		"read-only": {func(t *testing.T) string {
			dir := mount(t, "size=1m")
			if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
				t.Fatal(err)
			}
			return dir
		}, kiln.CodeUnavailable, "remount,rw"},
		"full": {func(t *testing.T) string {
			dir := mount(t, "size=64k,nr_inodes=10")
			for n := range 20 {
				_ = os.WriteFile(filepath.Join(dir, string(rune('a'+n))), make([]byte, 16<<10), 0o600)
			}
			return dir
		}, kiln.CodeNoRoom, "free some space"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := c.dir(t)
			_, err := lockData(dir)
			if err == nil {
				_, err = ledger.Open(t.Context(), filepath.Join(dir, "ledger", "ledger.db"))
			}
			var known *kiln.Error
			if !errors.As(err, &known) || known.Code != c.code || !strings.Contains(known.Hint, c.word) {
				t.Fatalf("%v: %+v", err, known)
			}
		})
	}
}

// TestAFullDiskLosesNothing fills the disk of a ledger and makes room again.
func TestAFullDiskLosesNothing(t *testing.T) {
	if os.Geteuid() != 0 || os.Getenv("KILN_TEST_ROOT") != "1" {
		t.Skip("needs root and KILN_TEST_ROOT=1: `make test` as root sets it")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	l := openLedger(t, dir)
	t.Cleanup(func() { _ = l.Close() }) // before the disk goes
	acknowledged := 0
	write := func() error {
		return l.Append(t.Context(), kiln.Event{Kind: "test.written", Subject: "x", Message: strings.Repeat("y", 2000)})
	}
	var err error
	for err = write(); err == nil; err = write() {
		acknowledged++
	}
	if !errors.Is(err, kiln.ErrNoRoom) || acknowledged < 100 {
		t.Fatalf("after %d events: %v", acknowledged, err)
	}
	if len(l.Damage()) > 0 {
		t.Fatalf("a full disk is no damage: %v", l.Damage())
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size=16m"); err != nil {
		t.Fatal(err)
	}
	if err := write(); err != nil {
		t.Fatal(err)
	}
	report, err := l.Verify(t.Context(), "")
	if err != nil || report.Events != int64(acknowledged)+1 || len(report.Faults) > 0 {
		t.Fatalf("%d were acknowledged: %+v, %v", acknowledged+1, report, err)
	}
}
