package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
)

// lockData takes the data directory for this process until it ends. A second
// one is told who has it.
func lockData(dir string) (*os.File, error) {
	// Others pass through it: the gateway to its own folder, the group to the
	// socket. What is in it has modes of its own.
	if err := os.MkdirAll(dir, 0o711); err != nil { //nolint:gosec // see above
		return nil, fmt.Errorf("make the data directory: %w", err)
	}
	if err := letPass(dir); err != nil {
		return nil, fmt.Errorf("open the data directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "kilnd.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the data directory: %w", err)
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
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	return f, nil
}

// letPass lets others pass through a folder that a narrow umask closed.
func letPass(dir string) error {
	info, err := os.Stat(dir)
	if err != nil || info.Mode()&0o111 == 0o111 {
		return err
	}
	return os.Chmod(dir, info.Mode().Perm()|0o111)
}
