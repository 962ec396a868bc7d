package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
)

// Listed is a blob of the store.
type Listed struct {
	Digest kiln.Digest
	Size   int64
	// Bundle is true for what bundles themselves consist of: not their images.
	Bundle bool
}

// List returns every blob, by digest, and index.json as it is. Whoever needs
// what it names later takes a Hold before.
func (s *Store) List(ctx context.Context) ([]Listed, []byte, error) {
	raw, err := os.ReadFile(filepath.Join(s.dir, ocispec.ImageIndexFile))
	if err != nil {
		return nil, nil, fmt.Errorf("list store: %w", err)
	}
	var index ocispec.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, nil, fmt.Errorf("list store: %w", err)
	}
	bundles, err := s.ofBundles(index.Manifests)
	if err != nil {
		return nil, nil, fmt.Errorf("list store: %w", err)
	}
	blobs, err := s.blobs(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("list store: %w", err)
	}
	out := make([]Listed, 0, len(blobs))
	for d, b := range blobs {
		out = append(out, Listed{Digest: d, Size: b.size, Bundle: bundles[d]})
	}
	slices.SortFunc(out, func(a, b Listed) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	return out, raw, nil
}

// Peek is Open without counting as a use of the blob: for what reads all of
// them, such as a backup.
func (s *Store) Peek(d kiln.Digest) (*os.File, error) { return s.openQuietly(d) }

// ofReferrers adds the blobs of what refers to a manifest.
func (s *Store) ofReferrers(subject kiln.Digest, out map[kiln.Digest]bool) error {
	all, err := s.referrersOf(subject)
	if err != nil {
		return err
	}
	own := s.newMarks()
	for _, d := range all {
		if err := own.optional(d); err != nil {
			return err
		}
	}
	maps.Copy(out, own.set)
	return nil
}

// ofBundles are the blobs of the bundles among some entries: manifest, config,
// the files of the definition, and what refers to the bundle.
func (s *Store) ofBundles(entries []ocispec.Descriptor) (map[kiln.Digest]bool, error) {
	out := map[kiln.Digest]bool{}
	for _, e := range entries {
		doc, err := s.parse(kiln.Digest(e.Digest))
		if errors.Is(err, kiln.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if doc.Config == nil || doc.Config.MediaType != MediaTypeBundleConfig {
			continue
		}
		out[kiln.Digest(e.Digest)], out[kiln.Digest(doc.Config.Digest)] = true, true
		for _, l := range doc.Layers {
			out[kiln.Digest(l.Digest)] = true
		}
		if err := s.ofReferrers(kiln.Digest(e.Digest), out); err != nil {
			return nil, err
		}
	}
	return out, nil
}
