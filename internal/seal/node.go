package seal

import (
	"io"
	"maps"
	"slices"

	"golang.org/x/sys/unix"
)

// node is a file of any kind. Two names of one node are hard links. Nodes
// other than folders never change once they are in a tree.
type node struct {
	mode     uint32 // type and permission bits as in stat(2), with the set-id bits
	uid, gid uint32
	sec      int64 // modification time
	nsec     uint32
	size     int64       // of a regular file, in bytes
	from     io.ReaderAt // where its content is: the spool, or a layer that is a plain tar
	offset   int64       // of its content there
	target   string      // of a symbolic link
	xattrs   map[string]string
	children map[string]*node // of a folder
	layer    uint16           // that brought it, from 0, the lowest

	// The rest describes a folder of a single layer, before it is merged.

	implied bool            // no entry of the layer names it
	opaque  bool            // hides what lower layers have in it
	gone    map[string]bool // names of lower layers that are hidden
}

// newDir returns a folder as it is made for a path that no entry describes.
func newDir() *node {
	return &node{mode: unix.S_IFDIR | 0o755, children: map[string]*node{}, implied: true}
}

func (n *node) kind() uint32    { return n.mode & unix.S_IFMT }
func (n *node) isDir() bool     { return n.kind() == unix.S_IFDIR }
func (n *node) isSymlink() bool { return n.kind() == unix.S_IFLNK }

// content reads a regular file. Everything must have been read and flushed.
func (n *node) content() *io.SectionReader { return io.NewSectionReader(n.from, n.offset, n.size) }

// names returns the sorted names in a folder.
func (n *node) names() []string { return slices.Sorted(maps.Keys(n.children)) }

// describe gives a folder another one's metadata.
func (n *node) describe(by *node) {
	n.mode = unix.S_IFDIR | by.mode&0o7777
	n.uid, n.gid, n.sec, n.nsec, n.xattrs, n.layer = by.uid, by.gid, by.sec, by.nsec, by.xattrs, by.layer
}

// merge puts the folder of an upper layer over that of the layers below, as
// overlayfs shows it (OCI image specification, layer.md#applying-changesets).
// Whiteouts and opaque markers concern lower layers only, wherever they stand
// in their own. The upper tree must not be used afterwards.
func merge(lower, upper *node) {
	if upper.opaque {
		clear(lower.children)
	}
	for name := range upper.gone {
		delete(lower.children, name)
	}
	if !upper.implied {
		lower.describe(upper)
	}
	for name, up := range upper.children {
		if low, ok := lower.children[name]; ok && low.isDir() && up.isDir() {
			merge(low, up)
			continue
		}
		up.settle()
		lower.children[name] = up
	}
}

// settle forgets what a folder hid, once nothing is below it.
func (n *node) settle() {
	n.gone, n.opaque, n.implied = nil, false, false
	if !n.isDir() {
		return
	}
	for _, child := range n.children {
		child.settle()
	}
}
