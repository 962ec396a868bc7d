package seal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/erofs/go-erofs"
	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/confine"
)

// handed is what goes with an image's layers to a worker.
type handed struct {
	Layers  []layerInfo     `json:"layers"` // lowest first
	Limits  Limits          `json:"limits"`
	Request json.RawMessage `json:"request"`
}

// Hand has a task done on an image by a process of its own, which reads the
// image with Receive, and decodes what it says into answer. Nothing is sealed.
// A layer that is damaged is removed from the store, and said.
func (s *Sealer) Hand(ctx context.Context, manifest kiln.Digest, worker confine.Program, task string, request, answer any) error {
	body, err := json.Marshal(request)
	if err != nil {
		return fmt.Errorf("ask %s: %w", task, err)
	}
	layers, _, err := openImage(ctx, s.opt, manifest)
	defer layers.close()
	if err != nil {
		return err
	}
	spool, err := newSpool(s.opt.Dir)
	if err != nil {
		return err
	}
	defer func() { _ = spool.Close() }() // it has no name and is only read by now
	h := handed{Limits: s.opt.Limits, Request: body}
	files := []*os.File{spool}
	for _, l := range layers {
		h.Layers = append(h.Layers, l.layerInfo)
		files = append(files, l.file)
	}
	var said struct {
		Damaged kiln.Digest     `json:"damaged,omitempty"`
		Answer  json.RawMessage `json:"answer,omitempty"`
	}
	err = worker.Call(ctx, task, h, &said, files...)
	if err = layers.sound(ctx, s.opt.Store, said.Damaged, err); err != nil || answer == nil {
		return err
	}
	return json.Unmarshal(said.Answer, answer)
}

// Receive is the other end of Hand: it makes a task of a worker of what does
// something with an image and a request.
func Receive(do func(ctx context.Context, image *Tree, request json.RawMessage) (any, error)) confine.Task {
	return func(ctx context.Context, request json.RawMessage, files []*os.File) (any, error) {
		var h handed
		if err := json.Unmarshal(request, &h); err != nil {
			return nil, fmt.Errorf("read the job: %w", err)
		}
		if len(files) != len(h.Layers)+1 {
			return nil, errors.New("the job has not the files that it needs")
		}
		var said struct {
			Damaged kiln.Digest `json:"damaged,omitempty"`
			Answer  any         `json:"answer,omitempty"`
		}
		t, damaged, err := flattenTree(ctx, h.Layers, h.Limits, files[0], files[1:])
		if said.Damaged = damaged; err != nil {
			return said, err
		}
		said.Answer, err = do(ctx, t, h.Request)
		return said, err
	}
}

// flattenTree reads an image's layers, with temporary contents in an empty file.
// With an error it names the damaged layer, if that is why.
func flattenTree(ctx context.Context, layers []layerInfo, limits Limits, spool *os.File, files []*os.File) (*Tree, kiln.Digest, error) {
	t := &Tree{}
	for _, l := range layers {
		t.layers = append(t.layers, l.Digest)
	}
	f := newFlattener(openSpool(spool), limits)
	f.visit = func(path string, n *node) { t.files = append(t.files, layerFile{path, n}) }
	if damaged, err := f.blobs(ctx, layers, files); err != nil {
		return nil, damaged, err
	}
	t.root = f.root
	return t, "", f.spool.finish()
}

// Tree is an image's root file system, for reading. It implements fs.FS with
// ReadDir, Stat, Lstat and ReadLink. Symbolic links on the way of a path are
// followed, absolute ones from the root of the tree, and none leads out of it.
// Regular files are an io.ReaderAt besides. What Sys of a file's info has is an
// *erofs.Stat with owner and attributes. Many may read at once.
type Tree struct {
	root   *node
	layers []kiln.Digest
	files  []layerFile
}

// layerFile is a regular file as its layer brought it.
type layerFile struct {
	path string
	node *node
}

// File is a regular file of a layer, which may not be in the tree any more.
type File struct {
	Path    string // as the layer names it, without a leading slash
	Layer   kiln.Digest
	Info    fs.FileInfo
	Content *io.SectionReader
}

// Layers are the image's, the lowest first.
func (t *Tree) Layers() []kiln.Digest { return slices.Clone(t.layers) }

// Files are the regular files of all layers, lowest layer first, in the order
// of their tars: also what a later layer replaces or removes.
func (t *Tree) Files() iter.Seq[File] {
	return func(yield func(File) bool) {
		for _, f := range t.files {
			if !yield(File{f.path, t.layers[f.node.layer], infoOf(path.Base(f.path), f.node), f.node.content()}) {
				return
			}
		}
	}
}

