// Package seal turns an image into one read-only EROFS file and mounts it: the
// root file system that all instances of the image share.
//
// An image's layers are read lowest first and flattened here into one tree
// with the semantics of the OCI image specification (whiteouts, opaque
// folders, hard links, symbolic links on the way of a path), the mount points
// that services need are added, and the tree is written as one file. The same
// image and mount points give the same bytes, whenever and wherever.
//
// Layers come from strangers. They are read by a process of its own that has
// no privileges and nothing but the open files (Work, package confine; process
// by process in docs/security.md). Every path is resolved inside the tree, which
// is held in memory and never on a disk; contents go to a file without a name;
// numbers and sizes are bounded before they are believed. What is refused is
// named with its layer and entry. Made harmless and recorded, not refused, are
// device nodes (instances have their own /dev; the mount is nodev) and
// extended attributes other than user.*. Set-id bits stay, and the mount is
// nosuid.
//
// A sealed file is hashed once, just before it is mounted and through the
// same open file, and is made immutable where the file system can. The digest
// that it must have is in a record that this machine signed; a file whose record
// has no valid signature, or that has another digest, is not mounted but sealed
// again from the image, whose layers are verified. Nothing here ever writes to a
// mounted file.
package seal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/confine"
)

// formatVersion is part of every key: a change of what is sealed for the same
// image changes it, and old seals are collected.
const formatVersion = 1

// concurrent is how many images are sealed at once; each may need hundreds of
// megabytes of memory when it is hostile.
const concurrent = 2

// Store is where images come from. Blobs may be damaged: they are verified.
type Store interface {
	Open(kiln.Digest) (*os.File, error)
	Manifest(context.Context, kiln.Digest) (ocispec.Manifest, error)
	Config(context.Context, kiln.Digest) (ocispec.Image, error)
	// Verify removes a blob that is damaged, and says so.
	Verify(context.Context, kiln.Digest) error
}

// Signer signs the records of sealed files and checks what it signed. Nobody but
// this machine may make a signature that Check accepts.
type Signer interface {
	Sign(ctx context.Context, payload []byte) (signature []byte, err error)
	Check(ctx context.Context, payload, signature []byte) error
}

// Options are what a Sealer works with.
type Options struct {
	Dir      string // of the sealed files; on a disk with room for them twice
	MountDir string // of the mounts
	Store    Store
	Log      *slog.Logger // nil discards
	Limits   Limits       // zero means DefaultLimits
	// Sealed is told of every root file system that was sealed, or was not; nil
	// tells nobody.
	Sealed func(took time.Duration, err error)
	// Signer signs the record of a sealed file, and a file without a signed
	// record is sealed again instead of mounted. With nil records are neither
	// signed nor checked.
	Signer Signer
	// Worker does a Task, so that what reads layers has no privileges. Without
	// it this process reads them.
	Worker confine.Program

	known *knownLayers
}

// Key names a seal: the hex digest of image, mount points and format.
type Key string

// KeyOf returns the key of an image with those mount points.
func KeyOf(manifest kiln.Digest, mountPoints []string) (Key, error) {
	if _, err := kiln.ParseDigest(string(manifest)); err != nil {
		return "", kiln.Errorf(kiln.CodeInvalid, "", "seal image: %w", err)
	}
	points, err := cleanPoints(mountPoints)
	if err != nil {
		return "", err
	}
	return keyOf(manifest, points), nil
}

func keyOf(manifest kiln.Digest, points []string) Key {
	return Key(kiln.DigestJSON(struct {
		Format int
		Image  kiln.Digest
		Points []string
	}{formatVersion, manifest, points}).Hex())
}

// Root is a sealed image, mounted.
type Root struct {
	Key    Key                 `json:"key"`
	Dir    string              `json:"dir"`    // where it is mounted, read-only
	Seal   kiln.Digest         `json:"seal"`   // of the sealed file
	Size   int64               `json:"size"`   // of the sealed file, in bytes
	Config ocispec.ImageConfig `json:"config"` // the image's
	// Protection is what keeps the sealed file from being changed.
	Protection Protection `json:"protection"`
	// Added are the mount points that the image itself had not, sorted.
	Added []string `json:"added,omitempty"`
	// Dropped says what of the image was left out, at most 20 lines.
	Dropped []string `json:"dropped,omitempty"`
}

// Sealer seals and mounts. Its methods may be called concurrently; one
// process at a time may have a Sealer on a folder.
type Sealer struct {
	opt   Options
	boot  string        // tells this run of the kernel from others
	slots chan struct{} // one per image being sealed
	work  sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	flights map[Key]*flight
	roots   map[Key]mounted
}

// flight is work on one seal that others wait for.
type flight struct {
	done    chan struct{}
	cancel  context.CancelFunc
	waiters int
	root    Root
	err     error
	removal bool
}

// New makes a Sealer and removes what an earlier one left unfinished.
func New(opt Options) (*Sealer, error) {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.Limits == (Limits{}) {
		opt.Limits = DefaultLimits()
	}
	for _, dir := range []*string{&opt.Dir, &opt.MountDir} {
		abs, err := filepath.Abs(*dir)
		if err != nil {
			return nil, fmt.Errorf("open seals: %w", err)
		}
		if err := os.MkdirAll(abs, 0o700); err != nil {
			return nil, fmt.Errorf("open seals: %w", err)
		}
		*dir = abs
	}
	opt.known = &knownLayers{}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("open seals: %w", err)
	}
	s := &Sealer{opt: opt, boot: strings.TrimSpace(string(boot)), slots: make(chan struct{}, concurrent), flights: map[Key]*flight{}, roots: map[Key]mounted{}}
	return s, s.sweepUnfinished()
}

