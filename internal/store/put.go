package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/durable"
)

// Put writes a blob and returns its digest and size in bytes. When want is
// not empty the content must have that digest, else nothing is kept and the
// error is invalid. The blob is durable when Put returns; use a Batch for
// many small ones.
func (s *Store) Put(ctx context.Context, r io.Reader, want kiln.Digest) (kiln.Digest, int64, error) {
	return s.PutMax(ctx, r, want, DefaultMaxBlob)
}

// PutMax is Put with a limit on the blob's size in bytes.
func (s *Store) PutMax(ctx context.Context, r io.Reader, want kiln.Digest, limit int64) (kiln.Digest, int64, error) {
	b := s.NewBatch()
	defer b.Discard()
	d, n, err := b.put(ctx, r, want, limit, true)
	if err != nil {
		return "", 0, err
	}
	if err := b.publish(); err != nil {
		return "", 0, err
	}
	return d, n, nil
}

// Batch writes many blobs and makes them durable together: one flush of the
// file system instead of one of each blob. It is for one goroutine. Nothing of it
// is in the store before Commit.
type Batch struct {
	store  *Store
	staged []staged
}

type staged struct {
	temp   string
	digest kiln.Digest
}

// NewBatch starts a batch. Whoever starts one calls Commit or Discard.
func (s *Store) NewBatch() *Batch { return &Batch{store: s} }

// Put adds a blob, as Store.Put does but for durability.
func (b *Batch) Put(ctx context.Context, r io.Reader, want kiln.Digest) (kiln.Digest, int64, error) {
	return b.put(ctx, r, want, DefaultMaxBlob, false)
}

// Commit makes the blobs durable and then visible. On an error some of them
// may be in the store, whole.
func (b *Batch) Commit(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := b.flush(); err != nil {
		return err
	}
	return b.publish()
}

// flush makes the staged contents durable. Flushing the file system waits for
// whatever else is being written there, so it pays for many blobs only.
func (b *Batch) flush() error {
	const many = 16
	if len(b.staged) > many {
		return b.store.Sync()
	}
	for _, one := range b.staged {
		f, err := os.Open(one.temp)
		if err == nil {
			err = errors.Join(f.Sync(), f.Close())
		}
		if err != nil {
			return putError(one.digest, err)
		}
	}
	return nil
}

// Discard removes what was not committed. After Commit it does nothing.
func (b *Batch) Discard() {
	for _, one := range b.staged {
		_ = os.Remove(one.temp)
	}
	b.staged = nil
}

func (b *Batch) put(ctx context.Context, r io.Reader, want kiln.Digest, limit int64, durable bool) (kiln.Digest, int64, error) {
	if want != "" {
		if _, err := b.store.blobPath(want); err != nil {
			return "", 0, err
		}
	}
	f, err := os.CreateTemp(filepath.Join(b.store.dir, "tmp"), "put-*")
	if err != nil {
		return "", 0, putError(want, err)
	}
	sum := sha256.New()
	n, err := copyBlob(ctx, f, sum, r, limit)
	if err == nil && durable {
		err = f.Sync()
	}
	err = errors.Join(err, f.Chmod(0o444), f.Close())
	got := digestOf(sum)
	if err == nil && want != "" && got != want {
		err = kiln.Errorf(kiln.CodeInvalid, "send it again", "content of blob %s has the digest %s", want, got)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return "", 0, putError(want, err)
	}
	b.staged = append(b.staged, staged{f.Name(), got})
	return got, n, nil
}

// publish gives the staged blobs their names. A blob that was there already
// is replaced by the same content, which heals one that was damaged.
func (b *Batch) publish() error {
	for len(b.staged) > 0 {
		one := b.staged[0]
		path, err := b.store.blobPath(one.digest)
		if err == nil {
			err = os.Rename(one.temp, path)
		}
		if err != nil {
			return putError(one.digest, err)
		}
		b.store.touch(path)
		b.staged = b.staged[1:]
	}
	return durable.SyncFolder(filepath.Join(b.store.dir, "blobs", "sha256"))
}

// Sync makes durable whatever was written below the store's folder by others,
// such as containerd's content store, which does not.
func (s *Store) Sync() error {
	d, err := os.Open(s.dir)
	if err != nil {
		return fmt.Errorf("sync store: %w", err)
	}
	defer func() { _ = d.Close() }()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fmt.Errorf("sync store: %w", err)
	}
	return nil
}

// copyBlob copies r to f and the hash, at most limit bytes, and stops when
// the context ends.
func copyBlob(ctx context.Context, f io.Writer, sum hash.Hash, r io.Reader, limit int64) (int64, error) {
	buf := make([]byte, 128<<10)
	var n int64
	for {
		if err := ctx.Err(); err != nil {
			return n, err
		}
		k, err := r.Read(buf)
		if n += int64(k); n > limit {
			return n, kiln.Errorf(kiln.CodeInvalid, "", "it is larger than %d bytes", limit)
		}
		sum.Write(buf[:k])
		if _, werr := f.Write(buf[:k]); werr != nil {
			return n, werr
		}
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

// putError names the blob and tells a full disk from other failures.
func putError(d kiln.Digest, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return kiln.Errorf(kiln.CodeNoRoom, "free space on the disk of the data directory", "put blob %s: %w", d, err)
	}
	var known *kiln.Error
	if errors.As(err, &known) {
		return kiln.Errorf(known.Code, known.Hint, "put blob %s: %w", d, err)
	}
	return fmt.Errorf("put blob %s: %w", d, err)
}

func digestOf(sum hash.Hash) kiln.Digest {
	return kiln.Digest("sha256:" + hex.EncodeToString(sum.Sum(nil)))
}
