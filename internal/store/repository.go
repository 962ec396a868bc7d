package store

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
)

// AnnotationRepository is the repository that an entry of index.json is of. An
// entry with it and without a name says that the repository has a manifest. One
// with a name is a tag that somebody pushed: a collection keeps it.
const AnnotationRepository = "vnd.kiln.repository"

// untagged is the tag of what has a name alone.
const untagged = "latest"

// nameOf is the name in index.json of a tag of a repository: "web" for
// web:latest, "web:v1" for others.
func nameOf(repository, tag string) string {
	if tag == untagged {
		return repository
	}
	return repository + ":" + tag
}

// catalog is index.json by repository.
type catalog struct {
	stamp        fileStamp
	repositories map[string]*repository
	homes        map[kiln.Digest]int // in how many repositories a manifest is
}

type repository struct {
	tags      map[string]ocispec.Descriptor
	manifests map[kiln.Digest]ocispec.Descriptor
}

// fileStamp tells one content of a file that is replaced from another.
type fileStamp struct {
	info os.FileInfo
}

func (f fileStamp) same(other os.FileInfo) bool {
	return f.info != nil && os.SameFile(f.info, other) && f.info.ModTime().Equal(other.ModTime()) && f.info.Size() == other.Size()
}

// shelf has the catalog of the moment.
type shelf struct {
	mu   sync.Mutex
	last *catalog
}

// catalog reads index.json again where it is another. Nobody changes what it
// returns.
func (s *Store) catalog(ctx context.Context) (*catalog, error) {
	info, err := os.Stat(filepath.Join(s.dir, ocispec.ImageIndexFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	s.shelf.mu.Lock()
	last := s.shelf.last
	s.shelf.mu.Unlock()
	if err == nil && last != nil && last.stamp.same(info) {
		return last, nil
	}
	index, err := s.Index(ctx)
	if err != nil {
		return nil, err
	}
	c := newCatalog(index)
	c.stamp = fileStamp{info} // from before: what is newer is read again
	s.shelf.mu.Lock()
	s.shelf.last = c
	s.shelf.mu.Unlock()
	return c, nil
}

func newCatalog(index ocispec.Index) *catalog {
	c := &catalog{repositories: map[string]*repository{}, homes: map[kiln.Digest]int{}}
	for _, e := range index.Manifests {
		name := e.Annotations[ocispec.AnnotationRefName]
		home, tag := e.Annotations[AnnotationRepository], ""
		if name != "" {
			home, tag, _ = strings.Cut(name, ":")
			if tag == "" {
				tag = untagged
			}
		}
		if home != "" {
			c.add(home, tag, e)
		}
	}
	return c
}

func (c *catalog) add(home, tag string, e ocispec.Descriptor) {
	r := c.repositories[home]
	if r == nil {
		r = &repository{tags: map[string]ocispec.Descriptor{}, manifests: map[kiln.Digest]ocispec.Descriptor{}}
		c.repositories[home] = r
	}
	d := kiln.Digest(e.Digest)
	if _, ok := r.manifests[d]; !ok {
		c.homes[d]++
	}
	e.Annotations = nil
	r.manifests[d] = e
	if tag != "" {
		r.tags[tag] = e
	}
}

// Repositories returns the names of all, sorted.
func (s *Store) Repositories(ctx context.Context) ([]string, error) {
	c, err := s.catalog(ctx)
	if err != nil {
		return nil, err
	}
	return slices.Sorted(maps.Keys(c.repositories)), nil
}

// Tags returns what the tags of a repository name. The error matches
// kiln.ErrNotFound when there is no such repository. Nobody changes the result.
func (s *Store) Tags(ctx context.Context, name string) (map[string]ocispec.Descriptor, error) {
	c, err := s.catalog(ctx)
	if err != nil {
		return nil, err
	}
	if r := c.repositories[name]; r != nil {
		return r.tags, nil
	}
	return nil, kiln.Errorf(kiln.CodeNotFound, "", "there is no repository %s", name)
}

// Manifests returns the manifests of a repository, tagged or not; none when
// there is no such repository. Nobody changes the result.
func (s *Store) Manifests(ctx context.Context, name string) (map[kiln.Digest]ocispec.Descriptor, error) {
	c, err := s.catalog(ctx)
	if err != nil || c.repositories[name] == nil {
		return nil, err
	}
	return c.repositories[name].manifests, nil
}

// Homes is the number of repositories that have a manifest of their own.
func (s *Store) Homes(ctx context.Context, d kiln.Digest) (int, error) {
	c, err := s.catalog(ctx)
	if err != nil {
		return 0, err
	}
	return c.homes[d], nil
}

// Shelve says that a repository has a manifest of the store.
func (s *Store) Shelve(ctx context.Context, name string, d kiln.Digest) error {
	desc, err := s.describe(d)
	if err != nil {
		return err
	}
	return s.Tag(ctx, desc, "", map[string]string{AnnotationRepository: name})
}

// TagPushed gives a tag of a repository to a manifest of the store, which stays
// for as long as it has one. The caller checked that both can be names.
func (s *Store) TagPushed(ctx context.Context, name, tag string, d kiln.Digest) error {
	release, err := s.Hold(ctx)
	if err != nil {
		return err
	}
	defer release()
	desc, err := s.describe(d)
	if err != nil {
		return err
	}
	desc.Annotations = map[string]string{ocispec.AnnotationRefName: nameOf(name, tag), AnnotationRepository: name}
	return s.updateIndex(ctx, func(index *ocispec.Index) bool { return setEntry(index, desc) })
}

// UntagPushed takes a tag of a repository away.
func (s *Store) UntagPushed(ctx context.Context, name, tag string) error {
	return s.Untag(ctx, nameOf(name, tag))
}

// Unshelve takes a manifest and its tags out of a repository.
func (s *Store) Unshelve(ctx context.Context, name string, d kiln.Digest) error {
	return s.updateIndex(ctx, func(index *ocispec.Index) bool {
		n := len(index.Manifests)
		index.Manifests = slices.DeleteFunc(index.Manifests, func(e ocispec.Descriptor) bool {
			home, _, _ := strings.Cut(e.Annotations[ocispec.AnnotationRefName], ":")
			if home == "" {
				home = e.Annotations[AnnotationRepository]
			}
			return home == name && e.Digest == digest.Digest(d)
		})
		return len(index.Manifests) != n
	})
}

// pushed says whether a collection keeps an entry of index.json: it is a tag
// that somebody pushed.
func pushed(e ocispec.Descriptor) bool {
	return e.Annotations[AnnotationRepository] != "" && e.Annotations[ocispec.AnnotationRefName] != ""
}
