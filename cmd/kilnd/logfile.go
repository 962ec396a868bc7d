package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"syscall"
	"time"
)

const (
	// logBytes bounds each of kilnd.log and keep.log; as much is kept of what
	// was before, beside it.
	logBytes = 16 << 20
	logEvery = time.Minute
)

// boundLogs keeps log files within their bound until ctx ends.
func boundLogs(ctx context.Context, log *slog.Logger, every time.Duration, paths ...string) error {
	for ctx.Err() == nil {
		for _, path := range paths {
			if err := cut(path, logBytes); err != nil {
				log.Warn("the log is not bounded", "error", err)
			}
		}
		pause(ctx, every)
	}
	return nil
}

// cut moves what a log file holds to the same name with ".1", when it is more
// than most bytes. Its writers, some of them other processes, keep it open and
// append; so it is emptied, not replaced. What they write in the moment between
// may be lost, as is what a full disk has no room to keep.
func cut(path string, most int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("bound log: %w", err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("bound log: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() <= most {
		return nil
	}
	err = keepNewest(f, info.Size()-most, path+".1")
	if err != nil && !errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("bound log: %w", err)
	}
	if err := f.Truncate(0); err != nil {
		return fmt.Errorf("bound log: %w", err)
	}
	return nil
}

// keepNewest copies a file from an offset on to another name.
func keepNewest(f *os.File, offset int64, name string) error {
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return err
	}
	out, err := os.OpenFile(name+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, f)
	if err = errors.Join(err, out.Close()); err == nil {
		err = os.Rename(out.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(out.Name()))
	}
	return nil
}
