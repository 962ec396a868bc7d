package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
)

const (
	// shortest is the number of hex digits from which on the beginning of a
	// digest names an image.
	shortest = 12
	// maxNested is how deep an index may be in others, and maxEntries how many
	// manifests it may name.
	maxNested  = 4
	maxEntries = 1000
)

// Find returns the manifest or the index that a name stands for, a digest, or
// the beginning of the digest of one that has a name: 12 hex digits or more. The
// error matches kiln.ErrNotFound where there is none.
func (s *Store) Find(ctx context.Context, name string) (kiln.Digest, error) {
	if d, err := kiln.ParseDigest(name); err == nil {
		return d, nil
	}
	index, err := s.Index(ctx)
	if err != nil {
		return "", err
	}
	called := strings.TrimSuffix(name, ":"+untagged)
	hex := strings.TrimPrefix(name, "sha256:")
	byDigest := len(hex) >= shortest && strings.Trim(hex, "0123456789abcdef") == ""
	var found []kiln.Digest
	for _, e := range index.Manifests {
		d := kiln.Digest(e.Digest)
		if e.Annotations[ocispec.AnnotationRefName] == called {
			return d, nil
		}
		if byDigest && strings.HasPrefix(d.Hex(), hex) && !slices.Contains(found, d) {
			found = append(found, d)
		}
	}
	switch len(found) {
	case 0:
		return "", kiln.Errorf(kiln.CodeNotFound, "kiln bake makes the images of a definition", "there is no image %q", name)
	case 1:
		return found[0], nil
	}
	return "", kiln.Errorf(kiln.CodeInvalid, "give more digits of it", "%d images have a digest that begins with %s", len(found), hex)
}

// Image returns the manifest of the image of a platform ("linux/amd64") that a
// manifest or an index stands for, once it is known to be there whole: its
// configuration and all its layers, by their sizes. An image of one platform
// alone is returned whatever its platform.
func (s *Store) Image(_ context.Context, d kiln.Digest, platform string) (kiln.Digest, error) {
	c := chooser{store: s, top: d, platform: platform, seen: map[kiln.Digest]bool{}}
	return c.choose(d, maxNested)
}

// chooser finds the image of a platform below an index.
type chooser struct {
	store    *Store
	top      kiln.Digest
	platform string
	seen     map[kiln.Digest]bool
	has      []string // platforms of other images
}

func (c *chooser) choose(d kiln.Digest, depth int) (kiln.Digest, error) {
	if c.seen[d] {
		return "", c.none()
	}
	c.seen[d] = true
	raw, err := c.store.document(d)
	if err != nil {
		return "", unfound(d, c.top, err)
	}
	var doc document
	if err := json.Unmarshal(raw, &doc); err != nil || doc.Config == nil && doc.Manifests == nil {
		return "", kiln.Errorf(kiln.CodeInvalid, "name an image", "%s is neither the manifest of an image nor an index of some", d)
	}
	switch {
	case doc.Config != nil:
		return d, c.store.whole(d, doc)
	case depth == 0 || len(doc.Manifests) > maxEntries:
		return "", kiln.Errorf(kiln.CodeInvalid, "name the image itself", "the index %s has more than %d images, or indexes in it that are more than %d deep", c.top, maxEntries, maxNested)
	}
	for _, e := range doc.Manifests {
		if !c.fits(e, len(doc.Manifests) == 1) {
			continue
		}
		found, err := c.choose(kiln.Digest(e.Digest), depth-1)
		if err == nil || !errors.Is(err, errPlatform) {
			return found, err
		}
	}
	return "", c.none()
}

// fits says whether an entry of an index is the image, or may have it in it.
func (c *chooser) fits(e ocispec.Descriptor, alone bool) bool {
	switch {
	case !kiln.MayBeImage(e.ArtifactType):
		return false
	case e.Platform == nil:
		return alone || isIndex(e.MediaType)
	case platformOf(*e.Platform) == c.platform, e.Platform.OS+"/"+e.Platform.Architecture == c.platform:
		return true
	}
	c.has = append(c.has, platformOf(*e.Platform))
	return false
}

func (c *chooser) none() error {
	hint := "name the image itself"
	slices.Sort(c.has)
	if c.has = slices.Compact(c.has); len(c.has) > 0 {
		hint = "it has " + strings.Join(c.has, ", ") + "; --platform chooses one"
	}
	return &kiln.Error{Code: kiln.CodeNotFound, Hint: hint, Message: fmt.Sprintf("%s has no image for %s", c.top, c.platform), Err: errPlatform}
}

// errPlatform is in the error of an index without an image for a platform.
var errPlatform = errors.New("no such platform")

func isIndex(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageIndex || mediaType == "application/vnd.docker.distribution.manifest.list.v2+json"
}

func platformOf(p ocispec.Platform) string {
	if p.Variant != "" {
		return p.OS + "/" + p.Architecture + "/" + p.Variant
	}
	return p.OS + "/" + p.Architecture
}

// whole says what is missing of an image.
func (s *Store) whole(d kiln.Digest, doc document) error {
	if !slices.Contains(kiln.ImageConfigTypes(), doc.Config.MediaType) {
		return kiln.Errorf(kiln.CodeInvalid, "name the image itself", "%s is no image: its configuration is of the type %q", d, doc.Config.MediaType)
	}
	for _, part := range append([]ocispec.Descriptor{*doc.Config}, doc.Layers...) {
		f, err := s.openQuietly(kiln.Digest(part.Digest))
		if err != nil {
			return unfound(kiln.Digest(part.Digest), d, err)
		}
		info, err := f.Stat()
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
		if info.Size() != part.Size {
			return kiln.Errorf(kiln.CodeInvalid, "get the image again", "the blob %s of image %s has %d bytes, and its manifest says %d", part.Digest, d, info.Size(), part.Size)
		}
	}
	return nil
}

// unfound is the error of a blob that cannot be read.
func unfound(d, of kiln.Digest, err error) error {
	switch {
	case !errors.Is(err, kiln.ErrNotFound):
		return err
	case d == of:
		return kiln.Errorf(kiln.CodeNotFound, "kiln bake makes the images of a definition", "there is no image %s", d)
	}
	return kiln.Errorf(kiln.CodeInvalid, "get the image again, whole", "the blob %s of image %s is not there", d, of)
}
