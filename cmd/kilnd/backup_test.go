package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/backup"
	"github.com/kilnproject/kiln/internal/ledger"
	"github.com/kilnproject/kiln/internal/metrics"
	"github.com/kilnproject/kiln/internal/server"
	"github.com/kilnproject/kiln/internal/store"
)

// storing is as much of a control plane as a backup is made of.
func storing(t *testing.T) *plane {
	t.Helper()
	p := &plane{data: t.TempDir(), log: slog.New(slog.DiscardHandler), metrics: metrics.New(metrics.Options{})}
	var err error
	if p.ledger, err = ledger.Open(t.Context(), p.dir("ledger", "ledger.db")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.ledger.Close() })
	p.reserve = newReserve(p.dir("ledger", "reserve"), p.log)
	if err := claimMachine(t.Context(), p.ledger, machine{ID: "other", Host: "first"}, false); err != nil {
		t.Fatal(err)
	}
	if _, err := p.ledger.CreateRelease(t.Context(), kiln.Release{Environment: "production", State: kiln.ReleaseLive}); err != nil {
		t.Fatal(err)
	}
	if p.store, err = store.Open(p.dir("store")); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"one", "two"} {
		if _, _, err := p.store.Put(t.Context(), strings.NewReader(text), ""); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Mkdir(p.dir("api"), 0o700), os.WriteFile(p.dir("api", "authority.key"), []byte("key"), 0o600)); err != nil {
		t.Fatal(err)
	}
	return p
}

// during does something at the first write.
type during struct {
	bytes.Buffer
	do func()
}

func (d *during) Write(b []byte) (int, error) {
	if d.do != nil {
		do := d.do
		d.do = nil
		do()
	}
	return d.Buffer.Write(b)
}

