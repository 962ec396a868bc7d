package seal

import (
	"context"
	"errors"
	"fmt"
	"os"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
)

// maxLayers bounds the layers of an image, each of which is an open file.
const maxLayers = 1000

// blob is a layer's file in the store.
type blob struct {
	layerInfo
	file *os.File
	sum  *plainSum // of a plain layer
}

type blobs []blob

// openImage opens the layers that an image's manifest and config name, as
// openLayers does, and returns what the config says of running it.
func openImage(ctx context.Context, opt Options, manifest kiln.Digest) (blobs, ocispec.ImageConfig, error) {
	m, err := opt.Store.Manifest(ctx, manifest)
	if err != nil {
		return nil, ocispec.ImageConfig{}, err
	}
	config, err := opt.Store.Config(ctx, manifest)
	if err != nil {
		return nil, ocispec.ImageConfig{}, err
	}
	if len(m.Layers) != len(config.RootFS.DiffIDs) || len(m.Layers) > maxLayers {
		return nil, ocispec.ImageConfig{}, kiln.Errorf(kiln.CodeInvalid, "bake the image again",
			"the image has %d layers and its config names %d; %d are the most", len(m.Layers), len(config.RootFS.DiffIDs), maxLayers)
	}
	all, err := openLayers(ctx, opt, m, config)
	return all, config.Config, err
}

// openLayers opens the layers of an image and begins to hash the plain ones.
// What was opened is returned with an error, too.
func openLayers(ctx context.Context, opt Options, m ocispec.Manifest, config ocispec.Image) (blobs, error) {
	var all blobs
	for i, desc := range m.Layers {
		l := layerInfo{Digest: kiln.Digest(desc.Digest), Size: desc.Size, MediaType: desc.MediaType, DiffID: kiln.Digest(config.RootFS.DiffIDs[i])}
		f, err := opt.Store.Open(l.Digest)
		if err != nil {
			return all, fmt.Errorf("layer %s: %w", l.Digest, err)
		}
		b := blob{layerInfo: l, file: f}
		if info, err := f.Stat(); err != nil || info.Size() != l.Size {
			return all, errors.Join(kiln.Errorf(kiln.CodeInvalid, "bake the image again", "layer %s is damaged: it has not the %d bytes of the manifest", l.Digest, l.Size), err, f.Close())
		}
		if l.plain() {
			b.sum = opt.known.sum(ctx, f, l.Digest)
		}
		all = append(all, b)
	}
	return all, nil
}

// sound verifies the plain layers and returns err, or what is wrong with a
// layer, which says more. The store removes what is damaged, so that the next
// bake finds it missing.
func (all blobs) sound(ctx context.Context, store Store, damaged kiln.Digest, err error) error {
	if roomOrContext(err) != nil || errors.Is(err, kiln.ErrNoRoom) {
		return err
	}
	if damaged != "" {
		return errors.Join(err, store.Verify(ctx, damaged))
	}
	for _, b := range all {
		if b.sum == nil {
			continue
		}
		digest, serr := b.sum.wait(ctx)
		if serr != nil {
			return refuse(b.Digest, "(end)", serr)
		}
		serr = b.compare(digest, digest)
		if errors.Is(serr, errDamagedLayer) {
			return errors.Join(serr, store.Verify(ctx, b.Digest))
		}
		err = errors.Join(err, serr)
	}
	return err
}

func (all blobs) close() {
	for _, b := range all {
		if b.sum != nil {
			b.sum.stop()
		}
		_ = b.file.Close() // it was only read
	}
}
