package ledger

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
)

const (
	// copySlack is left free on a disk beside a copy of the ledger.
	copySlack = 16 << 20
	// copyKept is how long the copy from before a migration stays.
	copyKept = 30 * 24 * time.Hour
)

// copyPath is where the ledger is copied to before it leaves a schema.
func (l *Ledger) copyPath(schema int) string { return fmt.Sprintf("%s.schema-%d", l.path, schema) }

// copyBefore copies the file before it leaves a schema. Nobody writes to it.
func (l *Ledger) copyBefore(ctx context.Context, schema int) error {
	var busy, pages, done int
	if err := l.files().write.QueryRowContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)").Scan(&busy, &pages, &done); err != nil {
		return err
	}
	if busy != 0 {
		return kiln.Errorf(kiln.CodeConflict, "end what has it open", "the ledger %s is in use", l.path)
	}
	if err := copyFile(l.path, l.copyPath(schema)); err != nil {
		return fmt.Errorf("copy the ledger before its schema changes: %w", err)
	}
	return nil
}

// copyFile copies a file; an older copy is replaced at the end.
func copyFile(from, to string) error {
	if err := roomFor(from, filepath.Dir(to)); err != nil {
		return err
	}
	temporary := to + ".tmp"
	err := copyTo(from, temporary)
	if err == nil {
		err = os.Rename(temporary, to)
	}
	if err != nil {
		return errors.Join(noRoom(err), remove(temporary))
	}
	return syncPath(filepath.Dir(to))
}

func copyTo(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err == nil {
		err = out.Sync()
	}
	return errors.Join(err, out.Close())
}

// roomFor refuses a copy that the disk has no room for.
func roomFor(file, dir string) error {
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return err
	}
	if free := int64(st.Bavail) * st.Bsize; free < info.Size()+copySlack {
		return noRoom(fmt.Errorf("%d MiB are free and %d are needed: %w", free>>20, (info.Size()+copySlack)>>20, syscall.ENOSPC))
	}
	return nil
}

// noRoom says what mends a full disk.
func noRoom(err error) error {
	if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) {
		return err
	}
	return kiln.Errorf(kiln.CodeNoRoom, "free some space on the disk of the data directory", "the disk is full: %w", err)
}

// remove removes a file, if it is there.
func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// forgetCopies removes the copies from before schemas older than one.
func (l *Ledger) forgetCopies(schema int) error {
	for n := 1; n < schema; n++ {
		if err := remove(l.copyPath(n)); err != nil {
			return fmt.Errorf("remove an old copy: %w", err)
		}
	}
	return nil
}

// ageCopies removes copies and damaged files that have been kept long enough.
func (l *Ledger) ageCopies(now time.Time) error {
	found, err := filepath.Glob(l.path + ".schema-*")
	if err != nil {
		return err
	}
	for _, path := range append(found, l.path+asideSuffix, l.path+asideSuffix+"-wal") {
		info, err := os.Lstat(path)
		if err != nil || now.Sub(info.ModTime()) < copyKept {
			continue
		}
		if err := remove(path); err != nil {
			return err
		}
	}
	return nil
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
