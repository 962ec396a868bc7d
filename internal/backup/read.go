package backup

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/kilnproject/kiln"
)

// Verify reads a backup to its end and says whether it is what was written. It
// keeps nothing.
func Verify(ctx context.Context, r io.Reader) (Manifest, error) {
	return read(ctx, r, func(Manifest) error { return nil }, func(_ Entry, content io.Reader) error {
		_, err := io.Copy(io.Discard, content)
		return err
	})
}

// read reads a backup. Begin has the manifest before any content; each gets
// every entry in order, and must read it to its end. Only when read returns no
// error is what each got what was written: then the file is whole.
func read(ctx context.Context, r io.Reader, begin func(Manifest) error, each func(Entry, io.Reader) error) (Manifest, error) {
	plain, err := zstd.NewReader(source{within(ctx, r)}, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(8<<20), zstd.WithDecoderLowmem(true))
	if err != nil {
		return Manifest{}, broken("%w", err)
	}
	defer plain.Close()
	archive := tar.NewReader(plain)
	m, err := readManifest(archive)
	if err != nil {
		return Manifest{}, err
	}
	if err := begin(m); err != nil {
		return m, err
	}
	for _, e := range m.Entries {
		if err := readEntry(archive, e, each); err != nil {
			return m, err
		}
	}
	if _, err := archive.Next(); !errors.Is(err, io.EOF) {
		return m, readError("there is more in it than its manifest says", err)
	}
	return m, readEnd(plain)
}

// source marks the errors of where the file comes from: they are not the
// file's.
type source struct{ io.Reader }

type sourceError struct{ error }

func (e sourceError) Unwrap() error { return e.error }

func (s source) Read(b []byte) (int, error) {
	n, err := s.Reader.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		err = sourceError{err}
	}
	return n, err
}

// readError says why an entry could not be read. No error means that there is
// something where nothing should be.
func readError(what string, err error) error {
	var from sourceError
	switch {
	case errors.As(err, &from):
		return fmt.Errorf("read the backup: %w", from.error)
	case err == nil:
		return broken("%s", what)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return broken("%s: it ends too early", what)
	default:
		return broken("%s: %w", what, err)
	}
}

func readManifest(archive *tar.Reader) (Manifest, error) {
	header, err := archive.Next()
	if err != nil {
		return Manifest{}, readError("it has no manifest", err)
	}
	if header.Name != manifestName || header.Typeflag != tar.TypeReg || header.Size > maxManifest {
		return Manifest{}, broken("it does not begin with a manifest")
	}
	raw, err := io.ReadAll(archive)
	if err != nil {
		return Manifest{}, readError("its manifest cannot be read", err)
	}
	return parseManifest(raw)
}

// readEntry reads the next entry, which must be the one of the manifest.
func readEntry(archive *tar.Reader, e Entry, each func(Entry, io.Reader) error) error {
	header, err := archive.Next()
	if err != nil {
		return readError(e.Name+" is missing", err)
	}
	if header.Name != e.Name || header.Typeflag != tar.TypeReg || header.Size != e.Size {
		return broken("where %s should be, with %d bytes, is %q with %d", e.Name, e.Size, header.Name, header.Size)
	}
	sum := sha256.New()
	content := &entryReader{r: io.TeeReader(archive, sum)}
	if err := each(e, content); err != nil {
		if content.err != nil {
			return readError(e.Name+" cannot be read", content.err)
		}
		return err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != e.Digest.Hex() {
		return broken("%s is not what its manifest says", e.Name)
	}
	return nil
}

// entryReader remembers why it could not be read, so that this is not taken for
// an error of whoever writes.
type entryReader struct {
	r   io.Reader
	err error
}

func (e *entryReader) Read(b []byte) (int, error) {
	n, err := e.r.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		e.err = err
	}
	return n, err
}

// maxEnd is how much may follow the last entry: the zeros that end an archive.
const maxEnd = 64 << 10

// readEnd refuses a file that does not end where its archive does.
func readEnd(r io.Reader) error {
	rest, err := io.ReadAll(io.LimitReader(r, maxEnd+1))
	if err != nil {
		return readError("its end cannot be read", err)
	}
	for _, b := range rest {
		if b != 0 || len(rest) > maxEnd {
			return broken("something follows its end")
		}
	}
	return nil
}

// expect refuses a backup that is not the one of a digest; "" is any.
func expect(m Manifest, want kiln.Digest) error {
	if got := m.Digest(); want != "" && got != want {
		return kiln.Errorf(kiln.CodeRefused, "kiln backup printed the digest when it was made; nothing was put in place",
			"the backup is another one: its digest is %s, not %s", got, want)
	}
	return nil
}
