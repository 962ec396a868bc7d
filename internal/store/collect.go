package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
)

// DefaultGrace is how long an unused blob that nothing needs is kept at least.
const DefaultGrace = time.Hour

// abandoned is the age after which a half-written blob has no writer.
const abandoned = 24 * time.Hour

// Keep says what must survive a collection.
type Keep struct {
	// Roots are bundles, manifests and indexes, kept with all that they refer
	// to, and plain blobs such as .deb files.
	Roots []kiln.Digest
	// Grace keeps what was used or written more recently; zero means
	// DefaultGrace.
	Grace time.Duration
	// MaxBytes is a budget. While all blobs together fit into it nothing is
	// removed; above it the longest unused go first, plain blobs (contexts,
	// build records) before images. Zero means no room for what is not needed.
	MaxBytes int64
}

// Freed is what a collection did.
type Freed struct {
	Blobs int   `json:"blobs"` // removed
	Bytes int64 `json:"bytes"` // removed
	Left  int64 `json:"left"`  // bytes of the blobs that remain
	// Missing are roots that are not in the store.
	Missing []kiln.Digest `json:"missing,omitempty"`
	// Deferred is true when a Hold was in the way; nothing was done.
	Deferred bool `json:"deferred,omitempty"`
}

// Collect removes what neither Keep, a Pin nor a recent use protects. It may
// be killed at any point: names go from index.json before the blobs go, and a
// blob that something kept needs never goes. What refers to a manifest stays
// and goes with it. When a manifest that is to be
// kept cannot be read, nothing is removed. The next use of an image that was
// removed must find out by Has and bake it again.
func (s *Store) Collect(ctx context.Context, keep Keep) (Freed, error) {
	if err := s.findReferrers(ctx); err != nil {
		return Freed{}, fmt.Errorf("collect: %w", err)
	}
	lock, ok, err := s.tryLock("gc.lock", unix.LOCK_EX)
	if err != nil || !ok {
		return Freed{Deferred: !ok}, err
	}
	defer func() { _ = lock.Close() }()
	c := collection{store: s, keep: keep, freed: Freed{}}
	if c.keep.Grace == 0 {
		c.keep.Grace = DefaultGrace
	}
	if err := c.survey(ctx); err != nil {
		return Freed{}, fmt.Errorf("collect: %w", err)
	}
	if err := c.choose(); err != nil {
		return Freed{}, fmt.Errorf("collect: %w", err)
	}
	if err := c.sweep(ctx); err != nil {
		return c.freed, fmt.Errorf("collect: %w", err)
	}
	return c.freed, errors.Join(s.sweepReferences(c.references), s.sweepTemporary())
}

// collection is one run: what there is, and what shall go.
type collection struct {
	store *Store
	keep  Keep
	index ocispec.Index
	blobs map[kiln.Digest]blobInfo
	total int64
	freed Freed
	// references are all that there are; referrers the same, by subject.
	references []reference
	referrers  map[kiln.Digest][]kiln.Digest
	// goes are the blobs to remove; drop, the entries of index.json.
	goes []kiln.Digest
	drop map[kiln.Digest]bool
}

type blobInfo struct {
	size int64
	used time.Time
}

// survey lists the index and the blobs. It reads uses before marking touches.
func (c *collection) survey(ctx context.Context) error {
	var err error
	if c.blobs, err = c.store.blobs(ctx); err != nil {
		return err
	}
	for _, b := range c.blobs {
		c.total += b.size
	}
	if c.references, err = c.store.references(ctx); err != nil {
		return err
	}
	c.referrers = map[kiln.Digest][]kiln.Digest{}
	for _, r := range c.references {
		c.referrers[r.subject] = append(c.referrers[r.subject], r.referrer)
	}
	c.index, err = c.store.Index(ctx)
	return err
}

// choose marks what is needed and picks what goes.
func (c *collection) choose() error {
	needed := c.store.newMarks()
	for _, d := range slices.Concat(c.keep.Roots, c.store.pinned()) {
		if err := needed.root(d); err != nil {
			return err
		}
	}
	c.freed.Missing = needed.missing
	for _, e := range c.index.Manifests {
		if pushed(e) {
			if err := needed.optional(kiln.Digest(e.Digest)); err != nil {
				return err
			}
		}
	}
	cutoff := c.store.now().Add(-c.keep.Grace)
	for _, e := range c.index.Manifests {
		d := kiln.Digest(e.Digest)
		if b, ok := c.blobs[d]; ok && b.used.After(cutoff) {
			if err := needed.optional(d); err != nil {
				return err
			}
		}
	}
	if err := needed.referrers(c.referrers); err != nil {
		return err
	}
	c.pick(needed, cutoff)
	return nil
}

// pick chooses what goes of the rest, until the store is as small as it is to
// be: blobs of nothing first, then images, both by their last use.
func (c *collection) pick(needed *marks, cutoff time.Time) {
	images, owners := c.unneeded(needed)
	c.drop = map[kiln.Digest]bool{}
	left := c.total
	over := func() bool { return c.keep.MaxBytes == 0 || left > c.keep.MaxBytes }
	remove := func(d kiln.Digest) {
		c.goes = append(c.goes, d)
		left -= c.blobs[d].size
	}
	for _, d := range c.oldest(needed, owners, cutoff) {
		if !over() {
			return
		}
		remove(d)
	}
	for _, image := range images {
		if !over() {
			return
		}
		c.drop[image.root] = true
		for _, d := range image.blobs {
			if owners[d]--; owners[d] == 0 && c.blobs[d].used.Before(cutoff) {
				remove(d)
			}
		}
	}
}

