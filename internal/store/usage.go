package store

import (
	"context"
	"fmt"
	"io/fs"
	"path/filepath"
)

// Usage is the room that the store takes on disk.
type Usage struct {
	Blobs int   `json:"blobs"`
	Bytes int64 `json:"bytes"` // of the blobs
	// Unfinished are the bytes of blobs that are being written, or were when
	// their writer died.
	Unfinished int64 `json:"unfinished"`
}

// Usage measures the store.
func (s *Store) Usage(ctx context.Context) (Usage, error) {
	blobs, err := s.blobs(ctx)
	if err != nil {
		return Usage{}, fmt.Errorf("measure store: %w", err)
	}
	u := Usage{Blobs: len(blobs)}
	for _, b := range blobs {
		u.Bytes += b.size
	}
	for _, name := range []string{"tmp", "ingest"} {
		// What vanishes while it is measured is not there any more.
		_ = filepath.WalkDir(filepath.Join(s.dir, name), func(_ string, d fs.DirEntry, err error) error {
			if err != nil {
				return nil // see above
			}
			if info, err := d.Info(); err == nil && info.Mode().IsRegular() {
				u.Unfinished += info.Size()
			}
			return nil
		})
	}
	return u, nil
}
