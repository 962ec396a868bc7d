package seal

import (
	"context"
	"crypto/sha256"
	"io"
	"os"
	"sync"
	"syscall"

	"github.com/kilnproject/kiln"
)

// knownLayers remembers which files had the digest of their name, so that a
// base is hashed once, not once for every image on it. A file that was written
// to since has another ctime, which nobody can set back. A nil one remembers
// nothing.
type knownLayers struct {
	mu    sync.Mutex
	files map[kiln.Digest]fileState
}

// fileState tells one state of a file from any other.
type fileState struct {
	dev, ino     uint64
	size         int64
	mtime, ctime syscall.Timespec
}

// mostKnown bounds the memory; beyond it the files are hashed again.
const mostKnown = 10_000

func stateOf(f *os.File) (fileState, bool) {
	info, err := f.Stat()
	if err != nil {
		return fileState{}, false
	}
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fileState{}, false
	}
	return fileState{dev: s.Dev, ino: s.Ino, size: s.Size, mtime: s.Mtim, ctime: s.Ctim}, true
}

// plainSum is the digest of a plain layer, taken in a goroutine of its own.
type plainSum struct {
	done   chan struct{}
	cancel context.CancelFunc
	digest kiln.Digest // with err set before done is closed
	err    error
}

// sum begins to hash a layer's file, or knows its digest already. The caller
// stops it before the file is closed; it ends with ctx, too.
func (k *knownLayers) sum(ctx context.Context, f *os.File, name kiln.Digest) *plainSum {
	ctx, cancel := context.WithCancel(ctx)
	s := &plainSum{done: make(chan struct{}), cancel: cancel}
	before, ok := stateOf(f)
	if ok && k.has(name, before) {
		s.digest = name
		close(s.done)
		return s
	}
	go func() {
		defer close(s.done)
		h := sha256.New()
		buf := make([]byte, 256<<10)
		_, s.err = io.CopyBuffer(struct{ io.Writer }{h}, &contextReader{ctx, io.NewSectionReader(f, 0, before.size)}, buf)
		s.digest = digestOf(h)
		if after, ok := stateOf(f); ok && s.err == nil && s.digest == name && after == before {
			k.add(name, before)
		}
	}()
	return s
}

// wait returns the digest.
func (s *plainSum) wait(ctx context.Context) (kiln.Digest, error) {
	select {
	case <-s.done:
		return s.digest, s.err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// stop ends the hashing and returns once the file is not read any more.
func (s *plainSum) stop() {
	s.cancel()
	<-s.done
}

func (k *knownLayers) has(name kiln.Digest, s fileState) bool {
	if k == nil {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	known, ok := k.files[name]
	return ok && known == s
}

func (k *knownLayers) add(name kiln.Digest, s fileState) {
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.files == nil || len(k.files) >= mostKnown {
		k.files = map[kiln.Digest]fileState{}
	}
	k.files[name] = s
}
