package layout

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
)

// savedName lists the images of an archive of docker save
// (github.com/moby/docker-image-spec, "Combined Image JSON + Filesystem Changeset Format").
const savedName = "manifest.json"

// saved is the image of an archive of docker save: its manifest is made of what
// the archive has.
func (l *Layout) saved(ctx context.Context) (Image, error) {
	var all []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	err := l.read(savedName, &all)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Image{}, l.bad("it has neither %s, as an OCI layout, nor %s, as an archive of docker save", ocispec.ImageIndexFile, savedName)
	case err != nil:
		return Image{}, l.bad("%s: %w", savedName, err)
	case len(all) == 0:
		return Image{}, l.bad("%s names no image", savedName)
	case len(all) > 1:
		var names []string
		for _, one := range all {
			names = append(names, strings.Join(one.RepoTags, " "))
		}
		return Image{}, kiln.Errorf(kiln.CodeInvalid, "save one image alone", "%s has several images: %s", l.path, strings.Join(names, ", "))
	case len(all[0].Layers) > maxEntries:
		return Image{}, l.bad("it has more than %d layers", maxEntries)
	}
	config, err := l.bytes(all[0].Config)
	if err != nil {
		return Image{}, l.bad("the configuration %q: %w", all[0].Config, err)
	}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.Digest(kiln.DigestOf(config)), Size: int64(len(config))},
	}
	out := Image{Blobs: []Blob{memory(nil), memory(config)}}
	for _, name := range all[0].Layers {
		d, size, err := l.hash(ctx, name)
		if err != nil {
			return Image{}, l.bad("the layer %q: %w", name, err)
		}
		mediaType, err := l.layerType(name)
		if err != nil {
			return Image{}, l.bad("the layer %q: %w", name, err)
		}
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: mediaType, Digest: digest.Digest(d), Size: size})
		out.Blobs = append(out.Blobs, l.blob(name, d, size))
	}
	if err := l.matches(config, m.Layers); err != nil {
		return Image{}, err
	}
	manifest, err := json.Marshal(m)
	if err != nil {
		return Image{}, err
	}
	out.Digest, out.Blobs[0] = kiln.DigestOf(manifest), memory(manifest)
	return out, nil
}

func memory(b []byte) Blob {
	return Blob{kiln.DigestOf(b), int64(len(b)), func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }}
}

// layerType is the media type of a layer, which docker save does not say.
func (l *Layout) layerType(name string) (string, error) {
	f, err := l.files.open(name)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }() // it was only read
	var magic [2]byte
	if n, err := f.ReadAt(magic[:], 0); err != nil && n < len(magic) {
		return ocispec.MediaTypeImageLayer, nil // an empty one
	}
	if magic == [2]byte{0x1f, 0x8b} {
		return ocispec.MediaTypeImageLayerGzip, nil
	}
	return ocispec.MediaTypeImageLayer, nil
}

// matches says whether the layers are those that the configuration names. One
// that is packed is compared when it is unpacked.
func (l *Layout) matches(config []byte, layers []ocispec.Descriptor) error {
	var c ocispec.Image
	if err := json.Unmarshal(config, &c); err != nil {
		return l.bad("its configuration: %w", err)
	}
	if len(c.RootFS.DiffIDs) != len(layers) {
		return l.bad("it has %d layers, and its configuration names %d", len(layers), len(c.RootFS.DiffIDs))
	}
	for i, layer := range layers {
		if layer.MediaType == ocispec.MediaTypeImageLayer && layer.Digest != c.RootFS.DiffIDs[i] {
			return l.bad("layer %d has other content: its digest is %s, and the configuration says %s", i+1, layer.Digest, c.RootFS.DiffIDs[i])
		}
	}
	return nil
}
