package source

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
)

const (
	hashers    = 2
	hashBuffer = 256 << 10
)

// changed is the error for a file that is not what it was a moment ago.
func changed(name string) error {
	return kiln.Errorf(kiln.CodeFailed, "run the command again once nothing writes to the folder", "%s changed while it was read", name)
}

// openRegular opens a regular file. It does not block on a named pipe that took
// the file's place.
func openRegular(root *os.Root, name string) (*os.File, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, missing(name, err)
	}
	if err != nil {
		return nil, kiln.Errorf(kiln.CodeFailed, "make it readable, or name it in .dockerignore", "open %s: %w", name, err)
	}
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		_ = f.Close()
		return nil, changed(name)
	}
	return f, nil
}

// hashAll gives every regular file its digest.
func hashAll(ctx context.Context, root *os.Root, entries []*found) error {
	group, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range hashers {
		group.Go(func() error {
			h, buffer := sha256.New(), make([]byte, hashBuffer)
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(entries) {
					return nil
				}
				if entries[i].info == nil {
					continue
				}
				if err := hashOne(ctx, root, entries[i], h, buffer); err != nil {
					return err
				}
			}
			return ctx.Err()
		})
	}
	return group.Wait()
}

// hashOne hashes a file and makes sure that it is the one that was found, and
// that it did not change meanwhile.
func hashOne(ctx context.Context, root *os.Root, f *found, h hash.Hash, buffer []byte) error {
	file, err := openRegular(root, f.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return changed(f.Path)
	}
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	before, err := file.Stat()
	if err != nil || !sameState(before, f.info) {
		return changed(f.Path)
	}
	h.Reset()
	n, err := io.CopyBuffer(onlyWriter{h}, readerContext{ctx, io.LimitReader(file, f.Size+1)}, buffer)
	if err != nil {
		return kiln.Errorf(kiln.CodeFailed, "", "read %s: %w", f.Path, err)
	}
	after, err := file.Stat()
	if err != nil || n != f.Size || !sameState(after, f.info) {
		return changed(f.Path)
	}
	f.Digest = digest(h)
	return nil
}

// onlyWriter and readerContext keep io.CopyBuffer to its buffer.
type onlyWriter struct{ io.Writer }

type readerContext struct {
	ctx context.Context
	io.Reader
}

func (r readerContext) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.Reader.Read(p)
}

func digest(h hash.Hash) kiln.Digest {
	return kiln.Digest("sha256:" + hex.EncodeToString(h.Sum(nil)))
}

// sameState compares identity, size, and the times of the last change.
func sameState(a, b fs.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime()) && changeTime(a) == changeTime(b)
}

// verified is a file whose content must have a digest; otherwise its reader
// gets an error instead of io.EOF.
type verified struct {
	file *os.File
	name string
	want kiln.Digest
	hash hash.Hash
}

func newVerified(f *os.File, name string, want kiln.Digest) *verified {
	return &verified{file: f, name: name, want: want, hash: sha256.New()}
}

// Read reads and hashes.
func (v *verified) Read(p []byte) (int, error) {
	n, err := v.file.Read(p)
	v.hash.Write(p[:n])
	if errors.Is(err, io.EOF) && digest(v.hash) != v.want {
		return n, changed(v.name)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return n, fmt.Errorf("read %s: %w", v.name, err)
	}
	return n, err
}

// Close closes the file.
func (v *verified) Close() error { return v.file.Close() }
