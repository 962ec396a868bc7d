// Package source reads the caller's working tree: the files that a definition
// needs, by content, and where they came from in Git. It never follows a
// symbolic link, never leaves the folder, and runs nothing that the folder's
// owner could have planted.
package source

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/kilnproject/kiln"
)

// The bounds of a snapshot where Want says nothing.
const (
	defaultMaxBytes   = 2 << 30
	defaultMaxEntries = 200_000
)

// lockFile is taken with every snapshot that has it.
const lockFile = "kiln.lock"

// Want says which parts of a folder a snapshot holds, besides kiln.lock.
type Want struct {
	// Files are single files, slash paths relative to the folder: those that
	// the definition was read from. A symbolic link is taken as such.
	Files []string
	// Images say which build contexts are taken, each without what its ignore
	// file leaves out.
	Images []kiln.Image
	// MaxBytes and MaxEntries bound the snapshot; 0 means 2 GiB and 200,000.
	MaxBytes   int64
	MaxEntries int
}

// Opener opens a file of a snapshot by its digest. Reading fails at the end
// when the content is no longer what was hashed. fs.ErrNotExist for a digest
// that the snapshot does not hold.
type Opener func(kiln.Digest) (io.ReadCloser, error)

// Snapshot reads what is wanted of the folder dir. Permissions become 0755 for
// folders and what may be executed and 0644 for other files, as in Git, so that
// the same commit gives the same tree everywhere. The .git of a context is left
// out unless an ignore file has !.git.
//
// Errors are *kiln.Error: not_found for a file or context that is not there,
// refused for what a tree cannot hold and for too much of it, failed for what
// changed while it was read.
func Snapshot(ctx context.Context, dir string, want Want) (kiln.Tree, Opener, kiln.Source, error) {
	var tree kiln.Tree
	var open Opener
	var origin kiln.Source
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		tree, open, err = files(ctx, dir, want)
		return err
	})
	group.Go(func() (err error) {
		origin, err = Git(ctx, dir)
		return err
	})
	if err := group.Wait(); err != nil {
		return kiln.Tree{}, nil, kiln.Source{}, err
	}
	return tree, open, origin, nil
}

// files walks, then hashes.
func files(ctx context.Context, dir string, want Want) (kiln.Tree, Opener, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return kiln.Tree{}, nil, kiln.Errorf(kiln.CodeNotFound, "", "open the folder: %w", err)
	}
	defer func() { _ = root.Close() }()
	w := newWalker(ctx, root, want)
	if err := w.walk(want); err != nil {
		return kiln.Tree{}, nil, err
	}
	found := w.sorted()
	if err := hashAll(ctx, root, found); err != nil {
		return kiln.Tree{}, nil, err
	}
	tree := kiln.Tree{Entries: make([]kiln.TreeEntry, len(found))}
	paths := map[kiln.Digest]string{}
	for i, f := range found {
		tree.Entries[i] = f.TreeEntry
		if f.Digest != "" {
			paths[f.Digest] = f.Path
		}
	}
	return tree, opener(dir, paths), nil
}

// opener opens by digest what was found by path.
func opener(dir string, paths map[kiln.Digest]string) Opener {
	return func(d kiln.Digest) (io.ReadCloser, error) {
		name, ok := paths[d]
		if !ok {
			return nil, &fs.PathError{Op: "open", Path: string(d), Err: fs.ErrNotExist}
		}
		root, err := os.OpenRoot(dir)
		if err != nil {
			return nil, kiln.Errorf(kiln.CodeFailed, "", "open the folder: %w", err)
		}
		defer func() { _ = root.Close() }()
		f, err := openRegular(root, name)
		if err != nil {
			return nil, err
		}
		return newVerified(f, name, d), nil
	}
}

// walk collects the wanted files and contexts.
func (w *walker) walk(want Want) error {
	for _, name := range want.Files {
		if err := w.single(name); err != nil {
			return w.tooMuch(".", err)
		}
	}
	if err := w.single(lockFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, c := range contexts(want.Images) {
		if err := w.context(c); err != nil {
			return w.tooMuch(c.path, err)
		}
	}
	return nil
}

// buildContext is a folder and the Dockerfiles that are built in it.
type buildContext struct {
	path        string
	dockerfiles []string
}

// contexts groups the images' Dockerfiles by context, sorted.
func contexts(images []kiln.Image) []buildContext {
	byPath := map[string][]string{}
	for _, i := range images {
		if i.Dockerfile != nil {
			at := path.Clean(i.Dockerfile.Context)
			byPath[at] = append(byPath[at], path.Clean(i.Dockerfile.File))
		}
	}
	var out []buildContext
	for at, dockerfiles := range byPath {
		slices.Sort(dockerfiles)
		out = append(out, buildContext{path: at, dockerfiles: slices.Compact(dockerfiles)})
	}
	slices.SortFunc(out, func(a, b buildContext) int { return strings.Compare(a.path, b.path) })
	return out
}
