package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Reserve is a preallocated file that holds room on a disk for what must be
// written even when the disk is full: the ledger. Whoever gets "no space
// left" releases it, writes, and holds it again once there is room.
type Reserve struct {
	path string
	size int64
}

// NewReserve names the file and its size in bytes; it touches nothing.
func NewReserve(path string, size int64) *Reserve { return &Reserve{path, size} }

// Hold allocates the room. Held already, it does nothing. The error wraps
// syscall.ENOSPC when the disk has not that much left.
func (r *Reserve) Hold() error {
	if r.Held() {
		return nil
	}
	f, err := os.OpenFile(r.path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("hold reserve: %w", err)
	}
	err = unix.Fallocate(int(f.Fd()), 0, 0, r.size)
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = fillWithZeros(f, r.size)
	}
	err = errors.Join(err, f.Close())
	if err != nil {
		_ = os.Remove(r.path)
		return fmt.Errorf("hold reserve of %d bytes: %w", r.size, err)
	}
	return nil
}

// Held reports whether the room is allocated.
func (r *Reserve) Held() bool {
	var st unix.Stat_t
	err := unix.Lstat(r.path, &st)
	return err == nil && st.Size >= r.size && st.Blocks*512 >= r.size
}

// Free returns the bytes that the disk has left.
func (r *Reserve) Free() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(r.path), &st); err != nil {
		return 0, fmt.Errorf("ask for free disk: %w", err)
	}
	return int64(st.Bavail) * st.Bsize, nil // no disk is too large for that
}

// Release gives the room back. Not held, it does nothing.
func (r *Reserve) Release() error {
	if err := os.Remove(r.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("release reserve: %w", err)
	}
	return nil
}

// fillWithZeros allocates where the file system cannot do it by itself.
func fillWithZeros(f *os.File, size int64) error {
	zeros := make([]byte, 1<<20)
	for size > 0 {
		n, err := f.Write(zeros[:min(size, int64(len(zeros)))])
		if err != nil {
			return err
		}
		size -= int64(n)
	}
	return nil
}
