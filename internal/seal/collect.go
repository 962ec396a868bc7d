package seal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/kilnproject/kiln"
)

// Collect unmounts and removes all seals but those to keep and those that are
// being made, and returns the bytes that were freed. Instances that still run
// on a seal that goes keep it until they end; its room is free only then.
func (s *Sealer) Collect(ctx context.Context, keep []Key) (int64, error) {
	keys, err := s.keys()
	if err != nil {
		return 0, fmt.Errorf("collect seals: %w", err)
	}
	var freed int64
	var errs []error
	for _, key := range keys {
		if slices.Contains(keep, key) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return freed, errors.Join(append(errs, err)...)
		}
		n, err := s.remove(ctx, key)
		freed += n
		errs = append(errs, err)
	}
	return freed, errors.Join(errs...)
}

// remove removes a seal unless someone works on it.
func (s *Sealer) remove(ctx context.Context, key Key) (int64, error) {
	var size int64
	s.mu.Lock()
	if _, busy := s.flights[key]; busy || s.closed {
		s.mu.Unlock()
		return 0, nil
	}
	f := s.start(key, func(context.Context) (Root, error) {
		if info, err := os.Lstat(s.imagePath(key)); err == nil {
			size = onDisk(info)
		}
		return Root{}, s.discard(key)
	})
	f.removal = true
	f.waiters++
	s.mu.Unlock()
	if err := s.wait(ctx, f); err != nil {
		return 0, err
	}
	if f.err != nil {
		return 0, f.err
	}
	return size, nil
}

// discard removes all traces of a seal: the mount, then the record, so that
// what is left after a kill is swept by New, then the file.
func (s *Sealer) discard(key Key) error {
	if err := s.unmount(key); err != nil {
		return err
	}
	for _, p := range []string{s.mountRecordPath(key), s.recordPath(key), s.mountDir(key)} {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove seal: %w", err)
		}
	}
	return removeProtected(s.imagePath(key))
}

// Unmount unmounts a seal and keeps its file. The next Root verifies the file
// and mounts it again.
func (s *Sealer) Unmount(_ context.Context, key Key) error {
	if err := checkKey(key); err != nil {
		return err
	}
	return s.unmount(key)
}

// UnmountAll unmounts every seal of the folder, for when nothing runs any more,
// and lets go of the files: whoever owns the folder may remove it now. The next
// Root of one verifies and protects it again.
func (s *Sealer) UnmountAll(ctx context.Context) error {
	keys, err := s.keys()
	if err != nil {
		return fmt.Errorf("unmount seals: %w", err)
	}
	var errs []error
	for _, key := range keys {
		if err := s.Unmount(ctx, key); err != nil {
			errs = append(errs, err)
			continue
		}
		if err := unprotect(s.imagePath(key)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("let go of seal: %w", err))
		}
	}
	return errors.Join(errs...)
}

// onDisk is the room that a file takes. A sealed file has holes where its
// image's files have zeros, so it may be far less than its size.
func onDisk(info fs.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return info.Size()
}

// Usage returns the bytes that all sealed files take on the disk.
func (s *Sealer) Usage() (int64, error) {
	entries, err := os.ReadDir(s.opt.Dir)
	if err != nil {
		return 0, fmt.Errorf("measure seals: %w", err)
	}
	var total int64
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			total += onDisk(info)
		}
	}
	return total, nil
}

// Keys lists the seals of any of the images, whatever their mount points: what
// Collect keeps for them. One whose record cannot be read is left out.
func (s *Sealer) Keys(images []kiln.Digest) ([]Key, error) {
	all, err := s.keys()
	if err != nil {
		return nil, fmt.Errorf("list seals: %w", err)
	}
	return slices.DeleteFunc(all, func(key Key) bool {
		r, _, _, err := s.read(key)
		return err != nil || !slices.Contains(images, r.Image)
	}), nil
}

// keys lists the seals that have a file, a record or a mount, sorted.
func (s *Sealer) keys() ([]Key, error) {
	var keys []Key
	for _, dir := range []string{s.opt.Dir, s.opt.MountDir} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			key, _, _ := strings.Cut(filepath.Base(e.Name()), ".")
			if checkKey(Key(key)) == nil {
				keys = append(keys, Key(key))
			}
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys), nil
}

// checkKey keeps a key from being a path.
func checkKey(key Key) error {
	if _, err := kiln.ParseDigest("sha256:" + string(key)); err != nil {
		return kiln.Errorf(kiln.CodeInvalid, "", "%q is not the key of a seal", key)
	}
	return nil
}
