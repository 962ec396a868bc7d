package seal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
)

// built is what build learned on the way.
type built struct {
	config  ocispec.ImageConfig
	dropped drops
}

// build flattens an image and writes it to an empty file. Temporary contents
// go to the folder dir. Nothing else is touched.
func build(ctx context.Context, opt Options, manifest kiln.Digest, points []string, out *os.File) (built, error) {
	m, err := opt.Store.Manifest(ctx, manifest)
	if err != nil {
		return built{}, err
	}
	config, err := opt.Store.Config(ctx, manifest)
	if err != nil {
		return built{}, err
	}
	if len(m.Layers) != len(config.RootFS.DiffIDs) {
		return built{}, kiln.Errorf(kiln.CodeInvalid, "bake the image again",
			"the image has %d layers and its config names %d", len(m.Layers), len(config.RootFS.DiffIDs))
	}
	s, err := newSpool(opt.Dir)
	if err != nil {
		return built{}, err
	}
	defer func() { _ = s.close() }() // it has no name and is only read by now
	f := newFlattener(s, opt.Limits)
	unpacked := opt.Limits.Bytes + slack
	for i, desc := range m.Layers {
		n, err := f.blob(ctx, opt.Store, desc, kiln.Digest(config.RootFS.DiffIDs[i]), unpacked)
		if err != nil {
			return built{}, err
		}
		unpacked -= n
	}
	for _, p := range points {
		if err := addPoint(f.root, p); err != nil {
			return built{}, err
		}
	}
	if err := writeImage(ctx, out, f.root, s); err != nil {
		if known := roomOrContext(err); known != nil {
			return built{}, known
		}
		return built{}, err
	}
	return built{config.Config, f.dropped}, nil
}

// blob reads one layer's blob, verifies it, and returns the bytes of its tar.
func (f *flattener) blob(ctx context.Context, store Store, desc ocispec.Descriptor, diffID kiln.Digest, limit int64) (int64, error) {
	s, err := openLayer(store, desc, diffID, limit)
	if err != nil {
		return 0, err
	}
	counted := &countingReader{r: s.tar}
	err = f.layer(ctx, kiln.Digest(desc.Digest), counted)
	if err == nil {
		err = s.verify(ctx)
	}
	if err = errors.Join(err, s.close()); err != nil {
		return 0, err
	}
	return counted.n, nil
}

type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// seal builds an image's file under a temporary name, makes it durable and
// gives it its name and record.
func (s *Sealer) seal(ctx context.Context, key Key, manifest kiln.Digest, points []string) (record, error) {
	temp, err := os.CreateTemp(s.opt.Dir, ".seal-*")
	if err != nil {
		return record{}, fmt.Errorf("seal: %w", err)
	}
	defer func() { _ = os.Remove(temp.Name()) }() // gone already once renamed
	b, err := build(ctx, s.opt, manifest, points, temp)
	if err == nil {
		err = errors.Join(temp.Chmod(0o400), temp.Sync())
	}
	var digest kiln.Digest
	var size int64
	if err == nil {
		digest, size, err = hashFile(ctx, temp)
	}
	if err = errors.Join(err, temp.Close()); err != nil {
		return record{}, err
	}
	if err := os.Rename(temp.Name(), s.imagePath(key)); err != nil {
		return record{}, fmt.Errorf("seal: %w", err)
	}
	r := record{Format: formatVersion, Image: manifest, Points: points, Seal: digest, Size: size, Config: b.config, Dropped: b.dropped}
	if err := s.save(key, r); err != nil {
		return record{}, err
	}
	s.opt.Log.InfoContext(ctx, "image is sealed", "image", string(manifest), "seal", string(digest), "bytes", size)
	return r, nil
}