// sweepUnfinished removes temporary files, and sealed files without a record.
func (s *Sealer) sweepUnfinished() error {
	var errs []error
	for _, dir := range []string{s.opt.Dir, s.opt.MountDir} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return fmt.Errorf("open seals: %w", err)
		}
		for _, e := range entries {
			key, image := strings.CutSuffix(e.Name(), imageSuffix)
			_, err := os.Lstat(s.recordPath(Key(key)))
			if e.Type().IsRegular() && (strings.HasPrefix(e.Name(), ".") || image && err != nil) {
				errs = append(errs, removeProtected(filepath.Join(dir, e.Name())))
			}
		}
	}
	return errors.Join(errs...)
}

// Root makes the image available: flattened, sealed, verified and mounted,
// as far as it is not yet. Callers that ask for the same share the work; it
// stops when none of them waits any more. The manifest is that of a platform.
func (s *Sealer) Root(ctx context.Context, manifest kiln.Digest, mountPoints []string) (Root, error) {
	if _, err := kiln.ParseDigest(string(manifest)); err != nil {
		return Root{}, kiln.Errorf(kiln.CodeInvalid, "", "seal image: %w", err)
	}
	points, err := cleanPoints(mountPoints)
	if err != nil {
		return Root{}, err
	}
	key := keyOf(manifest, points)
	for {
		if err := ctx.Err(); err != nil {
			return Root{}, err
		}
		if root, ok := s.live(key); ok {
			return root, nil
		}
		f := s.join(key, func(ctx context.Context) (Root, error) { return s.make(ctx, key, manifest, points) })
		if f == nil {
			return Root{}, kiln.Errorf(kiln.CodeUnavailable, "", "seal image %s: shutting down", manifest.Short())
		}
		if err := s.wait(ctx, f); err != nil {
			return Root{}, err
		}
		switch {
		case f.removal || errors.Is(f.err, context.Canceled):
			continue // it was someone else's; do it now
		case f.err != nil:
			return Root{}, fmt.Errorf("image %s: %w", manifest.Short(), f.err)
		}
		return f.root, nil
	}
}

// Mounted returns the root of an image if it is mounted already and its file was
// not touched since: with the inode's time of change, not with a hash. It costs a
// few microseconds.
func (s *Sealer) Mounted(manifest kiln.Digest, mountPoints []string) (Root, bool) {
	key, err := KeyOf(manifest, mountPoints)
	if err != nil {
		return Root{}, false
	}
	return s.live(key)
}

// join returns the work on a key that is going on, or starts it. It returns
// nil once the Sealer is closed.
func (s *Sealer) join(key Key, do func(context.Context) (Root, error)) *flight {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	f, ok := s.flights[key]
	if !ok {
		f = s.start(key, do)
	}
	f.waiters++
	return f
}

// start begins work on a key; s.mu is held. Close waits for it.
//
//nolint:contextcheck // it is for all who wait, not for the one who began it
func (s *Sealer) start(key Key, do func(context.Context) (Root, error)) *flight {
	ctx, cancel := context.WithCancel(context.Background())
	f := &flight{done: make(chan struct{}), cancel: cancel}
	s.flights[key] = f
	s.work.Go(func() {
		defer cancel()
		root, err := do(ctx)
		s.mu.Lock()
		f.root, f.err = root, err
		delete(s.flights, key)
		s.mu.Unlock()
		close(f.done)
	})
	return f
}

// wait waits for work; the last one who leaves early stops it.
func (s *Sealer) wait(ctx context.Context, f *flight) error {
	select {
	case <-f.done:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.waiters--; f.waiters == 0 && !f.removal {
		f.cancel()
	}
	return ctx.Err()
}

// make seals what is not sealed, and mounts it.
func (s *Sealer) make(ctx context.Context, key Key, manifest kiln.Digest, points []string) (Root, error) {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return Root{}, ctx.Err()
	}
	if r, err := s.load(ctx, key); err == nil {
		root, err := s.mount(ctx, key, r)
		if !errors.Is(err, errDamaged) {
			return root, err
		}
		s.opt.Log.WarnContext(ctx, "sealed image is damaged and is made again", "key", string(key), "image", string(manifest), "error", err)
	} else if !errors.Is(err, fs.ErrNotExist) {
		s.opt.Log.WarnContext(ctx, "record of a sealed image is not believed, and the image is sealed again", "key", string(key), "image", string(manifest), "error", err)
	}
	if err := ctx.Err(); err != nil {
		return Root{}, err
	}
	if err := s.discard(key); err != nil {
		return Root{}, err
	}
	began := time.Now()
	r, err := s.seal(ctx, key, manifest, points)
	if s.opt.Sealed != nil && !errors.Is(err, context.Canceled) {
		s.opt.Sealed(time.Since(began), err)
	}
	if err != nil {
		return Root{}, err
	}
	return s.mount(ctx, key, r)
}

// Close stops work that is going on and waits for it. Mounts stay: instances
// live on them, and the next Sealer adopts them.
func (s *Sealer) Close() error {
	s.mu.Lock()
	s.closed = true
	for _, f := range s.flights {
		f.cancel()
	}
	s.mu.Unlock()
	s.work.Wait()
	return nil
}
