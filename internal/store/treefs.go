package store

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/kilnproject/kiln"
)

// maxLinks is how many symbolic links one lookup follows, as in the kernel.
const maxLinks = 40

// TreeFS returns the tree's files as an fs.FS over the store's blobs, with
// fs.ReadDirFS, fs.ReadFileFS, fs.StatFS and fs.ReadLinkFS. Symbolic links are
// followed inside the tree only: one that is absolute or climbs out names
// nothing. When CheckTree refuses the tree every call returns its error.
// Modification times are zero.
func (s *Store) TreeFS(t kiln.Tree) fs.FS {
	f := &treeFS{store: s, nodes: map[string]*treeNode{}}
	f.nodes["."] = &treeNode{entry: kiln.TreeEntry{Path: ".", Mode: fs.ModeDir | 0o755}}
	if f.err = CheckTree(t); f.err != nil {
		return f
	}
	for _, e := range t.Entries {
		f.add(e)
	}
	for _, n := range f.nodes {
		slices.SortFunc(n.children, func(a, b *treeNode) int { return strings.Compare(a.Name(), b.Name()) })
	}
	return f
}

type treeFS struct {
	store *Store
	nodes map[string]*treeNode // by path
	err   error
}

// treeNode is one entry; it is its own fs.FileInfo and fs.DirEntry.
type treeNode struct {
	entry    kiln.TreeEntry
	children []*treeNode // sorted by name
}

func (n *treeNode) Name() string               { return path.Base(n.entry.Path) }
func (n *treeNode) Size() int64                { return n.entry.Size }
func (n *treeNode) Mode() fs.FileMode          { return n.entry.Mode }
func (n *treeNode) ModTime() time.Time         { return time.Time{} }
func (n *treeNode) IsDir() bool                { return n.entry.Mode.IsDir() }
func (n *treeNode) Sys() any                   { return nil }
func (n *treeNode) Type() fs.FileMode          { return n.entry.Mode.Type() }
func (n *treeNode) Info() (fs.FileInfo, error) { return n, nil }

func (f *treeFS) add(e kiln.TreeEntry) *treeNode {
	n := &treeNode{entry: e}
	f.nodes[e.Path] = n
	dir := path.Dir(e.Path)
	parent, ok := f.nodes[dir]
	if !ok {
		parent = f.add(kiln.TreeEntry{Path: dir, Mode: fs.ModeDir | 0o755})
	}
	parent.children = append(parent.children, n)
	return n
}

// find walks to a node, following links on the way and, when follow is set,
// at the end.
func (f *treeFS) find(op, name string, follow bool) (*treeNode, error) {
	fail := func(err error) (*treeNode, error) {
		return nil, &fs.PathError{Op: op, Path: name, Err: err}
	}
	if f.err != nil {
		return fail(f.err)
	}
	if !fs.ValidPath(name) {
		return fail(fs.ErrInvalid)
	}
	at, rest, links := "", name, 0
	for rest != "" && rest != "." {
		part, tail, _ := strings.Cut(rest, "/")
		next := path.Join(at, part)
		n, ok := f.nodes[next]
		switch {
		case !ok:
			return fail(fs.ErrNotExist)
		case n.entry.Mode.Type() == fs.ModeSymlink && (tail != "" || follow):
			if links++; links > maxLinks {
				return fail(fmt.Errorf("more than %d symbolic links", maxLinks))
			}
			target := path.Join(at, n.entry.Link)
			if path.IsAbs(n.entry.Link) || target == ".." || strings.HasPrefix(target, "../") {
				return fail(fs.ErrNotExist)
			}
			at, rest = "", path.Join(target, tail)
		case tail != "" && !n.IsDir():
			return fail(fs.ErrNotExist)
		default:
			at, rest = next, tail
		}
	}
	if at == "" {
		at = "."
	}
	return f.nodes[at], nil
}

// Open implements fs.FS.
func (f *treeFS) Open(name string) (fs.File, error) {
	n, err := f.find("open", name, true)
	if err != nil {
		return nil, err
	}
	if n.IsDir() {
		return &treeDir{node: n}, nil
	}
	blob, err := f.store.Open(n.entry.Digest)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return &treeFile{File: blob, node: n}, nil
}

// ReadFile implements fs.ReadFileFS. It verifies the content's digest.
func (f *treeFS) ReadFile(name string) ([]byte, error) {
	n, err := f.find("read", name, true)
	if err != nil {
		return nil, err
	}
	if n.IsDir() {
		return nil, &fs.PathError{Op: "read", Path: name, Err: fs.ErrInvalid}
	}
	b, err := f.store.document(n.entry.Digest)
	if err == nil && int64(len(b)) != n.entry.Size {
		err = fmt.Errorf("the blob has %d bytes, not %d", len(b), n.entry.Size)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: name, Err: err}
	}
	return b, nil
}

// ReadDir implements fs.ReadDirFS.
func (f *treeFS) ReadDir(name string) ([]fs.DirEntry, error) {
	n, err := f.find("readdir", name, true)
	if err != nil {
		return nil, err
	}
	if !n.IsDir() {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: fs.ErrInvalid}
	}
	return n.list(), nil
}

// Stat implements fs.StatFS.
func (f *treeFS) Stat(name string) (fs.FileInfo, error) {
	n, err := f.find("stat", name, true)
	if err != nil {
		return nil, err
	}
	return n, nil
}

// Lstat implements fs.ReadLinkFS.
func (f *treeFS) Lstat(name string) (fs.FileInfo, error) {
	n, err := f.find("lstat", name, false)
	if err != nil {
		return nil, err
	}
	return n, nil
}

// ReadLink implements fs.ReadLinkFS.
func (f *treeFS) ReadLink(name string) (string, error) {
	n, err := f.find("readlink", name, false)
	if err != nil {
		return "", err
	}
	if n.entry.Mode.Type() != fs.ModeSymlink {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: fs.ErrInvalid}
	}
	return n.entry.Link, nil
}

func (n *treeNode) list() []fs.DirEntry {
	all := make([]fs.DirEntry, len(n.children))
	for i, c := range n.children {
		all[i] = c
	}
	return all
}

// treeFile is a blob with the name and mode of its entry.
type treeFile struct {
	*os.File
	node *treeNode
}

func (f *treeFile) Stat() (fs.FileInfo, error) { return f.node, nil }

// treeDir is an open folder.
type treeDir struct {
	node *treeNode
	next int
}

func (d *treeDir) Stat() (fs.FileInfo, error) { return d.node, nil }
func (d *treeDir) Close() error               { return nil }
func (d *treeDir) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: d.node.entry.Path, Err: fs.ErrInvalid}
}

// ReadDir implements fs.ReadDirFile.
func (d *treeDir) ReadDir(n int) ([]fs.DirEntry, error) {
	rest := d.node.list()[d.next:]
	if n > 0 {
		if len(rest) == 0 {
			return nil, io.EOF
		}
		rest = rest[:min(n, len(rest))]
	}
	d.next += len(rest)
	return rest, nil
}
