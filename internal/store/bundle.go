package store

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
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
	needed := s.newMarks()
	if err := needed.bundle(b); err != nil {
		return "", fmt.Errorf("put bundle: %w", err)
	}
	if missing := s.Missing(slices.Sorted(maps.Keys(needed.set))); len(missing) > 0 {
		return "", kiln.Errorf(kiln.CodeNotFound, "bake again what needs it", "put bundle: %s is not in the store (%d of its blobs are not)", missing[0], len(missing))
	}
	a, err := s.artifact(b)
	if err != nil {
		return "", fmt.Errorf("put bundle: %w", err)
	}
	if err := s.putArtifact(ctx, a); err != nil {
		return "", fmt.Errorf("put bundle: %w", err)
	}
	if err := s.Tag(ctx, a.desc, annotations[ocispec.AnnotationRefName], annotations); err != nil {
		return "", fmt.Errorf("put bundle: %w", err)
	}
	return kiln.Digest(a.desc.Digest), nil
}

// putArtifact stores what of a bundle is not there whole. Written last, the
// manifest says that all the rest was made durable.
func (s *Store) putArtifact(ctx context.Context, a artifact) error {
	contents := [][]byte{a.layer, a.config, a.manifest}
	whole := true
	for _, c := range contents {
		whole = s.Verify(ctx, kiln.DigestOf(c)) == nil && whole
	}
	if whole {
		return nil
	}
	if err := s.Sync(); err != nil {
		return err
	}
	for _, c := range contents {
		if _, _, err := s.Put(ctx, bytes.NewReader(c), ""); err != nil {
			return err
		}
	}
	return nil
}

// BundleDigest returns what PutBundle would, and puts nothing. The bundle's
// files must be in the store.
func (s *Store) BundleDigest(b kiln.Bundle) (kiln.Digest, error) {
	if err := checkBundle(b); err != nil {
		return "", err
	}
	a, err := s.artifact(b)
	if err != nil {
		return "", fmt.Errorf("describe bundle: %w", err)
	}
	return kiln.Digest(a.desc.Digest), nil
}

// artifact is a bundle as OCI blobs.
type artifact struct {
	layer, config, manifest []byte
	desc                    ocispec.Descriptor // of the manifest
}

func (s *Store) artifact(b kiln.Bundle) (artifact, error) {
	var a artifact
	var err error
	if a.layer, err = s.bundleLayer(b.Files); err != nil {
		return a, err
	}
	if a.config, err = json.Marshal(b); err != nil {
		return a, err
	}
	a.manifest, err = json.Marshal(ocispec.Manifest{
		Versioned:    specs.Versioned{SchemaVersion: 2},
		MediaType:    ocispec.MediaTypeImageManifest,
		ArtifactType: MediaTypeBundle,
		Config:       describe(MediaTypeBundleConfig, a.config),
		Layers:       []ocispec.Descriptor{describe(ocispec.MediaTypeImageLayer, a.layer)},
	})
	a.desc = describe(ocispec.MediaTypeImageManifest, a.manifest)
	a.desc.ArtifactType = MediaTypeBundle
	return a, err
}

func describe(mediaType string, b []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.Digest(kiln.DigestOf(b)), Size: int64(len(b))}
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

// bundleLayer writes the files of a definition as a tar in which only names,
// contents and the executable bit count.
func (s *Store) bundleLayer(files kiln.Tree) ([]byte, error) {
	var total int64
	for _, e := range files.Entries {
		if total += e.Size; total > maxBundle {
			return nil, kiln.Errorf(kiln.CodeInvalid, "keep large files in a context", "the definition's files have more than %d bytes", maxBundle)
		}
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range files.Entries {
		if err := s.tarEntry(w, e); err != nil {
			return nil, fmt.Errorf("%s: %w", e.Path, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
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
