package store

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
)

// maxDocument bounds in bytes what is read into memory: manifests, indexes,
// configs. It is four times what registries accept.
const maxDocument = 16 << 20

// Manifest reads an image's manifest and verifies its digest.
func (s *Store) Manifest(_ context.Context, d kiln.Digest) (ocispec.Manifest, error) {
	var m ocispec.Manifest
	b, err := s.document(d)
	if err != nil {
		return m, fmt.Errorf("read manifest: %w", err)
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, kiln.Errorf(kiln.CodeInvalid, "", "read manifest %s: %w", d, err)
	}
	if m.SchemaVersion != 2 || m.Config.Digest == "" {
		return m, kiln.Errorf(kiln.CodeInvalid, "name the manifest of one platform", "%s is not the manifest of an image", d)
	}
	return m, nil
}

// Config reads the configuration of the image whose manifest is named, and
// verifies both digests.
func (s *Store) Config(ctx context.Context, manifest kiln.Digest) (ocispec.Image, error) {
	var image ocispec.Image
	m, err := s.Manifest(ctx, manifest)
	if err != nil {
		return image, err
	}
	b, err := s.document(kiln.Digest(m.Config.Digest))
	if err != nil {
		return image, fmt.Errorf("read config of image %s: %w", manifest, err)
	}
	if err := json.Unmarshal(b, &image); err != nil {
		return image, kiln.Errorf(kiln.CodeInvalid, "get the image again from who made it", "read config of image %s: %w", manifest, err)
	}
	return image, nil
}

// Document reads a small blob, at most 16 MiB, and verifies its digest.
func (s *Store) Document(_ context.Context, d kiln.Digest) ([]byte, error) { return s.document(d) }

// document reads and verifies, and counts as a use.
func (s *Store) document(d kiln.Digest) ([]byte, error) {
	f, err := s.Open(d)
	if err != nil {
		return nil, err
	}
	return readDocument(f, d)
}

// errDamaged is a blob whose content is not what its name says.
var errDamaged = errors.New("is damaged")

func readDocument(f *os.File, d kiln.Digest) ([]byte, error) {
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxDocument+1))
	if err != nil {
		return nil, fmt.Errorf("read blob %s: %w", d, err)
	}
	if len(b) > maxDocument {
		return nil, kiln.Errorf(kiln.CodeInvalid, "", "blob %s is larger than %d bytes", d, maxDocument)
	}
	if got := kiln.DigestOf(b); got != d {
		return nil, kiln.Errorf(kiln.CodeInvalid, "bake again what needs it", "blob %s %w: its content has the digest %s", d, errDamaged, got)
	}
	return b, nil
}

// Verify hashes a blob. One that is damaged is removed, so that it is missing
// and the next Put or bake brings it again; the error says so.
func (s *Store) Verify(ctx context.Context, d kiln.Digest) error {
	f, err := s.Open(d)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	sum := sha256.New()
	if _, err := copyBlob(ctx, io.Discard, sum, f, math.MaxInt64); err != nil {
		return fmt.Errorf("verify blob %s: %w", d, err)
	}
	if got := digestOf(sum); got != d {
		damage := kiln.Errorf(kiln.CodeNotFound, "bake again what needs it", "blob %s was damaged and is removed: its content had the digest %s", d, got)
		return errors.Join(damage, os.Remove(f.Name()))
	}
	return nil
}

// Intact hashes all of an image: its manifest, its configuration and its layers.
// What is damaged is removed, as Verify does it, so that the next bake brings it
// again.
func (s *Store) Intact(ctx context.Context, manifest kiln.Digest) error {
	if err := s.Verify(ctx, manifest); err != nil {
		return err
	}
	m, err := s.Manifest(ctx, manifest)
	if err != nil {
		return err
	}
	var errs []error
	for _, part := range append([]ocispec.Descriptor{m.Config}, m.Layers...) {
		errs = append(errs, s.Verify(ctx, kiln.Digest(part.Digest)))
	}
	return errors.Join(errs...)
}
