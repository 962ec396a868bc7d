package bake

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/kilnproject/kiln"
	"golang.org/x/sys/unix"
)

// lockDir takes the folder for this process. The kernel drops the lock when
// the process dies.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the baker's folder: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder := make([]byte, 32)
		n, _ := f.ReadAt(holder, 0)
		_ = f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock the baker's folder: %w", err)
		}
		return nil, kiln.Errorf(kiln.CodeConflict, "Stop that process, or use another data directory.",
			"%s is in use by process %s", dir, strings.TrimSpace(string(holder[:n])))
	}
	if err := f.Truncate(0); err == nil {
		_, err = f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("lock the baker's folder: %w", err), f.Close())
		}
	}
	return f, nil
}

// diskUsage sums the allocated bytes below dir. A file with several names
// counts once. Mounts below it are not entered.
func diskUsage(ctx context.Context, dir string) (int64, error) {
	var root syscall.Stat_t
	if err := syscall.Stat(dir, &root); err != nil {
		return 0, fmt.Errorf("measure %s: %w", dir, err)
	}
	seen := map[uint64]bool{} // inodes that have several names
	var sum int64
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return skipGone(err)
		}
		info, err := d.Info()
		if err != nil {
			return skipGone(err)
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		switch {
		case !ok:
		case st.Dev != root.Dev && d.IsDir():
			return fs.SkipDir
		case st.Dev == root.Dev && !seen[st.Ino]:
			if st.Nlink > 1 && !d.IsDir() {
				seen[st.Ino] = true
			}
			sum += st.Blocks * 512
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("measure %s: %w", dir, err)
	}
	return sum, nil
}

// skipGone forgives what vanished while it was measured.
func skipGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
