package seal

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"os"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
)

// built is what build learned on the way.
type built struct {
	config  ocispec.ImageConfig
	added   []string // mount points that the image had not
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
	defer f.close()
	unpacked := opt.Limits.Bytes + slack
	for i, desc := range m.Layers {
		n, err := f.blob(ctx, opt, desc, kiln.Digest(config.RootFS.DiffIDs[i]), unpacked)
		if err != nil {
			return built{}, err
		}
		unpacked -= n
	}
	b := built{config: config.Config, dropped: f.dropped}
	for _, p := range points {
		added, err := addPoint(f.root, p)
		if err != nil {
			return built{}, err
		}
		if added {
			b.added = append(b.added, p)
		}
	}
	if err := errors.Join(s.finish(), writeImage(ctx, out, f.root)); err != nil {
		if known := roomOrContext(err); known != nil {
			return built{}, known
		}
		return built{}, err
	}
	return b, f.sound(ctx, opt.Store)
}

// blob reads one layer's blob and returns the bytes of its tar. It is verified
// here, but for a plain one that is sound so far: that is verified by sound.
func (f *flattener) blob(ctx context.Context, opt Options, desc ocispec.Descriptor, diffID kiln.Digest, limit int64) (int64, error) {
	s, err := openLayer(ctx, opt.Store, opt.known, desc, diffID, limit)
	if err != nil {
		return 0, err
	}
	f.opened = append(f.opened, s)
	a := &layerTar{Reader: tar.NewReader(s.tar), read: s.tar.count}
	if s.plain {
		a.plain = s.file
	}
	err = f.layerAt(ctx, kiln.Digest(desc.Digest), a)
	switch {
	case err != nil && !s.plain:
	case err != nil:
		if damaged := s.sound(ctx, opt.Store); errors.Is(damaged, errDamagedLayer) {
			err = damaged // which says more
		}
	case !s.plain:
		err = s.sound(ctx, opt.Store)
	}
	return s.tar.count(), err
}

// sound verifies a layer. The store removes a damaged one, so that the next
// bake finds it missing.
func (s *layerStream) sound(ctx context.Context, store Store) error {
	err := s.verify(ctx)
	if errors.Is(err, errDamagedLayer) {
		err = errors.Join(err, store.Verify(ctx, kiln.Digest(s.desc.Digest)))
	}
	return err
}

// sound verifies the plain layers.
func (f *flattener) sound(ctx context.Context, store Store) error {
	for _, s := range f.opened {
		if !s.plain {
			continue
		}
		if err := s.sound(ctx, store); err != nil {
			return err
		}
	}
	return nil
}

// close closes the layers, once no content of them is needed any more.
func (f *flattener) close() {
	for _, s := range f.opened {
		s.close()
	}
}

// seal builds an image's file under a temporary name and gives it its own.
// The file has no record yet: New would remove it. It is not flushed to the
// disk, which would cost more than all the rest: after a power cut the digest
// in the record tells what is missing, and the image is sealed again.
func (s *Sealer) seal(ctx context.Context, key Key, manifest kiln.Digest, points []string) (record, error) {
	temp, err := os.CreateTemp(s.opt.Dir, ".seal-*")
	if err != nil {
		return record{}, fmt.Errorf("seal: %w", err)
	}
	defer func() { _ = os.Remove(temp.Name()) }() // gone already once renamed
	b, err := build(ctx, s.opt, manifest, points, temp)
	if err = errors.Join(err, temp.Chmod(0o400), temp.Close()); err != nil {
		return record{}, err
	}
	if err := os.Rename(temp.Name(), s.imagePath(key)); err != nil {
		return record{}, fmt.Errorf("seal: %w", err)
	}
	return record{Format: formatVersion, Image: manifest, Points: points, Config: b.config, Added: b.added, Dropped: b.dropped}, nil
}
