package store

import (
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"os"
	"path/filepath"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/durable"
)

// Upload is a blob that comes in parts and is verified while it comes. It is
// for one goroutine at a time. One that is neither committed nor discarded,
// because its process died, goes with a collection a day later.
type Upload struct {
	store *Store
	f     *os.File
	sum   hash.Hash
	size  int64
}

// NewUpload starts a blob. Whoever starts one calls Commit or Discard.
func (s *Store) NewUpload() (*Upload, error) {
	f, err := os.CreateTemp(filepath.Join(s.dir, "tmp"), "upload-*")
	if err != nil {
		return nil, putError("", err)
	}
	return &Upload{store: s, f: f, sum: sha256.New()}, nil
}

// Append adds what r has and returns how much that was. What came before an
// error is kept, so that a sender may go on behind it. Of a blob that becomes
// larger than limit bytes nothing can be made any more.
func (u *Upload) Append(ctx context.Context, r io.Reader, limit int64) (int64, error) {
	written := &counter{w: u.f}
	_, err := copyBlob(ctx, written, u.sum, r, limit-u.size)
	u.size += written.n
	return written.n, err
}

// counter counts what was written.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}

// Size is how many bytes came.
func (u *Upload) Size() int64 { return u.size }

// Commit makes a blob of it, durable when Commit returns, if it has the digest
// that is wanted. Either way there is no more of the upload.
func (u *Upload) Commit(want kiln.Digest) error {
	defer u.Discard()
	path, err := u.store.blobPath(want)
	if err != nil {
		return err
	}
	if got := digestOf(u.sum); got != want {
		return kiln.Errorf(kiln.CodeInvalid, "send it again", "the content sent for blob %s has the digest %s", want, got)
	}
	if err := errors.Join(u.f.Sync(), u.f.Chmod(0o444)); err != nil {
		return putError(want, err)
	}
	if err := os.Rename(u.f.Name(), path); err != nil {
		return putError(want, err)
	}
	u.store.touch(path)
	return durable.SyncFolder(filepath.Dir(path))
}

// Discard removes what came. After Commit it does nothing.
func (u *Upload) Discard() {
	_ = u.f.Close()
	_ = os.Remove(u.f.Name()) // gone already once it is a blob
}
