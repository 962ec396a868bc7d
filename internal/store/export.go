package store

import (
	"archive/tar"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
)

// Export makes an image layout in an empty folder that holds one image and
// nothing else, and the same as a tar archive beside it. Blobs are linked where
// the file system can, and copied otherwise.
func (s *Store) Export(ctx context.Context, manifest kiln.Digest, layout, archive string) error {
	desc, err := s.describe(manifest)
	if err != nil {
		return fmt.Errorf("export image: %w", err)
	}
	needed := s.newMarks()
	if err := needed.root(manifest); err != nil {
		return fmt.Errorf("export image: %w", err)
	}
	small, err := layoutFiles(desc)
	if err != nil {
		return fmt.Errorf("export image: %w", err)
	}
	if err := s.exportLayout(ctx, layout, small, needed); err != nil {
		return fmt.Errorf("export image %s: %w", manifest.Short(), err)
	}
	f, err := os.OpenFile(archive, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("export image: %w", err)
	}
	err = s.exportArchive(ctx, f, small, needed)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("export image %s: %w", manifest.Short(), err)
	}
	return nil
}

// layoutFiles are the files of a layout besides its blobs.
func layoutFiles(desc ocispec.Descriptor) (map[string][]byte, error) {
	version, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return nil, err
	}
	index, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{desc},
	})
	return map[string][]byte{ocispec.ImageLayoutFile: version, ocispec.ImageIndexFile: index}, err
}

func (s *Store) exportLayout(ctx context.Context, dir string, small map[string][]byte, needed *marks) error {
	blobs := filepath.Join(dir, ocispec.ImageBlobsDir, "sha256")
	if err := os.MkdirAll(blobs, 0o700); err != nil {
		return err
	}
	for name, content := range small {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return err
		}
	}
	for d := range needed.set {
		if err := ctx.Err(); err != nil {
			return err
		}
		from, err := s.blobPath(d)
		if err != nil {
			return err
		}
		to := filepath.Join(blobs, d.Hex())
		if os.Link(from, to) == nil {
			continue
		}
		if err := s.copyBlob(d, to); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) copyBlob(d kiln.Digest, to string) error {
	from, err := s.openQuietly(d)
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, from)
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	return err
}

func (s *Store) exportArchive(ctx context.Context, to io.Writer, small map[string][]byte, needed *marks) error {
	w := tar.NewWriter(to)
	for _, name := range slices.Sorted(maps.Keys(small)) {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(small[name])), ModTime: time.Unix(0, 0)}); err != nil {
			return err
		}
		if _, err := w.Write(small[name]); err != nil {
			return err
		}
	}
	for _, d := range slices.Sorted(maps.Keys(needed.set)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.archiveBlob(w, d); err != nil {
			return err
		}
	}
	return w.Close()
}

func (s *Store) archiveBlob(w *tar.Writer, d kiln.Digest) error {
	f, err := s.openQuietly(d)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := w.WriteHeader(&tar.Header{Name: ocispec.ImageBlobsDir + "/sha256/" + d.Hex(), Mode: 0o644, Size: info.Size(), ModTime: time.Unix(0, 0)}); err != nil {
		return err
	}
	_, err = io.Copy(w, f)
	return err
}
