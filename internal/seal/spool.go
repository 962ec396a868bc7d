package seal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/kilnproject/kiln"
)

// spool holds the contents of all layers' files one after another, in a file
// without a name: no memory grows with an image, and nothing is left behind.
// Long runs of zeros take no room.
type spool struct {
	file *os.File
	out  *sparseWriter
	end  int64
}

// newSpool makes the file of a spool in a folder, which must be on a disk.
func newSpool(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, ".spool-*")
	if err != nil {
		return nil, fmt.Errorf("make spool: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(fmt.Errorf("make spool: %w", err), f.Close())
	}
	return f, nil
}

// openSpool begins a spool in an empty file.
func openSpool(f *os.File) *spool { return &spool{file: f, out: newSparseWriter(f)} }

// add copies exactly size bytes and returns where they begin.
func (s *spool) add(ctx context.Context, r io.Reader, size int64) (int64, error) {
	start := s.end
	n, err := io.Copy(s.out, io.LimitReader(&contextReader{ctx, r}, size))
	s.end += n
	if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	return start, err
}

// finish makes everything readable by content.
func (s *spool) finish() error {
	if err := s.out.Flush(); err != nil {
		return err
	}
	return s.file.Truncate(s.end)
}

// contextReader ends with its context.
type contextReader struct {
	ctx context.Context // an io.Reader has no other way
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// grain is the length in bytes of the runs of zeros that become holes.
const grain = 64 << 10

// sparseWriter buffers writes and leaves holes for zeros. The file must be
// new or truncated, and be truncated to its length at the end.
type sparseWriter struct {
	file  *os.File
	start int64 // where buf belongs
	buf   []byte
	zeros []byte
}

func newSparseWriter(f *os.File) *sparseWriter {
	return &sparseWriter{file: f, buf: make([]byte, 0, 16*grain), zeros: make([]byte, grain)}
}

// Write implements io.Writer.
func (w *sparseWriter) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		k := min(len(p), cap(w.buf)-len(w.buf))
		w.buf = append(w.buf, p[:k]...)
		p = p[k:]
		if len(w.buf) == cap(w.buf) {
			if err := w.Flush(); err != nil {
				return 0, err
			}
		}
	}
	return n, nil
}

// ReadFrom implements io.ReaderFrom: it reads into the buffer at once.
func (w *sparseWriter) ReadFrom(r io.Reader) (int64, error) {
	var total int64
	for {
		n, err := r.Read(w.buf[len(w.buf):cap(w.buf)])
		w.buf = w.buf[:len(w.buf)+n]
		total += int64(n)
		if len(w.buf) == cap(w.buf) {
			if err := w.Flush(); err != nil {
				return total, err
			}
		}
		if errors.Is(err, io.EOF) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// Flush writes what is buffered.
func (w *sparseWriter) Flush() error {
	for from := 0; from < len(w.buf); {
		to := min(from+grain, len(w.buf))
		zero := bytes.Equal(w.buf[from:to], w.zeros[:to-from])
		for to < len(w.buf) { // as long a run of the same kind as there is
			next := min(to+grain, len(w.buf))
			if bytes.Equal(w.buf[to:next], w.zeros[:next-to]) != zero {
				break
			}
			to = next
		}
		if !zero {
			if _, err := w.file.WriteAt(w.buf[from:to], w.start+int64(from)); err != nil {
				return err
			}
		}
		from = to
	}
	w.start += int64(len(w.buf))
	w.buf = w.buf[:0]
	return nil
}

// Seek implements io.Seeker, from the start only. What is written over
// something else must not rely on holes.
func (w *sparseWriter) Seek(offset int64, whence int) (int64, error) {
	if whence != io.SeekStart {
		return 0, errors.New("seek: only from the start")
	}
	if err := w.Flush(); err != nil {
		return 0, err
	}
	w.start = offset
	return offset, nil
}

// roomOrContext returns an error that no image is to blame for, else nil.
func roomOrContext(err error) error {
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return kiln.Errorf(kiln.CodeNoRoom, "free space on the disk of the data directory", "seal image: %w", err)
	default:
		return nil
	}
}
