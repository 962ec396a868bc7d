package bake

import (
	"context"

	"golang.org/x/sync/errgroup"

	"github.com/kilnproject/kiln"
)

// Refresh resolves anew everything that the request's lock pins, and returns
// the lock with what was found: images of registries by asking those, Debian
// packages from the archives. References by digest stay, and so does what no
// image of the request is made from. It bakes and pulls nothing; the .deb files
// of new packages are in the store afterwards.
func (b *Baker) Refresh(ctx context.Context, req kiln.BakeRequest) (kiln.Lock, error) {
	if err := checkGraph(req.Images); err != nil {
		return kiln.Lock{}, err
	}
	release, err := b.opts.Store.Hold(ctx)
	if err != nil {
		return kiln.Lock{}, err
	}
	defer release()
	j := newJob(b, req)
	out := kiln.Lock{
		References: make([]kiln.LockedReference, len(req.Lock.References)),
		Debian:     make([]kiln.LockedDebian, len(req.Lock.Debian)),
	}
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(b.opts.Parallel)
	for i, r := range req.Lock.References {
		work.Go(func() (err error) {
			j.progress(kiln.Progress{Stage: "bake", Subject: r.Reference, Step: "resolve " + r.Reference})
			out.References[i], err = b.registry.Resolve(ctx, r.Reference)
			return err
		})
	}
	for i, d := range req.Lock.Debian {
		out.Debian[i] = d
		image, named := debianImage(req.Images, d.Key)
		if !named {
			continue
		}
		work.Go(func() error {
			packages, err := b.debian.Resolve(ctx, *image.Debian, image.Platform, func(p kiln.Progress) {
				p.Stage, p.Subject = "bake", image.Name
				j.progress(p)
			})
			if err != nil {
				return forImage(image, err)
			}
			out.Debian[i].Packages = packages
			return nil
		})
	}
	if err := work.Wait(); err != nil {
		return kiln.Lock{}, err
	}
	sortLock(&out)
	return out, nil
}

// debianImage is an image that a key of the lock stands for.
func debianImage(images []kiln.Image, key kiln.Digest) (kiln.Image, bool) {
	for _, image := range images {
		if image.Debian != nil && debianKey(image) == key {
			return image, true
		}
	}
	return kiln.Image{}, false
}
