package bake

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/bake/buildkit"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
)

// job is one Bake or Lookup.
type job struct {
	b        *Baker
	req      kiln.BakeRequest
	images   map[string]kiln.Image
	room     *semaphore.Weighted
	progress func(kiln.Progress)

	mu     sync.Mutex
	baked  map[string]kiln.Baked
	refs   map[string]*resolving // by reference and platform
	locked kiln.Lock             // what the images of this job use
}

// resolving is a reference being resolved and pulled once for all that name it.
type resolving struct {
	once     sync.Once
	manifest kiln.Digest
	err      error
}

func newJob(b *Baker, req kiln.BakeRequest) *job {
	j := &job{
		b:        b,
		req:      req,
		images:   make(map[string]kiln.Image, len(req.Images)),
		room:     semaphore.NewWeighted(int64(b.opts.Parallel)),
		progress: req.Progress,
		baked:    map[string]kiln.Baked{},
		refs:     map[string]*resolving{},
	}
	if j.progress == nil {
		j.progress = func(kiln.Progress) {}
	}
	for _, i := range req.Images {
		j.images[i.Name] = i
	}
	return j
}

// run bakes all images, each as soon as those that it is made from are done.
func (j *job) run(ctx context.Context) (kiln.BakeResult, error) {
	done := make(map[string]chan struct{}, len(j.images))
	for name := range j.images {
		done[name] = make(chan struct{})
	}
	g, ctx := errgroup.WithContext(ctx)
	for _, image := range j.req.Images {
		g.Go(func() error {
			for _, n := range needs(image) {
				select {
				case <-done[n]:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			if err := j.room.Acquire(ctx, 1); err != nil {
				return err
			}
			defer j.room.Release(1)
			if err := j.image(ctx, image); err != nil {
				return err
			}
			close(done[image.Name])
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return kiln.BakeResult{}, err
	}
	sortLock(&j.locked)
	return kiln.BakeResult{Images: j.baked, Lock: j.locked}, nil
}

// image bakes one image whose needs are met and reports how that went.
func (j *job) image(ctx context.Context, image kiln.Image) error {
	start := time.Now()
	var out kiln.Baked
	var err error
	switch {
	case image.Dockerfile != nil:
		out, err = j.dockerfile(ctx, image)
	case image.Debian != nil:
		out, err = j.debian(ctx, image)
	default:
		out, err = j.reference(ctx, image)
	}
	took := time.Since(start)
	if err != nil {
		if !errors.Is(err, context.Canceled) {
			j.progress(kiln.Progress{Stage: "bake", Subject: image.Name, Error: err.Error(), Took: took})
		}
		return err
	}
	out.Name, out.Platform, out.Took = image.Name, image.Platform, took
	j.mu.Lock()
	j.baked[image.Name] = out
	j.mu.Unlock()
	j.progress(kiln.Progress{Stage: "bake", Subject: image.Name, Done: true, Cached: out.Cached, Took: took})
	return nil
}

func (j *job) dockerfile(ctx context.Context, image kiln.Image) (kiln.Baked, error) {
	f, err := newFolder(j.b.opts.Store, j.req.Tree, image.Dockerfile.Context)
	if err != nil {
		return kiln.Baked{}, forImage(image, err)
	}
	r, err := readRecipe(image, f)
	if err != nil {
		return kiln.Baked{}, err
	}
	bases, err := j.bases(ctx, image, r)
	if err != nil {
		return kiln.Baked{}, err
	}
	in, err := dockerfileInputs(image, r, f, bases)
	if err != nil {
		return kiln.Baked{}, forImage(image, err)
	}
	if known, ok := j.known(ctx, image, in); ok {
		return known, nil
	}
	for _, w := range r.warnings(image) {
		j.progress(kiln.Progress{Stage: "bake", Subject: image.Name, Message: w})
	}
	manifest, err := j.build(ctx, image, f, in)
	if err != nil {
		return kiln.Baked{}, err
	}
	return j.record(ctx, image, in, manifest)
}

// bases resolves all that the Dockerfile is made from.
func (j *job) bases(ctx context.Context, image kiln.Image, r *recipe) (map[string]kiln.Digest, error) {
	bases := map[string]kiln.Digest{}
	j.mu.Lock()
	for name, from := range image.Dockerfile.Contexts {
		bases[name] = j.baked[from].Manifest
	}
	j.mu.Unlock()
	refs, err := r.references(image)
	if err != nil {
		return nil, err
	}
	for _, ref := range refs {
		d, err := j.resolve(ctx, image, ref)
		if err != nil {
			return nil, err
		}
		bases[ref] = d
	}
	return bases, nil
}

// known returns an image that was baked from the same inputs.
func (j *job) known(ctx context.Context, image kiln.Image, in inputs) (kiln.Baked, bool) {
	key := in.digest()
	manifest, size, ok := j.b.index.find(ctx, key)
	if !ok {
		return kiln.Baked{}, false
	}
	files := debs(in.Packages)
	for _, d := range files {
		if !j.b.opts.Store.Has(d) {
			return kiln.Baked{}, false
		}
	}
	return kiln.Baked{
		Name: image.Name, Platform: image.Platform,
		Manifest: manifest, Size: size, Inputs: key, Cached: true, Debs: files, Materials: in.materials(image),
	}, true
}

func (j *job) build(ctx context.Context, image kiln.Image, f *folder, in inputs) (kiln.Digest, error) {
	content, err := local.NewStore(j.b.opts.Store.Dir())
	if err != nil {
		return "", fmt.Errorf("open the store for BuildKit: %w", err)
	}
	e, release, err := j.b.engine.acquire(ctx)
	if err != nil {
		return "", err
	}
	defer release()
	d, err := e.Build(ctx, buildkit.Build{
		Image:     image.Name,
		File:      path.Clean(image.Dockerfile.File),
		Shown:     path.Join(image.Dockerfile.Context, image.Dockerfile.File),
		Target:    image.Dockerfile.Target,
		Args:      image.Dockerfile.Args,
		Platform:  image.Platform,
		Context:   f,
		ContextID: kiln.DigestJSON(in.Context).Hex(),
		Bases:     in.Bases,
		Content:   content,
		Epoch:     Epoch,
		Hermetic:  image.Hermetic,
		Progress:  j.progress,
	})
	if err != nil {
		return "", j.blame(ctx, image, in, err)
	}
	return kiln.Digest(d.Digest), j.b.opts.Store.Sync()
}

// blame finds out whether a build failed because a base in the store is
// damaged, which is no fault of the Dockerfile's.
func (j *job) blame(ctx context.Context, image kiln.Image, in inputs, err error) error {
	if !strings.Contains(err.Error(), "unexpected commit digest") {
		return err
	}
	damage := j.b.index.damaged(ctx, slices.Collect(maps.Values(in.Bases)))
	if damage == nil {
		return err
	}
	return kiln.Errorf(kiln.CodeFailed, "Bake again: what was removed is made or pulled anew.", "image %q: a base is damaged: %w", image.Name, damage)
}

// record remembers a fresh bake and describes it.
func (j *job) record(ctx context.Context, image kiln.Image, in inputs, manifest kiln.Digest) (kiln.Baked, error) {
	size, ok := j.b.index.whole(ctx, manifest)
	if !ok {
		return kiln.Baked{}, fmt.Errorf("bake image %q: the store lacks a part of %s", image.Name, manifest)
	}
	if err := j.b.keep(ctx, in); err != nil {
		return kiln.Baked{}, fmt.Errorf("keep what image %q was made from: %w", image.Name, err)
	}
	if err := j.b.index.add(image.Name, in, manifest); err != nil {
		return kiln.Baked{}, err
	}
	return kiln.Baked{Manifest: manifest, Size: size, Inputs: in.digest(), Debs: debs(in.Packages), Materials: in.materials(image)}, nil
}

func debs(packages []kiln.LockedPackage) []kiln.Digest {
	var out []kiln.Digest
	for _, p := range packages {
		out = append(out, p.Digest)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// forImage names the image in an error that does not.
func forImage(image kiln.Image, err error) error {
	var known *kiln.Error
	if errors.As(err, &known) {
		e := *known
		e.Message = fmt.Sprintf("image %q: %s", image.Name, known.Message)
		e.Err = err
		return &e
	}
	return fmt.Errorf("image %q: %w", image.Name, err)
}

// lookup is Bake without baking.
func (j *job) lookup(ctx context.Context) (map[string]kiln.Baked, map[string]string, error) {
	reasons := map[string]string{}
	var visitErr error
	var look func(name string)
	seen := map[string]bool{}
	look = func(name string) {
		if seen[name] {
			return
		}
		seen[name] = true
		for _, n := range needs(j.images[name]) {
			look(n)
		}
		known, reason, err := j.lookupImage(ctx, j.images[name])
		switch {
		case err != nil:
			visitErr = errors.Join(visitErr, err)
		case reason != "":
			reasons[name] = reason
		default:
			j.baked[name] = known
		}
	}
	for _, name := range slices.Sorted(maps.Keys(j.images)) {
		look(name)
	}
	return j.baked, reasons, visitErr
}

func (j *job) lookupImage(ctx context.Context, image kiln.Image) (kiln.Baked, string, error) {
	in, reason, err := j.lookupInputs(image)
	if err != nil || reason != "" {
		return kiln.Baked{}, reason, err
	}
	if image.Reference != "" {
		return j.lookupReference(ctx, image, in)
	}
	if known, ok := j.known(ctx, image, in); ok {
		return known, "", nil
	}
	before, ok := j.b.index.last(image.Name)
	if !ok {
		return kiln.Baked{}, "it was never baked here", nil
	}
	return kiln.Baked{}, changed(image, before, in), nil
}

func (j *job) lookupReference(ctx context.Context, image kiln.Image, in inputs) (kiln.Baked, string, error) {
	manifest := in.Bases[image.Reference]
	size, ok := j.b.index.whole(ctx, manifest)
	if !ok {
		return kiln.Baked{}, image.Reference + " is not in the store yet", nil
	}
	return kiln.Baked{Name: image.Name, Platform: image.Platform, Manifest: manifest, Size: size, Inputs: in.digest(), Cached: true, Materials: in.materials(image)}, "", nil
}

// lookupInputs gathers an image's inputs without a network, or says why it
// cannot.
func (j *job) lookupInputs(image kiln.Image) (inputs, string, error) {
	switch {
	case image.Reference != "":
		d, ok := j.lockedReference(image.Reference, image.Platform)
		if !ok {
			return inputs{}, image.Reference + " is not resolved yet", j.mayResolveReference(image, image.Reference)
		}
		return referenceInputs(image, d), "", nil
	case image.Debian != nil:
		l, ok := findDebian(j.req.Lock, debianKey(image))
		if !ok {
			return inputs{}, "its packages are not resolved yet", j.mayResolvePackages(image)
		}
		return debianInputs(image, l.Packages), "", nil
	}
	for _, n := range needs(image) {
		if _, ok := j.baked[n]; !ok {
			return inputs{}, "its base image." + n + " must be baked first", nil
		}
	}
	f, err := newFolder(j.b.opts.Store, j.req.Tree, image.Dockerfile.Context)
	if err != nil {
		return inputs{}, "", forImage(image, err)
	}
	r, err := readRecipe(image, f)
	if err != nil {
		return inputs{}, "", err
	}
	refs, err := r.references(image)
	if err != nil {
		return inputs{}, "", err
	}
	bases := map[string]kiln.Digest{}
	for name, from := range image.Dockerfile.Contexts {
		bases[name] = j.baked[from].Manifest
	}
	for _, ref := range refs {
		d, ok := j.lockedReference(ref, image.Platform)
		if !ok {
			return inputs{}, ref + " is not resolved yet", j.mayResolveReference(image, ref)
		}
		bases[ref] = d
	}
	in, err := dockerfileInputs(image, r, f, bases)
	if err != nil {
		return inputs{}, "", forImage(image, err)
	}
	return in, "", nil
}
