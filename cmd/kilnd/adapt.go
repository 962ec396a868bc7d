package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/bake"
	"github.com/kilnproject/kiln/internal/control"
	"github.com/kilnproject/kiln/internal/prove"
	"github.com/kilnproject/kiln/internal/seal"
	"github.com/kilnproject/kiln/internal/server"
	"github.com/kilnproject/kiln/internal/spec"
	"github.com/kilnproject/kiln/internal/store"
	"github.com/kilnproject/kiln/internal/tracing"
)

// loader reads definitions for control.
type loader struct{}

func (loader) Load(tree fs.FS, o control.LoadOptions) (control.Definition, error) {
	d, err := spec.Load(tree, spec.Options{Environment: o.Environment, Branch: o.Branch, Values: o.Values})
	if err != nil {
		return control.Definition{}, err
	}
	out := control.Definition{Spec: d.Spec, Values: d.Values, Environment: d.Environment, Warnings: d.Warnings}
	text, err := fs.ReadFile(tree, spec.LockFile)
	if errors.Is(err, fs.ErrNotExist) {
		return out, nil
	}
	if err == nil {
		out.Lock, err = spec.ParseLock(text)
	}
	return out, err
}

// baker lists what it baked in the store's index under the images' names, so
// that other tools find it there. The newest image of a name has it.
type baker struct {
	*bake.Baker
	store *store.Store
}

func (b baker) Bake(ctx context.Context, r kiln.BakeRequest) (kiln.BakeResult, error) {
	result, err := b.Baker.Bake(ctx, r)
	if err != nil {
		return result, err
	}
	for name, one := range result.Images {
		if err := b.tag(ctx, name, one); err != nil {
			return result, fmt.Errorf("name image %s: %w", name, err)
		}
	}
	return result, nil
}

func (b baker) tag(ctx context.Context, name string, one kiln.Baked) error {
	manifest, err := b.store.Manifest(ctx, one.Manifest)
	if err != nil {
		return err
	}
	document, err := b.store.Document(ctx, one.Manifest)
	if err != nil {
		return err
	}
	mediaType := manifest.MediaType
	if mediaType == "" {
		mediaType = ocispec.MediaTypeImageManifest
	}
	err = b.store.Tag(ctx, ocispec.Descriptor{
		MediaType: mediaType, Digest: digest.Digest(one.Manifest), Size: int64(len(document)),
	}, name, nil)
	if err != nil {
		return err
	}
	// In the registry it stays by its digest when another has the name.
	return b.store.Shelve(ctx, name, one.Manifest)
}

// images gives the engine sealed roots of images that may run.
type images struct {
	*seal.Sealer
	tracer *tracing.Tracer
	prover *prove.Prover
}

func (i images) Root(ctx context.Context, manifest kiln.Digest, mountPoints []string) (string, ocispec.ImageConfig, error) {
	if err := i.prover.Admit(ctx, manifest); err != nil {
		return "", ocispec.ImageConfig{}, err
	}
	root, err := i.seal(ctx, manifest, mountPoints)
	return root.Dir, root.Config, err
}

// Seal also takes an image that is still being proved: what was sealed does not
// run before Root gives it out.
func (i images) Seal(ctx context.Context, manifest kiln.Digest, mountPoints []string) error {
	_, err := i.seal(ctx, manifest, mountPoints)
	return err
}

func (i images) seal(ctx context.Context, manifest kiln.Digest, mountPoints []string) (seal.Root, error) {
	if root, ok := i.Mounted(manifest, mountPoints); ok {
		return root, nil
	}
	within, end := i.tracer.Begin(ctx, "seal", "image", string(manifest))
	root, err := i.Sealer.Root(within, manifest, mountPoints)
	end(err)
	return root, err
}

// uploads lets clients of the API store blobs.
type uploads struct{ *store.Store }

func (u uploads) NewBatch() server.Batch { return u.Store.NewBatch() }

// blobs collects the store. What no release needs stays for a week, because a
// bake may find it again; under pressure only as long as a client may take from
// its last blob to the request that names them all.
type blobs struct{ *store.Store }

const (
	idleBlobs  = 7 * 24 * time.Hour
	fewMinutes = 10 * time.Minute
)

func (b blobs) Usage(ctx context.Context) (int64, error) {
	u, err := b.Store.Usage(ctx)
	return u.Bytes + u.Unfinished, err
}

func (b blobs) Collect(ctx context.Context, keep control.Keep, want int64) (int64, error) {
	k := store.Keep{Roots: slices.Concat(keep.Bundles, keep.Images, keep.Origins), Grace: idleBlobs}
	if want > 0 {
		u, err := b.Store.Usage(ctx)
		if err != nil {
			return 0, err
		}
		k.Grace, k.MaxBytes = fewMinutes, max(1, u.Bytes-want)
	}
	freed, err := b.Store.Collect(ctx, k)
	return freed.Bytes, err
}

// seals collects sealed roots: those of running releases stay, others are
// sealed again when they are needed.
type seals struct{ *seal.Sealer }

func (s seals) Usage(context.Context) (int64, error) { return s.Sealer.Usage() }

func (s seals) Collect(ctx context.Context, keep control.Keep, _ int64) (int64, error) {
	images := make([]kiln.Digest, 0, len(keep.Templates))
	for _, t := range keep.Templates {
		images = append(images, t.Image)
	}
	keys, err := s.Keys(images)
	if err != nil {
		return 0, err
	}
	return s.Sealer.Collect(ctx, keys)
}

// caches collects the baker's build cache, under pressure only.
type caches struct{ *bake.Baker }

func (c caches) Collect(ctx context.Context, _ control.Keep, want int64) (int64, error) {
	if want <= 0 {
		return 0, nil
	}
	before, err := c.Usage(ctx)
	if err != nil {
		return 0, err
	}
	if err := c.Prune(ctx, max(0, before-want)); err != nil {
		return 0, err
	}
	after, err := c.Usage(ctx)
	return max(0, before-after), err
}

// writings are what instances wrote. Their share is what is left of the bound,
// under pressure only: without it the engine bounds them by itself.
type writings struct {
	engine interface {
		LogUsage() (int64, error)
		CollectLogs(keep int64) (int64, error)
	}
}

func (w writings) Usage(context.Context) (int64, error) { return w.engine.LogUsage() }

// Collect removes logs of the dead until want bytes are freed. Those of the
// living stay.
func (w writings) Collect(_ context.Context, _ control.Keep, want int64) (int64, error) {
	if want <= 0 {
		return 0, nil
	}
	used, err := w.engine.LogUsage()
	if err != nil {
		return 0, err
	}
	return w.engine.CollectLogs(max(0, used-want))
}
