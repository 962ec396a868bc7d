package seal

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/durable"
)

// The names of a seal's files, after its key.
const (
	imageSuffix  = ".erofs"
	recordSuffix = ".json"
	mountSuffix  = ".mount.json" // beside the mount
)

// record is what is known of a sealed file; it is written after the file.
type record struct {
	Format  int                 `json:"format"`
	Image   kiln.Digest         `json:"image"`
	Points  []string            `json:"mount_points"`
	Seal    kiln.Digest         `json:"seal"`
	Size    int64               `json:"size"`
	Config  ocispec.ImageConfig `json:"config"`
	Added   []string            `json:"added,omitempty"`
	Dropped drops               `json:"dropped,omitzero"`
}

func (s *Sealer) imagePath(key Key) string {
	return filepath.Join(s.opt.Dir, string(key)+imageSuffix)
}

func (s *Sealer) recordPath(key Key) string {
	return filepath.Join(s.opt.Dir, string(key)+recordSuffix)
}

func (s *Sealer) mountDir(key Key) string { return filepath.Join(s.opt.MountDir, string(key)) }

func (s *Sealer) mountRecordPath(key Key) string {
	return filepath.Join(s.opt.MountDir, string(key)+mountSuffix)
}

// errUnsigned is a record that this machine did not sign as it is.
var errUnsigned = errors.New("the record is not signed by this machine")

// maxRecord bounds a record's file in bytes. Most of it is the image's config.
const maxRecord = 32 << 20

// load reads the record that a file is mounted by, and checks that it was
// signed here.
func (s *Sealer) load(ctx context.Context, key Key) (record, error) {
	r, payload, signature, err := s.read(key)
	if err != nil || s.opt.Signer == nil {
		return r, err
	}
	if len(signature) == 0 {
		return r, errUnsigned
	}
	if err := s.opt.Signer.Check(ctx, payload, signature); err != nil {
		return r, fmt.Errorf("%w: %w", errUnsigned, err)
	}
	return r, nil
}

// read reads a record as it is, checks that it belongs to its key, and returns
// the bytes that are signed. The file's first line is the record, the second
// the signature in base64, which a record of an earlier version has not.
func (s *Sealer) read(key Key) (r record, payload, signature []byte, err error) {
	path := s.recordPath(key)
	b, err := readBounded(path)
	if err != nil {
		return r, nil, nil, err
	}
	payload, line, _ := bytes.Cut(b, []byte("\n"))
	if err := json.Unmarshal(payload, &r); err != nil {
		return r, nil, nil, fmt.Errorf("read %s: %w", path, err)
	}
	if _, err := kiln.ParseDigest(string(r.Seal)); err != nil {
		return r, nil, nil, fmt.Errorf("read %s: %w", path, err)
	}
	if r.Format != formatVersion || keyOf(r.Image, r.Points) != key {
		return r, nil, nil, fmt.Errorf("read %s: it belongs to something else", path)
	}
	if signature, err = base64.StdEncoding.Strict().DecodeString(string(line)); err != nil {
		return r, nil, nil, fmt.Errorf("read %s: its signature: %w", path, err)
	}
	return r, payload, signature, nil
}

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxRecord+1))
	if err == nil && len(b) > maxRecord {
		err = fmt.Errorf("read %s: it is larger than %d bytes", path, maxRecord)
	}
	return b, err
}

// save signs and writes the record of a file that was just sealed.
func (s *Sealer) save(ctx context.Context, key Key, r record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("record seal: %w", err)
	}
	if s.opt.Signer != nil {
		signature, err := s.opt.Signer.Sign(ctx, b)
		if err != nil {
			return fmt.Errorf("record seal: %w", err)
		}
		b = append(b, "\n"+base64.StdEncoding.EncodeToString(signature)...)
	}
	if err := durable.Write(s.recordPath(key), b, 0o600); err != nil {
		return fmt.Errorf("record seal: %w", err)
	}
	return nil
}

// hashFile hashes a file from its start, by position, so that the same open
// file can be used for something else afterwards.
func hashFile(ctx context.Context, f *os.File) (kiln.Digest, int64, error) {
	info, err := f.Stat()
	if err != nil {
		return "", 0, err
	}
	sum := sha256.New()
	r := &contextReader{ctx, io.NewSectionReader(f, 0, info.Size())}
	n, err := io.CopyBuffer(sum, struct{ io.Reader }{r}, make([]byte, 1<<20))
	return digestOf(sum), n, err
}
