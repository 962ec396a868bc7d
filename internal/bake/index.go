package bake

import (
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
func (x index) find(inputs kiln.Digest) (kiln.Digest, int64, bool) {
	var r record
	if err := readJSON(x.recordPath(inputs), &r); err != nil {
		return "", 0, false
	}
	size, ok := x.whole(r.Manifest)
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
// returns the bytes of its layers.
func (x index) whole(manifest kiln.Digest) (int64, bool) {
	m, err := readManifest(x.store, manifest)
	if err != nil || !x.store.Has(kiln.Digest(m.Config.Digest)) {
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

// maxManifest bounds a manifest, in bytes.
const maxManifest = 4 << 20

func readManifest(store Store, d kiln.Digest) (ocispec.Manifest, error) {
	var m ocispec.Manifest
	f, err := store.Open(d)
	if err != nil {
		return m, err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxManifest))
	if err != nil {
		return m, fmt.Errorf("read manifest %s: %w", d, err)
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, fmt.Errorf("read manifest %s: %w", d, err)
	}
	return m, nil
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
