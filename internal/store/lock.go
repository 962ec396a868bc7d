package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
)

// Hold keeps Collect from removing anything until release is called, in this
// process or another. It is for work that finds blobs and names them later: a
// bake, an upload and the release that follows. It waits while a collection
// runs. The kernel drops it when the process dies.
func (s *Store) Hold(ctx context.Context) (release func(), err error) {
	f, err := s.lock(ctx, "gc.lock", unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	return sync.OnceFunc(func() { _ = f.Close() }), nil
}

// Pin keeps the named manifests or blobs and all that they refer to from
// being collected by this process until release is called.
func (s *Store) Pin(digests ...kiln.Digest) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range digests {
		s.pins[d]++
	}
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, d := range digests {
			if s.pins[d]--; s.pins[d] == 0 {
				delete(s.pins, d)
			}
		}
	})
}

func (s *Store) pinned() []kiln.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]kiln.Digest, 0, len(s.pins))
	for d := range s.pins {
		all = append(all, d)
	}
	return all
}

// lock takes a flock on a file of the store. Closing the file drops it.
func (s *Store) lock(ctx context.Context, name string, how int) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(s.dir, name), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock store: %w", err)
	}
	wait := time.Millisecond
	for {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			_ = f.Close()
			return nil, fmt.Errorf("lock store: %s: %w", name, err)
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, fmt.Errorf("lock store: %s: %w", name, ctx.Err())
		case <-time.After(wait):
			wait = min(2*wait, 50*time.Millisecond)
		}
	}
}

// tryLock is lock without waiting; it reports whether it got it.
func (s *Store) tryLock(name string, how int) (*os.File, bool, error) {
	f, err := os.OpenFile(filepath.Join(s.dir, name), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, false, fmt.Errorf("lock store: %w", err)
	}
	err = unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
	if err == nil {
		return f, true, nil
	}
	_ = f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, false, nil
	}
	return nil, false, fmt.Errorf("lock store: %s: %w", name, err)
}