// Layer is the digest of the layer that a path's file came with, "" where
// there is none.
func (t *Tree) Layer(name string) kiln.Digest {
	n, err := t.resolve("layer", strings.TrimPrefix(name, "/"), false)
	if err != nil || int(n.layer) >= len(t.layers) {
		return ""
	}
	return t.layers[n.layer]
}

// Open implements fs.FS.
func (t *Tree) Open(name string) (fs.File, error) {
	n, err := t.resolve("open", name, true)
	if err != nil {
		return nil, err
	}
	info := infoOf(path.Base(name), n)
	switch n.kind() {
	case unix.S_IFREG:
		return &imageFile{n.content(), info}, nil
	case unix.S_IFDIR:
		return &treeFolder{info: info, left: entriesOf(n)}, nil
	}
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
}

// Stat implements fs.StatFS.
func (t *Tree) Stat(name string) (fs.FileInfo, error) { return t.info("stat", name, true) }

// Lstat implements fs.ReadLinkFS.
func (t *Tree) Lstat(name string) (fs.FileInfo, error) { return t.info("lstat", name, false) }

func (t *Tree) info(op, name string, follow bool) (fs.FileInfo, error) {
	n, err := t.resolve(op, name, follow)
	if err != nil {
		return nil, err
	}
	return infoOf(path.Base(name), n), nil
}

// ReadLink implements fs.ReadLinkFS.
func (t *Tree) ReadLink(name string) (string, error) {
	n, err := t.resolve("readlink", name, false)
	if err == nil && !n.isSymlink() {
		err = &fs.PathError{Op: "readlink", Path: name, Err: fs.ErrInvalid}
	}
	if err != nil {
		return "", err
	}
	return n.target, nil
}

// ReadDir implements fs.ReadDirFS.
func (t *Tree) ReadDir(name string) ([]fs.DirEntry, error) {
	n, err := t.resolve("readdir", name, true)
	if err == nil && !n.isDir() {
		err = &fs.PathError{Op: "readdir", Path: name, Err: fs.ErrInvalid}
	}
	if err != nil {
		return nil, err
	}
	return entriesOf(n), nil
}

// resolve finds a path's node. follow is for a symbolic link at its end.
func (t *Tree) resolve(op, name string, follow bool) (*node, error) {
	if !fs.ValidPath(name) {
		return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	stack, parts, links := []*node{t.root}, strings.Split(name, "/"), 0
	for len(parts) > 0 {
		part := parts[0]
		parts = parts[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			stack = stack[:max(1, len(stack)-1)]
			continue
		}
		next := stack[len(stack)-1].children[part]
		if next == nil {
			return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
		}
		if !next.isSymlink() || len(parts) == 0 && !follow {
			stack = append(stack, next)
			continue
		}
		if links++; links > maxLinks {
			return nil, &fs.PathError{Op: op, Path: name, Err: errLoop}
		}
		if strings.HasPrefix(next.target, "/") {
			stack = stack[:1]
		}
		parts = append(strings.Split(next.target, "/"), parts...)
	}
	return stack[len(stack)-1], nil
}

func infoOf(base string, n *node) *imageInfo {
	return &imageInfo{name: base, node: n, size: n.size, stat: erofs.Stat{
		UID: n.uid, GID: n.gid, Nlink: 1, Xattrs: n.xattrs, Mtime: uint64(n.sec), MtimeNs: n.nsec, // as in imageFS
	}}
}

func entriesOf(n *node) []fs.DirEntry {
	names := n.names()
	all := make([]fs.DirEntry, len(names))
	for i, base := range names {
		all[i] = fs.FileInfoToDirEntry(infoOf(base, n.children[base]))
	}
	return all
}

// treeFolder is an open folder.
type treeFolder struct {
	info fs.FileInfo
	left []fs.DirEntry // not yet read
}

func (f *treeFolder) Stat() (fs.FileInfo, error) { return f.info, nil }
func (f *treeFolder) Close() error               { return nil }
func (f *treeFolder) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: f.info.Name(), Err: fs.ErrInvalid}
}

// ReadDir implements fs.ReadDirFile.
func (f *treeFolder) ReadDir(n int) ([]fs.DirEntry, error) {
	if n > 0 && len(f.left) == 0 {
		return nil, io.EOF
	}
	if n <= 0 || n > len(f.left) {
		n = len(f.left)
	}
	next := f.left[:n:n]
	f.left = f.left[n:]
	return next, nil
}
