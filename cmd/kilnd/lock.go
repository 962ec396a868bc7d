package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
)

// lockData takes the data directory for this process until it ends. A second
// one is told who has it.
func lockData(dir string) (*os.File, error) {
	f, err := openLock(dir)
	if err != nil {
		return nil, unusable(dir, err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		holder, _ := io.ReadAll(io.LimitReader(f, 32))
		_ = f.Close()
		who := strings.TrimSpace(string(holder))
		return nil, kiln.Errorf(kiln.CodeConflict, "use the one that runs, end it with kill "+who+", or choose another directory with --data",
			"another kilnd has the data directory %s: process %s", dir, who)
	}
	if err == nil {
		err = note(f)
	}
	if err != nil {
		_ = f.Close()
		return nil, unusable(dir, err)
	}
	return f, nil
}

func openLock(dir string) (*os.File, error) {
	// Others pass through it: the gateway to its own folder, the group to the
	// socket. What is in it has modes of its own.
	if err := os.MkdirAll(dir, 0o711); err != nil { //nolint:gosec // see above
		return nil, err
	}
	if err := letPass(dir); err != nil {
		return nil, err
	}
	return os.OpenFile(filepath.Join(dir, "kilnd.lock"), os.O_CREATE|os.O_RDWR, 0o600)
}

// note writes down who has the lock. A disk without room for that holds nobody
// up: the lock is what counts.
func note(f *os.File) error {
	_, err := fmt.Fprintf(f, "%-20d\n", os.Getpid()) // as long as the number before
	if errors.Is(err, unix.ENOSPC) {
		return nil
	}
	return err
}

// letPass lets others pass through a folder that a narrow umask closed.
func letPass(dir string) error {
	info, err := os.Stat(dir)
	if err != nil || info.Mode()&0o111 == 0o111 {
		return err
	}
	return os.Chmod(dir, info.Mode().Perm()|0o111)
}

// unusable explains why a data directory cannot be written.
func unusable(dir string, err error) error {
	switch {
	case errors.Is(err, unix.EROFS):
		return kiln.Errorf(kiln.CodeUnavailable, "mount its disk for writing: mount -o remount,rw, after the kernel's log (dmesg) says why it is not; what runs goes on meanwhile",
			"the data directory %s is on a file system that is read-only: %w", dir, err)
	case full(err):
		return kiln.Errorf(kiln.CodeNoRoom, "free some space on its disk, or inodes; what runs goes on meanwhile", "the disk of the data directory %s is full: %w", dir, err)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return kiln.Errorf(kiln.CodeUnavailable, "run kilnd as root; if it is, look for lsattr's i, or a security module that forbids it",
			"the data directory %s may not be written: %w", dir, err)
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EISDIR):
		return kiln.Errorf(kiln.CodeInvalid, "--data names another directory", "%s is no data directory: %w", dir, err)
	}
	return fmt.Errorf("take the data directory %s: %w", dir, err)
}
