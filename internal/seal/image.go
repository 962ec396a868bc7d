package seal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"github.com/erofs/go-erofs"
	"golang.org/x/sys/unix"
)

// imageFS shows a tree to the EROFS writer, which walks it in sorted order.
// Of the names of one file only the first has the content; the others are
// placeholders, to be linked by linkNames.
type imageFS struct {
	root    *node
	links   map[*node]uint32  // how many names, where there are several
	aliases map[string]string // path of a further name: path of the first
}

func newImageFS(root *node) *imageFS {
	f := &imageFS{root: root, links: map[*node]uint32{}, aliases: map[string]string{}}
	f.count(root)
	for n, names := range f.links {
		if names == 1 {
			delete(f.links, n)
		}
	}
	f.name(root, "", map[*node]string{})
	return f
}

// count finds out how many names each file has.
func (f *imageFS) count(dir *node) {
	for _, n := range dir.children {
		if n.isDir() {
			f.count(n)
			continue
		}
		f.links[n]++
	}
}

// name chooses the first name of each file that has several.
func (f *imageFS) name(dir *node, at string, first map[*node]string) {
	for _, base := range dir.names() {
		n, p := dir.children[base], path.Join(at, base)
		switch {
		case n.isDir():
			f.name(n, p, first)
		case f.links[n] == 0:
		case first[n] == "":
			first[n] = p
		default:
			f.aliases[p] = first[n]
		}
	}
}

func (f *imageFS) lookup(op, name string) (*node, error) {
	n := f.root
	if name == "." {
		return n, nil
	}
	for part := range strings.SplitSeq(name, "/") {
		if n = n.children[part]; n == nil {
			return nil, &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist}
		}
	}
	return n, nil
}

// Open implements fs.FS.
func (f *imageFS) Open(name string) (fs.File, error) {
	n, err := f.lookup("open", name)
	if err != nil {
		return nil, err
	}
	if n.kind() != unix.S_IFREG {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	return &imageFile{n.content(), f.info(name, n)}, nil
}

// Stat implements fs.StatFS.
func (f *imageFS) Stat(name string) (fs.FileInfo, error) {
	n, err := f.lookup("stat", name)
	if err != nil {
		return nil, err
	}
	return f.info(name, n), nil
}

// ReadLink returns a symbolic link's target.
func (f *imageFS) ReadLink(name string) (string, error) {
	n, err := f.lookup("readlink", name)
	if err != nil {
		return "", err
	}
	return n.target, nil
}

// ReadDir implements fs.ReadDirFS.
func (f *imageFS) ReadDir(name string) ([]fs.DirEntry, error) {
	n, err := f.lookup("readdir", name)
	if err != nil {
		return nil, err
	}
	names := n.names()
	all := make([]fs.DirEntry, len(names))
	for i, base := range names {
		all[i] = fs.FileInfoToDirEntry(f.info(path.Join(name, base), n.children[base]))
	}
	return all, nil
}

func (f *imageFS) info(name string, n *node) *imageInfo {
	i := &imageInfo{name: path.Base(name), node: n, size: n.size}
	links := max(1, f.links[n])
	if n.isDir() {
		links = 2
		for _, child := range n.children {
			if child.isDir() {
				links++
			}
		}
	}
	i.stat = erofs.Stat{
		UID: n.uid, GID: n.gid, Nlink: int(links), Xattrs: n.xattrs,
		Mtime: uint64(n.sec), MtimeNs: n.nsec, // EROFS keeps times before 1970 in two's complement
	}
	if _, alias := f.aliases[name]; alias {
		i.size, i.stat = 0, erofs.Stat{Nlink: 1}
	}
	return i
}

// imageInfo describes a node to the writer, by *erofs.Stat in Sys.
type imageInfo struct {
	name string
	node *node
	size int64
	stat erofs.Stat
}

func (i *imageInfo) Name() string       { return i.name }
func (i *imageInfo) Size() int64        { return i.size }
func (i *imageInfo) ModTime() time.Time { return time.Unix(i.node.sec, int64(i.node.nsec)) }
func (i *imageInfo) IsDir() bool        { return i.node.isDir() }
func (i *imageInfo) Sys() any           { return &i.stat }

// Mode implements fs.FileInfo.
func (i *imageInfo) Mode() fs.FileMode {
	mode := fs.FileMode(i.node.mode & 0o777)
	if i.node.mode&unix.S_ISUID != 0 {
		mode |= fs.ModeSetuid
	}
	if i.node.mode&unix.S_ISGID != 0 {
		mode |= fs.ModeSetgid
	}
	if i.node.mode&unix.S_ISVTX != 0 {
		mode |= fs.ModeSticky
	}
	switch i.node.kind() {
	case unix.S_IFDIR:
		mode |= fs.ModeDir
	case unix.S_IFLNK:
		mode |= fs.ModeSymlink
	case unix.S_IFIFO:
		mode |= fs.ModeNamedPipe
	}
	return mode
}

// imageFile is a regular file's content.
type imageFile struct {
	*io.SectionReader
	info fs.FileInfo
}

func (f *imageFile) Stat() (fs.FileInfo, error) { return f.info, nil }
func (f *imageFile) Close() error               { return nil }

// writeImage writes a tree as one EROFS file. The same tree gives the same
// bytes. The file must be empty and open for reading and writing.
func writeImage(ctx context.Context, out *os.File, root *node) error {
	src := newImageFS(root)
	buffered := newSparseWriter(out)
	w := erofs.Create(&contextWriter{ctx, buffered}, erofs.WithBuildTime(0, 0), erofs.WithBlockSize(blockSize))
	if err := errors.Join(w.CopyFrom(src), w.Close(), buffered.Flush()); err != nil {
		return fmt.Errorf("write image: %w", err)
	}
	if err := padImage(out); err != nil {
		return fmt.Errorf("write image: %w", err)
	}
	if err := linkNames(out, src.aliases); err != nil {
		return fmt.Errorf("write image: link names: %w", err)
	}
	return nil
}

// contextWriter ends with its context.
type contextWriter struct {
	ctx context.Context // an io.Writer has no other way
	*sparseWriter
}

func (c *contextWriter) Write(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.sparseWriter.Write(p)
}
