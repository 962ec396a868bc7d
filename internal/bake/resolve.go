package bake

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/kilnproject/kiln"
)

// reference brings an image of a registry into the store.
func (j *job) reference(ctx context.Context, image kiln.Image) (kiln.Baked, error) {
	before, had := j.lockedReference(image.Reference, image.Platform)
	cached := false
	if had {
		_, cached = j.b.index.whole(ctx, before)
	}
	d, err := j.resolve(ctx, image, image.Reference)
	if err != nil {
		return kiln.Baked{}, err
	}
	size, ok := j.b.index.whole(ctx, d)
	if !ok {
		return kiln.Baked{}, kiln.Errorf(kiln.CodeInternal, "", "image %q: the store lacks a part of %s after its pull", image.Name, d)
	}
	in := referenceInputs(image, d)
	return kiln.Baked{Manifest: d, Size: size, Inputs: in.digest(), Cached: cached, Materials: in.materials(image)}, nil
}

func referenceInputs(image kiln.Image, manifest kiln.Digest) inputs {
	image.Name = ""
	return inputs{Format: format, Epoch: Epoch, Image: image, Bases: map[string]kiln.Digest{image.Reference: manifest}}
}

// resolve returns the manifest of a reference for the image's platform, from
// the lock or the registry, and has it in the store afterwards.
func (j *job) resolve(ctx context.Context, image kiln.Image, ref string) (kiln.Digest, error) {
	key := ref + " " + image.Platform
	j.mu.Lock()
	r, ok := j.refs[key]
	if !ok {
		r = &resolving{}
		j.refs[key] = r
	}
	j.mu.Unlock()
	r.once.Do(func() { r.manifest, r.err = j.pull(ctx, image, ref) })
	if r.err != nil {
		return "", forImage(image, notAContext(image, ref, r.err))
	}
	return r.manifest, nil
}

// notAContext says of a bare name in a Dockerfile, which was looked for in a
// registry, which names the definition gives it.
func notAContext(image kiln.Image, ref string, err error) error {
	var known *kiln.Error
	if image.Dockerfile == nil || strings.ContainsAny(ref, "/@") || !errors.As(err, &known) {
		return err
	}
	names := "it has none"
	if len(image.Dockerfile.Contexts) > 0 {
		names = "there are: " + strings.Join(slices.Sorted(maps.Keys(image.Dockerfile.Contexts)), ", ")
	}
	said := *known // r.err is shared by the images that use the reference
	said.Hint = fmt.Sprintf("%s is neither a stage nor one of the image's contexts (%s), so a registry was asked; for an image of the definition: contexts = { NAME = image.NAME }", ref, names)
	return &said
}

func (j *job) pull(ctx context.Context, image kiln.Image, ref string) (kiln.Digest, error) {
	lock, ok := findReference(j.req.Lock, ref)
	manifest, has := lock.Platforms[image.Platform]
	if !ok || !has {
		if err := j.mayResolveReference(image, ref); err != nil {
			return "", err
		}
		j.progress(kiln.Progress{Stage: "bake", Subject: image.Name, Step: "resolve " + ref})
		found, err := j.b.registry.Resolve(ctx, ref)
		if err != nil {
			return "", err
		}
		if manifest, has = found.Platforms[image.Platform]; !has {
			return "", missingPlatform(ref, image.Platform, found)
		}
		lock = found
	}
	j.useReference(lock)
	if _, whole := j.b.index.whole(ctx, manifest); whole {
		return manifest, nil
	}
	return manifest, j.b.registry.Pull(ctx, ref, manifest, func(p kiln.Progress) {
		p.Stage, p.Subject = "bake", image.Name
		j.progress(p)
	})
}

const lockFirst = "Run it once without --locked, and commit kiln.lock."

// mayResolveReference refuses to ask a registry where only the lock counts.
func (j *job) mayResolveReference(image kiln.Image, ref string) error {
	if !j.req.Locked {
		return nil
	}
	return kiln.Errorf(kiln.CodeRefused, lockFirst, "%s for %s is not in the lock", ref, image.Platform)
}

// mayResolvePackages is the same for Debian's archives.
func (j *job) mayResolvePackages(image kiln.Image) error {
	if !j.req.Locked {
		return nil
	}
	return kiln.Errorf(kiln.CodeRefused, lockFirst, "image %q: its Debian packages are not in the lock", image.Name)
}

func missingPlatform(ref, platform string, found kiln.LockedReference) error {
	have := make([]string, 0, len(found.Platforms))
	for p := range found.Platforms {
		have = append(have, p)
	}
	slices.Sort(have)
	e := kiln.Errorf(kiln.CodeNotFound, "Choose a platform that it has.", "%s has no image for %s", ref, platform)
	e.Evidence = have
	return e
}

// lockedReference returns what the request's lock says of a reference.
func (j *job) lockedReference(ref, platform string) (kiln.Digest, bool) {
	l, ok := findReference(j.req.Lock, ref)
	d, has := l.Platforms[platform]
	return d, ok && has
}

// debian makes an image of Debian packages.
func (j *job) debian(ctx context.Context, image kiln.Image) (kiln.Baked, error) {
	emit := func(p kiln.Progress) {
		p.Stage, p.Subject = "bake", image.Name
		j.progress(p)
	}
	lock, ok := findDebian(j.req.Lock, debianKey(image))
	if !ok {
		if err := j.mayResolvePackages(image); err != nil {
			return kiln.Baked{}, err
		}
		packages, err := j.b.debian.Resolve(ctx, *image.Debian, image.Platform, emit)
		if err != nil {
			return kiln.Baked{}, forImage(image, err)
		}
		lock = kiln.LockedDebian{Key: debianKey(image), Suite: image.Debian.Suite, Platform: image.Platform, Packages: packages}
	}
	j.useDebian(lock)
	in := debianInputs(image, lock.Packages)
	if known, ok := j.known(ctx, image, in); ok {
		return known, nil
	}
	manifest, err := j.b.debian.Build(ctx, *image.Debian, lock, emit)
	if err != nil {
		return kiln.Baked{}, forImage(image, err)
	}
	return j.record(ctx, image, in, manifest)
}

// debianKey names a Debian image in the lock.
func debianKey(image kiln.Image) kiln.Digest {
	return kiln.DigestJSON(struct {
		Debian   kiln.Debian `json:"debian"`
		Platform string      `json:"platform"`
	}{*image.Debian, image.Platform})
}

func findReference(l kiln.Lock, ref string) (kiln.LockedReference, bool) {
	for _, r := range l.References {
		if r.Reference == ref {
			return r, true
		}
	}
	return kiln.LockedReference{}, false
}

func findDebian(l kiln.Lock, key kiln.Digest) (kiln.LockedDebian, bool) {
	for _, d := range l.Debian {
		if d.Key == key {
			return d, true
		}
	}
	return kiln.LockedDebian{}, false
}

func (j *job) useReference(r kiln.LockedReference) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, ok := findReference(j.locked, r.Reference); !ok {
		j.locked.References = append(j.locked.References, r)
	}
}

func (j *job) useDebian(d kiln.LockedDebian) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, ok := findDebian(j.locked, d.Key); !ok {
		j.locked.Debian = append(j.locked.Debian, d)
	}
}

func sortLock(l *kiln.Lock) {
	slices.SortFunc(l.References, func(a, b kiln.LockedReference) int { return cmp.Compare(a.Reference, b.Reference) })
	slices.SortFunc(l.Debian, func(a, b kiln.LockedDebian) int { return cmp.Compare(a.Key, b.Key) })
}
