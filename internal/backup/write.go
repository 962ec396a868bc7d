package backup

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"

	"github.com/kilnproject/kiln"
)

// Source is what a backup is made of. Nothing of it may change meanwhile.
type Source struct {
	Version string
	Host    string
	At      time.Time
	Ledger  string // path of a copy of the ledger
	Tip     string // of that copy
	Config  []byte // nil for none
	Index   []byte // of the store
	// Keys are encrypted to the recipients; without those they are left out.
	Keys       []Key
	Recipients []age.Recipient
	// Blobs are in the backup, References named only.
	Blobs      []Blob
	References []Blob
	Open       func(kiln.Digest) (*os.File, error)
}

// part is an entry and where its content comes from.
type part struct {
	Entry
	open func() (io.ReadCloser, error)
}

// window is how far back the compression looks. It bounds the memory of both
// sides; what a store has most of is compressed already.
const window = 1 << 20

// Write writes a backup. It reads every file once and holds little of them.
func Write(ctx context.Context, w io.Writer, s Source) (Manifest, error) {
	parts, err := s.parts()
	if err != nil {
		return Manifest{}, err
	}
	m := Manifest{Format: Format, Version: s.Version, At: s.At.UTC(), Host: s.Host, Tip: s.Tip, Entries: []Entry{}, References: s.References}
	for _, p := range parts {
		m.Entries = append(m.Entries, p.Entry)
	}
	if err := m.check(); err != nil {
		return Manifest{}, err
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return Manifest{}, err
	}
	if len(raw) > maxManifest {
		return Manifest{}, kiln.Errorf(kiln.CodeNoRoom, "bound the store: storage.max", "the store has too many blobs for a backup")
	}
	compressed, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(window), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return Manifest{}, err
	}
	archive := tar.NewWriter(compressed)
	err = writePart(ctx, archive, inMemory(manifestName, raw), m.At)
	for _, p := range parts {
		if err != nil {
			break
		}
		err = writePart(ctx, archive, p, m.At)
	}
	if err != nil { // what is written stays without an end
		return Manifest{}, err
	}
	return m, errors.Join(archive.Close(), compressed.Close())
}

// parts are the entries after the manifest, in their order.
func (s Source) parts() ([]part, error) {
	ledger, err := fromFile(ledgerName, s.Ledger)
	if err != nil {
		return nil, fmt.Errorf("read the copy of the ledger: %w", err)
	}
	parts := []part{ledger}
	if s.Config != nil {
		parts = append(parts, inMemory(configName, s.Config))
	}
	if len(s.Keys) > 0 && len(s.Recipients) > 0 {
		sealed, err := seal(s.Keys, s.Recipients)
		if err != nil {
			return nil, fmt.Errorf("encrypt the keys: %w", err)
		}
		parts = append(parts, inMemory(keysName, sealed))
	}
	parts = append(parts, inMemory(indexName, s.Index))
	for _, b := range s.Blobs {
		parts = append(parts, part{
			Entry: Entry{Name: blobPrefix + b.Digest.Hex(), Size: b.Size, Digest: b.Digest},
			open:  func() (io.ReadCloser, error) { return s.Open(b.Digest) },
		})
	}
	return parts, nil
}

func inMemory(name string, content []byte) part {
	return part{
		Entry: Entry{Name: name, Size: int64(len(content)), Digest: kiln.DigestOf(content)},
		open:  func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil },
	}
}

// fromFile reads a file once to know its digest.
func fromFile(name, path string) (part, error) {
	f, err := os.Open(path)
	if err != nil {
		return part{}, err
	}
	defer func() { _ = f.Close() }()
	sum := sha256.New()
	n, err := io.Copy(sum, f)
	return part{
		Entry: Entry{Name: name, Size: n, Digest: kiln.Digest("sha256:" + hex.EncodeToString(sum.Sum(nil)))},
		open:  func() (io.ReadCloser, error) { return os.Open(path) },
	}, err
}

// writePart writes one entry and refuses content that is not what the manifest
// says: a blob that was damaged in the store.
func writePart(ctx context.Context, archive *tar.Writer, p part, at time.Time) error {
	f, err := p.open()
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := archive.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: p.Name, Size: p.Size, Mode: 0o600, ModTime: at.Truncate(time.Second)}); err != nil {
		return err
	}
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(archive, sum), within(ctx, io.LimitReader(f, p.Size)))
	switch {
	case err != nil:
		return fmt.Errorf("back up %s: %w", p.Name, err)
	case n != p.Size, hex.EncodeToString(sum.Sum(nil)) != p.Digest.Hex():
		return kiln.Errorf(kiln.CodeFailed, "kiln up bakes again what a release needs of it; a blob that nothing needs goes with the next collection",
			"%s is damaged on this machine: its content is not what its name says", p.Name)
	}
	return nil
}

// within is a reader that ends with a context.
func within(ctx context.Context, r io.Reader) io.Reader { return contextReader{ctx, r} }

type contextReader struct {
	ctx context.Context //nolint:containedctx // a reader has no other way
	r   io.Reader
}

func (c contextReader) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(b)
}
