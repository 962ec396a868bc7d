// Package store holds everything that Kiln names by digest: an OCI image
// layout on disk (oci-layout, index.json, blobs/sha256) that other tools read
// as it is. It keeps image layers, manifests and configs, bundles, the files
// of definitions and contexts that clients send, and .deb files.
//
// Blobs are immutable and verified while they are written; a name never is
// trusted. index.json changes under a lock that other processes respect, by
// writing a new file and renaming it. Nothing here talks to a network, and
// nothing here knows what a layer contains.
//
// A blob's modification time is the time of its last use, which Collect goes
// by. Whoever relies on blobs that no bundle names yet takes a Hold or a Pin.
//
// The folder also holds what the layout's specification leaves free: tmp/
// (blobs being written), ingest/ (containerd's, when its local content store
// works over the same folder), referrers/ (which manifests refer to which),
// index.lock and gc.lock.
package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/durable"
)

// DefaultMaxBlob is the size in bytes above which Put refuses a blob.
const DefaultMaxBlob = 16 << 30

// Store is an OCI image layout. Its methods may be called concurrently, also
// by several processes over the same folder.
type Store struct {
	dir string
	now func() time.Time

	shelf shelf

	described descriptions

	mu   sync.Mutex
	pins map[kiln.Digest]int
}

// Open opens the store in dir and creates what is missing.
func Open(dir string) (*Store, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	for _, d := range []string{dir, filepath.Join(dir, "blobs", "sha256"), filepath.Join(dir, "tmp")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("open store: %w", err)
		}
	}
	s := &Store{dir: dir, now: time.Now, pins: map[kiln.Digest]int{}}
	if err := s.checkLayout(); err != nil {
		return nil, err
	}
	if err := s.findReferrers(context.Background()); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	return s, nil
}

// checkLayout writes oci-layout where it is missing and refuses a version
// that this code does not know (image-layout.md).
func (s *Store) checkLayout() error {
	path := filepath.Join(s.dir, ocispec.ImageLayoutFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		b, err = json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
		if err == nil {
			err = s.writeFile(path, b)
		}
	}
	if err != nil {
		return fmt.Errorf("open store: %w", err)
	}
	var layout ocispec.ImageLayout
	if err := json.Unmarshal(b, &layout); err != nil {
		return fmt.Errorf("open store: read %s: %w", path, err)
	}
	if layout.Version != ocispec.ImageLayoutVersion {
		return kiln.Errorf(kiln.CodeInvalid, "use the version of Kiln that made it, or another data directory",
			"%s is an image layout of version %q, and only %s is known", s.dir, layout.Version, ocispec.ImageLayoutVersion)
	}
	return s.updateIndex(context.Background(), func(*ocispec.Index) bool { return false })
}

// Dir returns the layout's folder.
func (s *Store) Dir() string { return s.dir }

// Has reports whether the blob is in the store, and counts as a use of it.
func (s *Store) Has(d kiln.Digest) bool {
	path, err := s.blobPath(d)
	if err != nil {
		return false
	}
	if _, err := os.Lstat(path); err != nil {
		return false
	}
	s.touch(path)
	return true
}

// Missing returns those of the digests that are not in the store, in their
// order and each once. It counts as a use of the others.
func (s *Store) Missing(digests []kiln.Digest) []kiln.Digest {
	var missing []kiln.Digest
	seen := make(map[kiln.Digest]bool, len(digests))
	for _, d := range digests {
		if !seen[d] && !s.Has(d) {
			missing = append(missing, d)
		}
		seen[d] = true
	}
	return missing
}

// Open opens a blob for reading. It counts as a use of it. The content is not
// verified again; what must be sure of it hashes while it reads. The error
// matches kiln.ErrNotFound when the blob is not there.
func (s *Store) Open(d kiln.Digest) (*os.File, error) {
	f, err := s.openQuietly(d)
	if err != nil {
		return nil, err
	}
	s.touch(f.Name())
	return f, nil
}

// openQuietly is Open without counting as a use: for the collector.
func (s *Store) openQuietly(d kiln.Digest) (*os.File, error) {
	path, err := s.blobPath(d)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, kiln.Errorf(kiln.CodeNotFound, "bake again what needs it", "blob %s is not in the store", d)
	}
	if err != nil {
		return nil, fmt.Errorf("open blob: %w", err)
	}
	return f, nil
}

// blobPath is the one place where a digest becomes a file name.
func (s *Store) blobPath(d kiln.Digest) (string, error) {
	if _, err := kiln.ParseDigest(string(d)); err != nil {
		return "", kiln.Errorf(kiln.CodeInvalid, "", "name of a blob: %w", err)
	}
	return filepath.Join(s.dir, "blobs", "sha256", d.Hex()), nil
}

// coarse is how exactly the time of a blob's last use is known. It is far
// below the grace of a collection, and what is used all the time keeps its
// ctime, by which others tell whether it was written to.
const coarse = 5 * time.Minute

// touch records a use. That it may be lost, or that the blob may have gone
// meanwhile, changes only the order of eviction.
func (s *Store) touch(path string) {
	now := s.now()
	if info, err := os.Lstat(path); err == nil && now.Sub(info.ModTime()).Abs() < coarse {
		return
	}
	_ = os.Chtimes(path, now, now)
}

// writeFile replaces a file so that a reader, also one after a crash, sees
// either all of the old content or all of the new.
func (s *Store) writeFile(path string, b []byte) error {
	f, err := os.CreateTemp(filepath.Join(s.dir, "tmp"), "new-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }() // gone already once renamed
	_, err = f.Write(b)
	err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return durable.SyncFolder(filepath.Dir(path))
}
