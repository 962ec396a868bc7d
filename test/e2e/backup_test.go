package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/backup"
	"github.com/kilnproject/kiln/internal/control"
	"github.com/kilnproject/kiln/test/rig"
)

// TestABackupServesElsewhere backs up what runs, restores it into another data
// directory, and wants the same release there, with its history and its keys.
func TestABackupServesElsewhere(t *testing.T) {
	r := newRig(t)
	for _, version := range []string{"v1", "v2"} {
		r.Write("kiln.hcl", one(version, 2, ""))
		r.Kiln("up")
	}
	authority := filepath.Join("api", "authority.key")
	if err := os.MkdirAll(filepath.Join(r.Data, "api"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(r.Data, authority), []byte("a key"), 0o600); err != nil {
		t.Fatal(err)
	}
	who, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	identity, file := filepath.Join(r.Work, "identity"), filepath.Join(r.Work, "b.kiln")
	if err := os.WriteFile(identity, []byte(who.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var made struct {
		Digest kiln.Digest
		Keys   bool
	}
	r.JSON(&made, "backup", file, "--recipient", who.Recipient().String())
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 || !made.Keys {
		t.Fatalf("%+v, %v", made, err)
	}
	if left, _ := filepath.Glob(file + ".*"); len(left) > 0 {
		t.Errorf("it left %v", left)
	}
	if said, code := r.Refused("restore", file); code != 5 || !strings.Contains(said, "another kilnd") {
		t.Errorf("restore over what runs: exit %d: %s", code, said)
	}
	s := emptied(t)
	refuseChanged(t, s, file)
	var restored backup.Restored
	s.JSON(&restored, "restore", file, "--identity", identity, "--digest", string(made.Digest))
	if restored.Digest != made.Digest || restored.Releases != 2 || restored.KeysLeft {
		t.Errorf("%+v", restored)
	}
	if raw, err := os.ReadFile(filepath.Join(s.Data, authority)); err != nil || string(raw) != "a key" {
		t.Errorf("key %q, %v", raw, err)
	}
	s.Start()
	wantServed(t, s, 2, "v2")
	var report kiln.LedgerReport
	s.JSON(&report, "ledger", "verify")
	if len(report.Faults) > 0 {
		t.Errorf("ledger: %+v", report)
	}
	if events := s.Kiln("events", "--last", "0"); !strings.Contains(events, "backup.began") || !strings.Contains(events, "backup.restored") {
		t.Errorf("the history does not tell of it:\n%s", events)
	}
	if said, code := s.Refused("restore", file); code != 5 {
		t.Errorf("restore into a full directory: exit %d: %s", code, said)
	}
	s.Kiln("rollback")
	wantServed(t, s, 1, "v1")
	wantServed(t, r, 2, "v2")
}

// emptied is a rig without a control plane, whose data directory is empty.
func emptied(t *testing.T) *rig.Rig {
	t.Helper()
	s := newRig(t)
	s.Kiln("shutdown", "--yes")
	s.StopDaemon()
	if err := errors.Join(os.RemoveAll(s.Data), os.Mkdir(s.Data, 0o700)); err != nil {
		t.Fatal(err)
	}
	return s
}

// refuseChanged restores backups that were changed, or end too early.
func refuseChanged(t *testing.T, s *rig.Rig, file string) {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	changed := append([]byte{}, raw...)
	changed[len(raw)/2] ^= 1
	for what, content := range map[string][]byte{"changed": changed, "cut": raw[:len(raw)*9/10]} {
		path := file + "." + what
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if said, code := s.Refused("restore", path); code != 3 || !strings.Contains(said, "the backup is damaged or was changed") {
			t.Errorf("%s: exit %d: %s", what, code, said)
		}
		if left, err := os.ReadDir(s.Data); err != nil || len(left) != 1 || left[0].Name() != "kilnd.lock" {
			t.Errorf("%s: it left %v, %v", what, left, err)
		}
	}
}

// wantServed waits until a release is live and answers.
func wantServed(t *testing.T, r *rig.Rig, release int, version string) {
	t.Helper()
	r.Eventually(time.Minute, "the release is live", func() error {
		var s control.Status
		r.JSON(&s, "status")
		if len(s.Environments) != 1 || s.Environments[0].Live == nil || s.Environments[0].Live.Number != release {
			return errors.New("not yet")
		}
		if status, h, _ := r.Get("web.test", "/"); status != 200 || h.Get("Version") != version {
			return errors.New("it does not answer yet")
		}
		return nil
	})
}
