package seal

import (
	"context"
	"crypto/sha256"
	"encoding/json"
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

// load reads a record and checks that it belongs to its key.
func (s *Sealer) load(key Key) (record, error) {
	var r record
	b, err := os.ReadFile(s.recordPath(key))
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("read %s: %w", s.recordPath(key), err)
	}
	if _, err := kiln.ParseDigest(string(r.Seal)); err != nil {
		return r, fmt.Errorf("read %s: %w", s.recordPath(key), err)
	}
	if r.Format != formatVersion || keyOf(r.Image, r.Points) != key {
		return r, fmt.Errorf("read %s: it belongs to something else", s.recordPath(key))
	}
	return r, nil
}

func (s *Sealer) save(key Key, r record) error {
	b, err := json.Marshal(r)
	if err == nil {
		err = durable.Write(s.recordPath(key), b, 0o600)
	}
	if err != nil {
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
