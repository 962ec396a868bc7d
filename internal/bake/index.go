package bake

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/kilnproject/kiln"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// index remembers on disk what was baked from which inputs, and each image's
// last inputs, to say what changed.
type index struct {
	dir   string
	store Store
}

// record is what the index keeps for one set of inputs.
type record struct {
	Manifest kiln.Digest `json:"manifest"`
}

func (x index) recordPath(inputs kiln.Digest) string {
	return filepath.Join(x.dir, "inputs", inputs.Hex()+".json")
}

func (x index) lastPath(image string) string {
	return filepath.Join(x.dir, "last", kiln.DigestOf([]byte(image)).Hex()+".json")
}

// find returns the manifest that was baked from inputs and its size, when the
// store still has all of it.
func (x index) find(ctx context.Context, inputs kiln.Digest) (kiln.Digest, int64, bool) {
	var r record
	if err := readJSON(x.recordPath(inputs), &r); err != nil {
		return "", 0, false
	}
	size, ok := x.whole(ctx, r.Manifest)
	return r.Manifest, size, ok
}

// add records a bake.
func (x index) add(image string, in inputs, manifest kiln.Digest) error {
	if err := writeJSON(x.recordPath(in.digest()), record{Manifest: manifest}); err != nil {
		return err
	}
	return x.seen(image, in)
}

// seen records an image's latest inputs.
func (x index) seen(image string, in inputs) error { return writeJSON(x.lastPath(image), in) }

// last returns an image's latest inputs.
func (x index) last(image string) (inputs, bool) {
	var in inputs
	err := readJSON(x.lastPath(image), &in)
	return in, err == nil
}

// whole says whether the store has a manifest and all that it names, and
// returns the bytes of its layers. A manifest or config that is damaged is
// removed, so that it is made or pulled anew; layers are verified where they
// are read.
func (x index) whole(ctx context.Context, manifest kiln.Digest) (int64, bool) {
	var m ocispec.Manifest
	raw, ok := x.sound(ctx, manifest)
	if !ok || json.Unmarshal(raw, &m) != nil {
		return 0, false
	}
	if _, ok := x.sound(ctx, kiln.Digest(m.Config.Digest)); !ok {
		return 0, false
	}
	var size int64
	for _, l := range m.Layers {
		if !x.store.Has(kiln.Digest(l.Digest)) {
			return 0, false
		}
		size += l.Size
	}
	return size, true
}

// maxDocument bounds a manifest or config, in bytes.
const maxDocument = 4 << 20

// sound reads a manifest or config.
func (x index) sound(ctx context.Context, d kiln.Digest) ([]byte, bool) {
	f, err := x.store.Open(d)
	if err != nil {
		return nil, false
	}
	defer func() { _ = f.Close() }()
	raw, err := io.ReadAll(io.LimitReader(f, maxDocument+1))
	if err != nil || len(raw) > maxDocument {
		return nil, false
	}
	if kiln.DigestOf(raw) != d {
		_ = x.store.Verify(ctx, d) // removes it; not sound either way
		return nil, false
	}
	return raw, true
}

// damaged verifies all blobs of images, removes those that are damaged, and
// returns what was said of them.
func (x index) damaged(ctx context.Context, manifests []kiln.Digest) error {
	var errs []error
	for _, manifest := range manifests {
		raw, ok := x.sound(ctx, manifest)
		var m ocispec.Manifest
		if !ok || json.Unmarshal(raw, &m) != nil {
			continue
		}
		for _, l := range m.Layers {
			if err := x.store.Verify(ctx, kiln.Digest(l.Digest)); errors.Is(err, kiln.ErrNotFound) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

// writeJSON replaces a file in one step. It is not flushed: a record that a
// crash loses or cuts is a record that was never made.
func writeJSON(path string, v any) (err error) {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("record a bake: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("record a bake: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return fmt.Errorf("record a bake: %w", err)
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		if gone := os.Remove(f.Name()); !errors.Is(gone, fs.ErrNotExist) {
			err = errors.Join(err, gone)
		}
		return fmt.Errorf("record a bake: %w", err)
	}
	return nil
}
