package bake

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"

	"github.com/kilnproject/kiln"
)

// AgainRequest asks for images to be baked again from what they were made from.
type AgainRequest struct {
	// Dir is a folder that nothing else uses; it is emptied before and removed
	// afterwards, so that nothing of an earlier bake is found again.
	Dir    string
	Images []kiln.Image
	// Files are the definition's.
	Files kiln.Tree
	// Baked are the images as they came out, and the digests of all that each
	// was made from, by name.
	Baked    map[string]kiln.Baked
	Progress func(kiln.Progress) // nil is allowed
}

// Again bakes images by a baker that knows nothing, from the inputs that were
// kept in the store. An error that matches kiln.ErrNotFound says what of them is
// gone.
func (b *Baker) Again(ctx context.Context, r AgainRequest) (_ kiln.BakeResult, err error) {
	release, err := b.opts.Store.Hold(ctx)
	if err != nil {
		return kiln.BakeResult{}, err
	}
	defer release()
	request, err := b.remembered(r)
	if err != nil {
		return kiln.BakeResult{}, err
	}
	if err := b.Clear(ctx, r.Dir); err != nil {
		return kiln.BakeResult{}, err
	}
	fresh, err := New(ctx, b.aside(r.Dir))
	if err != nil {
		return kiln.BakeResult{}, err
	}
	fresh.registry = b.registry // its mirrors and credentials
	out, err := fresh.Bake(ctx, request)
	if err == nil {
		err = sameInputs(r, out)
	}
	return out, errors.Join(err, fresh.Close(), os.RemoveAll(r.Dir))
}

// sameInputs refuses what was baked from something else than before: an ignore
// file that hides itself is not among the files that are kept. An image of which
// a base came out otherwise has other inputs for that reason.
func sameInputs(r AgainRequest, out kiln.BakeResult) error {
	for _, image := range r.Images {
		before, after := r.Baked[image.Name], out.Images[image.Name]
		otherwise := slices.ContainsFunc(needs(image), func(n string) bool { return r.Baked[n].Manifest != out.Images[n].Manifest })
		if image.Reference == "" && !otherwise && before.Inputs != after.Inputs {
			return lostInputs(image.Name, "not all of what it was made from is kept")
		}
	}
	return nil
}

// Clear removes the folder of Again, with what a killed one left on the machine.
func (b *Baker) Clear(ctx context.Context, dir string) error {
	if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	old, err := New(ctx, b.aside(dir))
	if err != nil {
		return err
	}
	return errors.Join(old.Close(), os.RemoveAll(dir))
}

// aside are the options of a baker beside this one.
func (b *Baker) aside(dir string) Options {
	o := b.opts
	o.Dir, o.Group = dir, ""
	if b.opts.Group != "" {
		o.Group = path.Join(b.opts.Group, "again")
	}
	return o
}

// remembered is a request for the same images: with the contexts that they had
// and a lock of what they were made from.
func (b *Baker) remembered(r AgainRequest) (kiln.BakeRequest, error) {
	out := kiln.BakeRequest{Images: r.Images, Locked: true, Progress: r.Progress}
	entries := map[string]kiln.TreeEntry{}
	for _, e := range r.Files.Entries {
		entries[e.Path] = e
	}
	references := map[string]kiln.LockedReference{}
	for _, image := range r.Images {
		if image.Reference != "" {
			pin(references, image.Reference, image.Platform, r.Baked[image.Name].Manifest)
			continue
		}
		in, err := b.recall(image.Name, r.Baked[image.Name].Inputs)
		if err != nil {
			return out, err
		}
		if image.Debian != nil {
			out.Lock.Debian = append(out.Lock.Debian, kiln.LockedDebian{
				Key: debianKey(image), Suite: image.Debian.Suite, Platform: image.Platform, Packages: in.Packages,
			})
		}
		if err := b.contextOf(image, in, entries); err != nil {
			return out, err
		}
		for name, d := range in.Bases {
			if image.Dockerfile != nil && image.Dockerfile.Contexts[name] != "" {
				continue // an image of the definition, which is baked again
			}
			pin(references, name, image.Platform, d)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(references)) {
		out.Lock.References = append(out.Lock.References, references[name])
	}
	slices.SortFunc(out.Lock.Debian, func(x, y kiln.LockedDebian) int { return cmp.Compare(x.Key, y.Key) })
	for _, p := range slices.Sorted(maps.Keys(entries)) {
		out.Tree.Entries = append(out.Tree.Entries, entries[p])
	}
	return out, nil
}

// pin has a reference mean a manifest.
func pin(all map[string]kiln.LockedReference, name, platform string, manifest kiln.Digest) {
	if _, ok := all[name]; !ok {
		all[name] = kiln.LockedReference{Reference: name, Index: manifest, Platforms: map[string]kiln.Digest{}}
	}
	all[name].Platforms[platform] = manifest
}

// contextOf adds the files that an image's Dockerfile could see to a tree.
func (b *Baker) contextOf(image kiln.Image, in inputs, entries map[string]kiln.TreeEntry) error {
	if image.Dockerfile == nil {
		return nil
	}
	root := path.Clean(image.Dockerfile.Context)
	gone := 0
	for _, e := range in.Context {
		if e.Digest != "" && !b.opts.Store.Has(e.Digest) {
			gone++
		}
		e.Path = path.Join(root, e.Path)
		entries[e.Path] = e
	}
	if at := path.Join(root, image.Dockerfile.File); entries[at].Path == "" { // its own ignore file hides it
		f, err := b.opts.Store.Open(in.Dockerfile)
		if err != nil {
			return lostInputs(image.Name, "its Dockerfile is not kept any more")
		}
		info, err := f.Stat()
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
		entries[at] = kiln.TreeEntry{Path: at, Mode: 0o644, Size: info.Size(), Digest: in.Dockerfile}
	}
	if gone > 0 {
		return lostInputs(image.Name, fmt.Sprintf("%d files of its context %s are not kept any more", gone, root))
	}
	return nil
}

// recall reads what an image was made from. Its digest is its name.
func (b *Baker) recall(image string, key kiln.Digest) (in inputs, err error) {
	if key == "" {
		return in, lostInputs(image, "what it was made from is not known")
	}
	f, err := b.opts.Store.Open(key)
	if errors.Is(err, kiln.ErrNotFound) {
		return in, lostInputs(image, "what it was made from is not kept any more")
	}
	if err != nil {
		return in, err
	}
	defer func() { _ = f.Close() }()
	raw, err := io.ReadAll(f)
	if err != nil {
		return in, err
	}
	if kiln.DigestOf(raw) != key {
		return in, lostInputs(image, "what is kept of what it was made from is damaged")
	}
	return in, json.Unmarshal(raw, &in)
}

func lostInputs(image, what string) error {
	return kiln.Errorf(kiln.CodeNotFound, "check out the commit of the release, and bake it there: kiln bake",
		"image %q cannot be baked again: %s", image, what)
}

// keep puts what an image was made from into the store, under the digest that
// its provenance has, for as long as there is room.
func (b *Baker) keep(ctx context.Context, in inputs) error {
	raw, err := json.Marshal(in)
	if err != nil {
		return err
	}
	_, _, err = b.opts.Store.Put(ctx, bytes.NewReader(raw), in.digest())
	return err
}
