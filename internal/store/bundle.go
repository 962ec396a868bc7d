package store

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
)

// The media types of a bundle.
const (
	MediaTypeBundle       = "application/vnd.kiln.bundle.v1+json"
	MediaTypeBundleConfig = "application/vnd.kiln.bundle.config.v1+json"
)

// maxBundle bounds in bytes the files of a definition, all together.
const maxBundle = 64 << 20

// PutBundle writes a bundle as an OCI artifact and returns the digest of its
// manifest, which follows from the bundle alone. Its files and images must be
// in the store. The annotations, such as the commit, go to the entry in
// index.json; those of an earlier put of the same bundle are replaced. All
// that the bundle needs is durable when PutBundle returns.
func (s *Store) PutBundle(ctx context.Context, b kiln.Bundle, annotations map[string]string) (kiln.Digest, error) {
	if err := checkBundle(b); err != nil {
		return "", err
	}
	release, err := s.Hold(ctx)
	if err != nil {
		return "", err
	}
	defer release()
	if missing := s.Missing(bundleBlobs(b)); len(missing) > 0 {
		return "", kiln.Errorf(kiln.CodeNotFound, "bake again what needs it", "put bundle: %s is not in the store (%d of its blobs are not)", missing[0], len(missing))
	}
	if err := s.Sync(); err != nil {
		return "", err
	}
	layer, err := s.bundleLayer(ctx, b.Files)
	if err != nil {
		return "", fmt.Errorf("put bundle: %w", err)
	}
	config, err := s.putJSON(ctx, MediaTypeBundleConfig, b)
	if err != nil {
		return "", fmt.Errorf("put bundle: %w", err)
	}
	desc, err := s.putJSON(ctx, ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned:    specs.Versioned{SchemaVersion: 2},
		MediaType:    ocispec.MediaTypeImageManifest,
		ArtifactType: MediaTypeBundle,
		Config:       config,
		Layers:       []ocispec.Descriptor{layer},
	})
	if err != nil {
		return "", fmt.Errorf("put bundle: %w", err)
	}
	desc.ArtifactType = MediaTypeBundle
	name := annotations[ocispec.AnnotationRefName]
	if err := s.Tag(ctx, desc, name, annotations); err != nil {
		return "", fmt.Errorf("put bundle: %w", err)
	}
	return kiln.Digest(desc.Digest), nil
}

// Bundle reads a bundle back. It refuses what PutBundle would not have
// written: other media types, unknown or reordered fields, a tree that climbs.
func (s *Store) Bundle(ctx context.Context, d kiln.Digest) (kiln.Bundle, error) {
	m, err := s.Manifest(ctx, d)
	if err != nil {
		return kiln.Bundle{}, fmt.Errorf("read bundle: %w", err)
	}
	if m.ArtifactType != MediaTypeBundle || m.Config.MediaType != MediaTypeBundleConfig || len(m.Layers) != 1 {
		return kiln.Bundle{}, kiln.Errorf(kiln.CodeInvalid, "", "%s is not a bundle", d)
	}
	raw, err := s.document(kiln.Digest(m.Config.Digest))
	if err != nil {
		return kiln.Bundle{}, fmt.Errorf("read bundle %s: %w", d, err)
	}
	return decodeBundle(d, raw)
}

func decodeBundle(d kiln.Digest, raw []byte) (kiln.Bundle, error) {
	var b kiln.Bundle
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&b); err != nil {
		return kiln.Bundle{}, kiln.Errorf(kiln.CodeInvalid, "", "read bundle %s: %w", d, err)
	}
	if canonical, err := json.Marshal(b); err != nil || !bytes.Equal(canonical, raw) {
		return kiln.Bundle{}, kiln.Errorf(kiln.CodeInvalid, "", "read bundle %s: its JSON is not canonical", d)
	}
	if err := checkBundle(b); err != nil {
		return kiln.Bundle{}, fmt.Errorf("read bundle %s: %w", d, err)
	}
	return b, nil
}

// checkBundle refuses what cannot be a bundle.
func checkBundle(b kiln.Bundle) error {
	if err := CheckTree(b.Files); err != nil {
		return err
	}
	last := ""
	for _, image := range b.Images {
		if image.Name <= last {
			return kiln.Errorf(kiln.CodeInvalid, "", "bundle: image %q is out of order or twice there", image.Name)
		}
		last = image.Name
		if image.Platform == "" {
			return kiln.Errorf(kiln.CodeInvalid, "", "bundle: image %q has no platform", image.Name)
		}
		for _, d := range append([]kiln.Digest{image.Manifest}, image.Debs...) {
			if _, err := kiln.ParseDigest(string(d)); err != nil {
				return kiln.Errorf(kiln.CodeInvalid, "", "bundle: image %q: %w", image.Name, err)
			}
		}
	}
	return nil
}

// bundleBlobs lists what a bundle names directly.
func bundleBlobs(b kiln.Bundle) []kiln.Digest {
	var all []kiln.Digest
	for _, e := range b.Files.Entries {
		if e.Digest != "" {
			all = append(all, e.Digest)
		}
	}
	for _, image := range b.Images {
		all = append(all, image.Manifest)
		all = append(all, image.Debs...)
	}
	return all
}

// bundleLayer writes the files of a definition as a tar in which only names,
// contents and the executable bit count.
func (s *Store) bundleLayer(ctx context.Context, files kiln.Tree) (ocispec.Descriptor, error) {
	var total int64
	for _, e := range files.Entries {
		if total += e.Size; total > maxBundle {
			return ocispec.Descriptor{}, kiln.Errorf(kiln.CodeInvalid, "keep large files in a context", "the definition's files have more than %d bytes", maxBundle)
		}
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range files.Entries {
		if err := s.tarEntry(w, e); err != nil {
			return ocispec.Descriptor{}, fmt.Errorf("%s: %w", e.Path, err)
		}
	}
	if err := w.Close(); err != nil {
		return ocispec.Descriptor{}, err
	}
	return s.putBytes(ctx, ocispec.MediaTypeImageLayer, buf.Bytes())
}

func (s *Store) tarEntry(w *tar.Writer, e kiln.TreeEntry) error {
	h := &tar.Header{Name: e.Path, Mode: 0o644, ModTime: time.Unix(0, 0)}
	if e.Mode&0o111 != 0 || e.Mode.IsDir() {
		h.Mode = 0o755
	}
	switch e.Mode.Type() {
	case fs.ModeDir:
		h.Typeflag, h.Name = tar.TypeDir, e.Path+"/"
	case fs.ModeSymlink:
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, e.Link, 0o777
	default:
		h.Typeflag, h.Size = tar.TypeReg, e.Size
	}
	if err := w.WriteHeader(h); err != nil || h.Typeflag != tar.TypeReg {
		return err
	}
	f, err := s.Open(e.Digest)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	n, err := io.Copy(w, io.LimitReader(f, e.Size))
	if err == nil && n != e.Size {
		err = kiln.Errorf(kiln.CodeInvalid, "", "blob %s has %d bytes, not %d", e.Digest, n, e.Size)
	}
	return err
}

func (s *Store) putBytes(ctx context.Context, mediaType string, b []byte) (ocispec.Descriptor, error) {
	d := kiln.DigestOf(b)
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.Digest(d), Size: int64(len(b))}
	if old, err := s.document(d); err == nil && bytes.Equal(old, b) {
		return desc, nil
	}
	_, _, err := s.Put(ctx, bytes.NewReader(b), d)
	return desc, err
}
