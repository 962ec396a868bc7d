package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
)

// maxIndex is the size in bytes above which index.json is taken for broken.
const maxIndex = 64 << 20

// refName is the grammar of org.opencontainers.image.ref.name
// (annotations.md#pre-defined-annotation-keys).
var refName = regexp.MustCompile(`^[A-Za-z0-9]+([-._:@/+]+[A-Za-z0-9]+)*$`)

// Tag lists a manifest or index that is in the store in index.json under a
// name, which it takes from whatever had it. An empty name lists it without.
// The annotations go to the entry, never into the manifest.
func (s *Store) Tag(ctx context.Context, desc ocispec.Descriptor, name string, annotations map[string]string) error {
	if name != "" && (len(name) > 255 || !refName.MatchString(name)) {
		return kiln.Errorf(kiln.CodeInvalid, "use letters, digits and single separators -._:@/+", "%q cannot name an image", name)
	}
	release, err := s.Hold(ctx)
	if err != nil {
		return err
	}
	defer release()
	path, err := s.blobPath(kiln.Digest(desc.Digest))
	if err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return kiln.Errorf(kiln.CodeNotFound, "", "tag %s: its manifest %s is not in the store", name, desc.Digest)
	}
	if desc.Size != info.Size() {
		return kiln.Errorf(kiln.CodeInvalid, "", "tag %s: its manifest has %d bytes, not %d", name, info.Size(), desc.Size)
	}
	s.touch(path)
	desc.Annotations = maps.Clone(annotations)
	if name != "" {
		if desc.Annotations == nil {
			desc.Annotations = map[string]string{}
		}
		desc.Annotations[ocispec.AnnotationRefName] = name
	}
	if err := s.link(kiln.Digest(desc.Digest)); err != nil {
		return fmt.Errorf("tag %s: %w", name, err)
	}
	return s.updateIndex(ctx, func(index *ocispec.Index) bool { return setEntry(index, desc) })
}

// setEntry puts desc in the place of the entry with its name, or without a
// name of the entry with its digest, its repository and no name. It reports a
// change.
func setEntry(index *ocispec.Index, desc ocispec.Descriptor) bool {
	name := desc.Annotations[ocispec.AnnotationRefName]
	same := func(d ocispec.Descriptor) bool {
		if d.Annotations[ocispec.AnnotationRefName] != name {
			return false
		}
		return name != "" || d.Digest == desc.Digest && d.Annotations[AnnotationRepository] == desc.Annotations[AnnotationRepository]
	}
	i := slices.IndexFunc(index.Manifests, same)
	if i < 0 {
		index.Manifests = append(index.Manifests, desc)
		return true
	}
	old := index.Manifests[i]
	if old.Digest == desc.Digest && old.MediaType == desc.MediaType && maps.Equal(old.Annotations, desc.Annotations) {
		return false
	}
	index.Manifests[i] = desc
	return true
}

// Untag removes the name from index.json. Its blobs stay until they are
// collected. A name that is not there is no error.
func (s *Store) Untag(ctx context.Context, name string) error {
	return s.updateIndex(ctx, func(index *ocispec.Index) bool {
		n := len(index.Manifests)
		index.Manifests = slices.DeleteFunc(index.Manifests, func(d ocispec.Descriptor) bool {
			return name != "" && d.Annotations[ocispec.AnnotationRefName] == name
		})
		return len(index.Manifests) != n
	})
}

// Resolve returns the entry of index.json with that name. The error matches
// kiln.ErrNotFound when there is none.
func (s *Store) Resolve(ctx context.Context, name string) (ocispec.Descriptor, error) {
	index, err := s.Index(ctx)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	for _, d := range index.Manifests {
		if name != "" && d.Annotations[ocispec.AnnotationRefName] == name {
			return d, nil
		}
	}
	return ocispec.Descriptor{}, kiln.Errorf(kiln.CodeNotFound, "", "nothing in the store is called %q", name)
}

// Index returns index.json as it is now.
func (s *Store) Index(context.Context) (ocispec.Index, error) {
	empty := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}}
	path := filepath.Join(s.dir, ocispec.ImageIndexFile)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return empty, nil
	}
	if err != nil {
		return empty, fmt.Errorf("read index: %w", err)
	}
	if info.Size() > maxIndex {
		return empty, fmt.Errorf("read index: %s has %d bytes", path, info.Size())
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return empty, fmt.Errorf("read index: %w", err)
	}
	index := empty
	if err := json.Unmarshal(b, &index); err != nil {
		return empty, fmt.Errorf("read index: %s: %w", path, err)
	}
	return index, nil
}

// updateIndex changes index.json under its lock, so that no other process's
// change is lost. The change reports whether there is something to write.
func (s *Store) updateIndex(ctx context.Context, change func(*ocispec.Index) bool) error {
	lock, err := s.lock(ctx, "index.lock", unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	index, err := s.Index(ctx)
	if err != nil {
		return err
	}
	path := filepath.Join(s.dir, ocispec.ImageIndexFile)
	_, statErr := os.Lstat(path)
	if !change(&index) && statErr == nil {
		return nil
	}
	b, err := json.Marshal(index)
	if err != nil {
		return fmt.Errorf("write index: %w", err)
	}
	if err := s.writeFile(path, b); err != nil {
		return fmt.Errorf("write index: %w", err)
	}
	return nil
}
