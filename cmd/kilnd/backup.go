package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/backup"
	"github.com/kilnproject/kiln/internal/config"
	"github.com/kilnproject/kiln/internal/server"
)

// backup writes a backup, one at a time. What it names stays in the store until
// it is written.
func (p *plane) backup(ctx context.Context, actor string, request server.BackupRequest, w io.Writer) error {
	if !p.backingUp.TryLock() {
		return kiln.Errorf(kiln.CodeConflict, "wait for its end", "another backup is being made")
	}
	defer p.backingUp.Unlock()
	recipients, err := backup.ParseRecipients(request.Recipients)
	if err != nil {
		return err
	}
	release, err := p.store.Hold(ctx)
	if err != nil {
		return err
	}
	defer release()
	source := backup.Source{Version: version, Host: thisMachine().Host, At: time.Now(), Recipients: recipients, Open: p.store.Peek}
	if err := p.noteBackup(ctx, actor, request, len(recipients)); err != nil {
		return err
	}
	dir, err := p.emptyCopy()
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	copied, report, err := p.ledger.Copy(ctx, dir)
	if err != nil {
		return err
	}
	source.Ledger, source.Tip = copied, report.Tip
	if err := p.gather(ctx, &source, request.Store == server.StoreReference); err != nil {
		return err
	}
	m, err := backup.Write(ctx, w, source)
	if err == nil {
		p.log.InfoContext(ctx, "a backup was made", "actor", actor, "digest", m.Digest(), "bytes", m.Size(), "keys", m.Keys())
	}
	return err
}

// noteBackup puts it into the history before it is copied.
func (p *plane) noteBackup(ctx context.Context, actor string, request server.BackupRequest, recipients int) error {
	keys := "without keys"
	if recipients > 0 {
		keys = "with keys, encrypted"
	}
	err := p.record(ctx, kiln.Event{
		Kind: "backup.began", Subject: "kilnd", Message: "a backup was asked for, " + keys, Actor: actor,
		Data: map[string]string{"store": request.Store, "recipients": fmt.Sprint(recipients)},
	})
	if err != nil {
		return fmt.Errorf("record the backup: %w", err)
	}
	return nil
}

// backupFolder is where in the ledger's folder the copy for a backup is.
const backupFolder = "backup"

// emptyCopy makes the folder that the ledger is copied into. What an earlier
// backup left, whose process was killed, is removed.
func (p *plane) emptyCopy() (string, error) {
	dir := p.dir("ledger", backupFolder)
	if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700)); err != nil {
		return "", unusable(p.data, err)
	}
	return dir, nil
}

// gather reads what is small, and lists the rest.
func (p *plane) gather(ctx context.Context, s *backup.Source, byReference bool) error {
	blobs, index, err := p.store.List(ctx)
	if err != nil {
		return err
	}
	s.Index = index
	for _, b := range blobs {
		if one := (backup.Blob{Digest: b.Digest, Size: b.Size}); byReference && !b.Bundle {
			s.References = append(s.References, one)
		} else {
			s.Blobs = append(s.Blobs, one)
		}
	}
	if s.Keys, err = backup.ReadKeys(p.data); err != nil {
		return err
	}
	s.Config, err = os.ReadFile(p.dir(config.FileName))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