// cachedImage is an entry of index.json that nothing needs, with the blobs
// that go when the last such entry that has them goes.
type cachedImage struct {
	root  kiln.Digest
	blobs []kiln.Digest
	used  time.Time
}

// unneeded lists those entries, longest unused first, and counts for each of
// their blobs how many of them have it.
func (c *collection) unneeded(needed *marks) ([]cachedImage, map[kiln.Digest]int) {
	var images []cachedImage
	owners := map[kiln.Digest]int{}
	seen := map[kiln.Digest]bool{}
	for _, e := range c.index.Manifests {
		d := kiln.Digest(e.Digest)
		if needed.set[d] || seen[d] {
			continue
		}
		seen[d] = true
		own := c.store.newMarks()
		// One that cannot be read keeps nothing but itself.
		_ = own.root(d)
		_ = own.referrers(c.referrers)
		image := cachedImage{root: d, used: c.blobs[d].used}
		for blob := range own.set {
			if _, ok := c.blobs[blob]; ok && !needed.set[blob] {
				image.blobs = append(image.blobs, blob)
				owners[blob]++
			}
		}
		images = append(images, image)
	}
	slices.SortFunc(images, func(a, b cachedImage) int {
		return cmp.Or(a.used.Compare(b.used), cmp.Compare(a.root, b.root))
	})
	return images, owners
}

// oldest lists the blobs that no entry has and nothing needs, longest unused
// first.
func (c *collection) oldest(needed *marks, owners map[kiln.Digest]int, cutoff time.Time) []kiln.Digest {
	var all []kiln.Digest
	for d, b := range c.blobs {
		if !needed.set[d] && owners[d] == 0 && b.used.Before(cutoff) {
			all = append(all, d)
		}
	}
	slices.SortFunc(all, func(a, b kiln.Digest) int {
		return cmp.Or(c.blobs[a].used.Compare(c.blobs[b].used), cmp.Compare(a, b))
	})
	return all
}

// sweep takes the entries from index.json and then removes the blobs, unless
// they were used since they were surveyed.
func (c *collection) sweep(ctx context.Context) error {
	if len(c.drop) > 0 {
		err := c.store.updateIndex(ctx, func(index *ocispec.Index) bool {
			index.Manifests = slices.DeleteFunc(index.Manifests, func(d ocispec.Descriptor) bool {
				return c.drop[kiln.Digest(d.Digest)]
			})
			return true
		})
		if err != nil {
			return err
		}
	}
	c.freed.Left = c.total
	for _, d := range c.goes {
		if err := ctx.Err(); err != nil {
			return err
		}
		gone, err := c.store.remove(d, c.blobs[d].used)
		if err != nil {
			return err
		}
		if gone {
			c.freed.Blobs++
			c.freed.Bytes += c.blobs[d].size
			c.freed.Left -= c.blobs[d].size
		}
	}
	return nil
}

// remove deletes a blob unless it was used after the given time.
func (s *Store) remove(d kiln.Digest, used time.Time) (bool, error) {
	path, err := s.blobPath(d)
	if err != nil {
		return false, err
	}
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.ModTime().After(used) {
		return false, nil
	}
	if err == nil {
		err = os.Remove(path)
	}
	return err == nil, err
}

// blobs lists what is in blobs/sha256. Names that are not digests are left
// alone: they are not the store's.
func (s *Store) blobs(ctx context.Context) (map[kiln.Digest]blobInfo, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, "blobs", "sha256"))
	if err != nil {
		return nil, err
	}
	all := make(map[kiln.Digest]blobInfo, len(entries))
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		d, err := kiln.ParseDigest("sha256:" + e.Name())
		if err != nil || !e.Type().IsRegular() {
			continue
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		all[d] = blobInfo{size: info.Size(), used: info.ModTime()}
	}
	return all, nil
}

// sweepTemporary removes what writers that died left behind, in tmp/ and in
// containerd's ingest/, where each write is a folder.
func (s *Store) sweepTemporary() error {
	var errs []error
	for _, name := range []string{"tmp", "ingest"} {
		dir := filepath.Join(s.dir, name)
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			if s.now().Sub(lastWrite(path)) > abandoned {
				errs = append(errs, os.RemoveAll(path))
			}
		}
	}
	return errors.Join(errs...)
}

// lastWrite is the newest modification time of a file, or of a folder and
// what is directly in it. What vanished meanwhile is the future's.
func lastWrite(path string) time.Time {
	info, err := os.Lstat(path)
	if err != nil {
		return time.Unix(1<<40, 0)
	}
	newest := info.ModTime()
	entries, err := os.ReadDir(path)
	if err != nil {
		return newest
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.ModTime().After(newest) {
			newest = info.ModTime()
		}
	}
	return newest
}