// TestABackupIsNoUse: what goes first stays what was longest unused.
func TestABackupIsNoUse(t *testing.T) {
	p := storing(t)
	old := time.Now().Add(-24 * time.Hour)
	blobs, err := filepath.Glob(p.dir("store", "blobs", "sha256", "*"))
	if err != nil || len(blobs) != 2 {
		t.Fatalf("%v, %v", blobs, err)
	}
	for _, path := range blobs {
		if err := os.Chtimes(path, old, old); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.backup(t.Context(), "ann", server.BackupRequest{}, io.Discard); err != nil {
		t.Fatal(err)
	}
	for _, path := range blobs {
		if info, err := os.Stat(path); err != nil || time.Since(info.ModTime()) < time.Hour {
			t.Errorf("%s was used: %v, %v", path, info.ModTime(), err)
		}
	}
}

func TestNothingIsCollectedWhileItIsBackedUp(t *testing.T) {
	p := storing(t)
	out := &during{}
	out.do = func() {
		freed, err := p.store.Collect(t.Context(), store.Keep{Grace: 1})
		if err != nil || !freed.Deferred {
			t.Errorf("collected %+v, %v", freed, err)
		}
		if err := p.backup(t.Context(), "ann", server.BackupRequest{}, io.Discard); !errors.Is(err, kiln.ErrConflict) {
			t.Errorf("a second backup: %v", err)
		}
	}
	if err := p.backup(t.Context(), "ann", server.BackupRequest{}, out); err != nil || out.do != nil {
		t.Fatal(err)
	}
	if m, err := backup.Verify(t.Context(), out); err != nil || m.Keys() || len(m.Entries) != 4 {
		t.Errorf("%+v, %v", m, err)
	}
	if freed, err := p.store.Collect(t.Context(), store.Keep{Grace: 1}); err != nil || freed.Deferred || freed.Blobs != 2 {
		t.Errorf("afterwards: %+v, %v", freed, err)
	}
	if _, err := os.Stat(p.dir("ledger", backupFolder)); !os.IsNotExist(err) {
		t.Errorf("the copy is left: %v", err)
	}
	events, err := p.ledger.Events(t.Context(), "", 0, 1)
	if err != nil || events[0].Kind != "backup.began" || events[0].Actor != "ann" {
		t.Errorf("%+v, %v", events, err)
	}
}

// backedUp is a backup of that control plane, and an identity file for its keys.
func backedUp(t *testing.T, p *plane) (file []byte, identity string) {
	t.Helper()
	who, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	identity = filepath.Join(t.TempDir(), "identity")
	if err := os.WriteFile(identity, []byte(who.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := p.backup(t.Context(), "ann", server.BackupRequest{Recipients: []string{who.Recipient().String()}}, &out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), identity
}

func TestARestoredDirectoryIsThisMachines(t *testing.T) {
	file, identity := backedUp(t, storing(t))
	r := restore{dir: filepath.Join(t.TempDir(), "data"), identity: identity}
	result, err := r.run(t.Context(), bytes.NewReader(file))
	if err != nil || result.Host == "" || result.Releases != 1 || result.KeysLeft {
		t.Fatalf("%+v, %v", result, err)
	}
	if raw, err := os.ReadFile(filepath.Join(r.dir, "api", "authority.key")); err != nil || string(raw) != "key" {
		t.Errorf("key %q, %v", raw, err)
	}
	l, err := ledger.Open(t.Context(), filepath.Join(r.dir, "ledger", "ledger.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if err := claimMachine(t.Context(), l, thisMachine(), false); err != nil {
		t.Errorf("it is not this machine's: %v", err)
	}
	events, err := l.Events(t.Context(), "", 0, 1)
	if err != nil || events[0].Kind != "backup.restored" || events[0].Data["backup"] != string(result.Digest) || events[0].Actor == "" {
		t.Errorf("%+v, %v", events, err)
	}
	if _, err := r.run(t.Context(), bytes.NewReader(file)); !errors.Is(err, kiln.ErrConflict) {
		t.Errorf("a second time: %v", err)
	}
}

// TestARestoreThatFailsLeavesAnEmptyDirectory, whatever is wrong.
func TestARestoreThatFailsLeavesAnEmptyDirectory(t *testing.T) {
	p := storing(t)
	file, _ := backedUp(t, p)
	ended, stop := context.WithCancel(t.Context())
	stop()
	for name, c := range map[string]struct {
		ctx  context.Context
		file []byte
		code kiln.Code
	}{
		"cut":            {t.Context(), file[:len(file)-1], kiln.CodeInvalid},
		"ended":          {ended, file, ""},
		"damaged ledger": {t.Context(), of(t, p, func(raw []byte) []byte { return bytes.Replace(raw, []byte(`"number":1`), []byte(`"number":7`), 1) }), kiln.CodeInvalid},
		"no ledger":      {t.Context(), of(t, p, func([]byte) []byte { return bytes.Repeat([]byte("no ledger"), 1000) }), kiln.CodeInvalid},
	} {
		r := restore{dir: t.TempDir()}
		_, err := r.run(c.ctx, bytes.NewReader(c.file))
		var known *kiln.Error
		if err == nil || c.code != "" && (!errors.As(err, &known) || known.Code != c.code) {
			t.Errorf("%s: %v", name, err)
		}
		left, err := os.ReadDir(r.dir)
		if err != nil || len(left) != 1 || left[0].Name() != "kilnd.lock" {
			t.Errorf("%s: it left %v, %v", name, left, err)
		}
	}
	lock, err := lockData(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lock.Close() }()
	r := restore{dir: filepath.Dir(lock.Name())}
	if _, err := r.run(t.Context(), bytes.NewReader(file)); !errors.Is(err, kiln.ErrConflict) || !strings.Contains(err.Error(), "another kilnd") {
		t.Errorf("while a control plane runs: %v", err)
	}
}

// of is a backup whose ledger was changed before it was packed: all digests fit.
func of(t *testing.T, p *plane, change func([]byte) []byte) []byte {
	t.Helper()
	path, report, err := p.ledger.Copy(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	changed := change(bytes.Clone(raw))
	if bytes.Equal(raw, changed) {
		t.Fatal("nothing was changed")
	}
	if err := os.WriteFile(path, changed, 0o600); err != nil {
		t.Fatal(err)
	}
	s := backup.Source{Ledger: path, Tip: report.Tip, Open: p.store.Open}
	if err := p.gather(t.Context(), &s, false); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if _, err := backup.Write(t.Context(), &out, s); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}
