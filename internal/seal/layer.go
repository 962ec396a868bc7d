package seal

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
)

// The prefixes of layer.md#whiteouts. Names with the second one are AUFS's
// own records, of which only the opaque marker says something.
const (
	whiteout     = ".wh."
	whiteoutMeta = ".wh..wh."
	opaqueMarker = ".wh..wh..opq"
)

// The kernel's bounds, in bytes.
const (
	maxName = 255
	maxPath = 4095
)

// Bounds of modification times, those of ext4: what is outside is clamped.
const (
	minTime = math.MinInt32
	maxTime = 1<<34 - 1
)

// Limits bound what all layers of an image may bring.
type Limits struct {
	Entries int   // names, also implied and hidden ones
	Bytes   int64 // apparent size of all files together
	Names   int64 // bytes of all paths, with links followed, of targets and attributes
}

// DefaultLimits are those of a Sealer. Within them a hostile image costs at
// most about a gigabyte of memory and some minutes of one processor.
func DefaultLimits() Limits {
	return Limits{Entries: 1_000_000, Bytes: 64 << 30, Names: 256 << 20}
}

// entry takes one name from what is left.
func (l *Limits) entry() error {
	if l.Entries--; l.Entries < 0 {
		return errors.New("the image has more entries than allowed")
	}
	return nil
}

// name takes bytes of a path, a link's target or an attribute.
func (l *Limits) name(n int) error {
	if l.Names -= int64(n); l.Names < 0 {
		return errors.New("the image has longer names and attributes than allowed, all together")
	}
	return nil
}

// flattener reads layers, lowest first, into one tree.
type flattener struct {
	root    *node
	spool   *spool
	left    Limits
	reading uint16 // the layer that is being read, from 0
	// visit is told of every regular file of every layer, also of those that a
	// later layer hides; nil for nobody.
	visit func(path string, n *node)
	// header is told of every entry before it is applied; nil for nobody.
	header func(h *tar.Header)
	// dropped are the entries that were made harmless by leaving them out.
	dropped drops
}

// drops counts what was left out and remembers the first few.
type drops struct {
	Count int      `json:"count,omitempty"`
	First []string `json:"first,omitempty"` // "device dev/sda", "attribute trusted.x of a/b"
}

func (d *drops) add(what string) {
	if d.Count++; len(d.First) < 20 {
		d.First = append(d.First, what)
	}
}

func newFlattener(s *spool, limits Limits) *flattener {
	return &flattener{root: newDir(), spool: s, left: limits}
}

// layer reads one layer's tar and puts it over the tree. The error names the
// layer and the entry. After an error the tree must not be used.
func (f *flattener) layer(ctx context.Context, name kiln.Digest, r io.Reader) error {
	return f.layerAt(ctx, name, &layerTar{Reader: tar.NewReader(r)})
}

// layerTar is a layer's tar. Where it is a plain file, contents are left there.
type layerTar struct {
	*tar.Reader
	plain io.ReaderAt
	read  func() int64 // bytes read so far: where the present entry's content begins
}

func (f *flattener) layerAt(ctx context.Context, name kiln.Digest, a *layerTar) error {
	upper := newDir()
	v := view{upper: upper, lower: f.root, left: &f.left}
	last := "(first)"
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := a.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return refuse(name, "after "+last, err)
		}
		last = h.Name
		if f.header != nil {
			f.header(h)
		}
		if err := f.entry(ctx, v, h, a); err != nil {
			return refuse(name, h.Name, err)
		}
	}
	merge(f.root, upper)
	return nil
}

// refuse names what is wrong and where. Ends of contexts and failures of the
// disk are not the layer's fault and stay what they are.
func refuse(layer kiln.Digest, entry string, err error) error {
	if len(entry) > 300 {
		entry = entry[:300] + "..."
	}
	if known := roomOrContext(err); known != nil {
		return known
	}
	return kiln.Errorf(kiln.CodeInvalid, "bake the image again from a source that you trust", "layer %s: entry %q: %w", layer, entry, err)
}

// entry applies one entry of the tar.
func (f *flattener) entry(ctx context.Context, v view, h *tar.Header, content *layerTar) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	parts, err := splitPath(h.Name)
	if err != nil {
		return err
	}
	if len(parts) == 0 {
		// The root keeps its metadata, as with containerd: layers are often
		// made in a folder that nobody else may enter.
		return nil
	}
	// What is kept is cloned: the header's strings are parts of larger ones.
	base := strings.Clone(parts[len(parts)-1])
	if strings.HasPrefix(base, whiteout) {
		return f.whiteout(v, parts[:len(parts)-1], base)
	}
	in, err := v.find(parts[:len(parts)-1], true)
	if err != nil {
		return err
	}
	length := in.length + 1 + len(base)
	if length > maxPath {
		return errLong
	}
	if err := f.left.name(length + len(h.Linkname)); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock {
		f.dropped.add("device " + h.Name)
		delete(in.up.children, base)
		return f.hide(in.up, base)
	}
	n, err := f.node(ctx, v, h, content)
	if err != nil {
		return err
	}
	if n.isDir() {
		return f.putDir(in.up, base, n)
	}
	if in.up.children[base] == nil {
		if err := f.left.entry(); err != nil {
			return err
		}
	}
	in.up.children[base] = n
	if f.visit != nil && n.kind() == unix.S_IFREG && h.Typeflag != tar.TypeLink {
		f.visit(strings.Join(parts, "/"), n)
	}
	return nil
}

// putDir adds a folder or, where the layer has one already, describes it.
func (f *flattener) putDir(in *node, base string, n *node) error {
	old := in.children[base]
	if old != nil && old.isDir() {
		old.describe(n)
		old.implied = false
		return nil
	}
	// What replaces a file of its own layer hides what was below that file.
	n.opaque = old != nil
	if old == nil {
		if err := f.left.entry(); err != nil {
			return err
		}
	}
	in.children[base] = n
	return nil
}

// whiteout hides what lower layers have under a name or in a folder.
func (f *flattener) whiteout(v view, dir []string, base string) error {
	hidden := strings.TrimPrefix(base, whiteout)
	switch {
	case strings.HasPrefix(base, whiteoutMeta) && base != opaqueMarker:
		return nil
	case hidden == "" || hidden == "." || hidden == "..":
		return errors.New("it is a whiteout of nothing")
	}
	in, err := v.find(dir, true)
	if err != nil {
		return err
	}
	if err := f.left.name(in.length + 1 + len(hidden)); err != nil {
		return err
	}
	if base == opaqueMarker {
		in.up.opaque = true
		return nil
	}
	return f.hide(in.up, hidden)
}

// hide makes a lower layer's name disappear.
func (f *flattener) hide(in *node, name string) error {
	if in.gone[name] {
		return nil
	}
	if in.gone == nil {
		in.gone = map[string]bool{}
	}
	in.gone[name] = true
	return f.left.entry()
}

// node makes the node that an entry describes; for a hard link, finds it.
func (f *flattener) node(ctx context.Context, v view, h *tar.Header, content *layerTar) (*node, error) {
	if h.Typeflag == tar.TypeLink {
		return f.hardLink(v, h)
	}
	n, err := f.metadata(h)
	if err != nil {
		return nil, err
	}
	switch h.Typeflag {
	case tar.TypeDir:
		n.mode |= unix.S_IFDIR
		n.children = map[string]*node{}
	case tar.TypeSymlink:
		n.mode = unix.S_IFLNK | 0o777
		n.target = strings.Clone(h.Linkname)
		if n.target == "" || len(n.target) > maxPath || strings.ContainsRune(n.target, 0) {
			return nil, errors.New("the target of the symbolic link is empty, too long or has a NUL")
		}
	case tar.TypeFifo:
		n.mode |= unix.S_IFIFO
	case tar.TypeReg, tar.TypeRegA, tar.TypeCont, tar.TypeGNUSparse: //nolint:staticcheck // old archives have TypeRegA
		n.mode |= unix.S_IFREG
		if h.Size < 0 || h.Size > f.left.Bytes {
			return nil, fmt.Errorf("with its %d bytes the image is larger than allowed", h.Size)
		}
		f.left.Bytes -= h.Size
		n.size = h.Size
		n.from, n.offset, err = f.content(ctx, h, content)
	default:
		return nil, fmt.Errorf("it has the unknown type %q", h.Typeflag)
	}
	return n, err
}

// content tells where an entry's content is, or spools it.
func (f *flattener) content(ctx context.Context, h *tar.Header, a *layerTar) (io.ReaderAt, int64, error) {
	if a.plain != nil && !isSparse(h) {
		return a.plain, a.read(), nil
	}
	offset, err := f.spool.add(ctx, a, h.Size)
	return f.spool.file, offset, err
}

// isSparse tells entries that are stored without their holes.
func isSparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// hardLink finds what the entry is another name of, in this layer or below.
func (f *flattener) hardLink(v view, h *tar.Header) (*node, error) {
	target, err := splitPath(h.Linkname)
	if err != nil {
		return nil, fmt.Errorf("target of the hard link: %w", err)
	}
	n, err := v.lookup(target)
	if err != nil {
		return nil, fmt.Errorf("target %q of the hard link: %w", h.Linkname, err)
	}
	if n.isDir() {
		return nil, fmt.Errorf("target %q of the hard link is a folder", h.Linkname)
	}
	return n, nil
}

// metadata reads owner, permissions, time and extended attributes.
func (f *flattener) metadata(h *tar.Header) (*node, error) {
	const maxID = math.MaxUint32 - 1 // the last one means "none"
	if h.Uid < 0 || h.Uid > maxID || h.Gid < 0 || h.Gid > maxID {
		return nil, fmt.Errorf("owner %d:%d is out of range", h.Uid, h.Gid)
	}
	n := &node{
		mode:  uint32(h.Mode & 0o7777),
		uid:   uint32(h.Uid), // checked above
		gid:   uint32(h.Gid),
		layer: f.reading,
		sec:   min(max(h.ModTime.Unix(), minTime), maxTime),
		nsec:  uint32(h.ModTime.Nanosecond()),
	}
	var err error
	n.xattrs, err = f.attributes(h)
	return n, err
}

// splitPath returns the parts of an entry's name, none for the root. A
// leading slash means the root of the image, as elsewhere.
func splitPath(name string) ([]string, error) {
	if len(name) > maxPath {
		return nil, fmt.Errorf("its name has more than %d bytes", maxPath)
	}
	if name == "" || strings.ContainsRune(name, 0) {
		return nil, errors.New("its name is empty or has a NUL")
	}
	var parts []string
	for part := range strings.SplitSeq(name, "/") {
		switch {
		case part == "" || part == ".":
			continue
		case part == "..":
			return nil, errors.New("its name has a \"..\"")
		case len(part) > maxName:
			return nil, fmt.Errorf("a part of its name has more than %d bytes", maxName)
		}
		if len(parts) > 0 && strings.HasPrefix(parts[len(parts)-1], whiteout) {
			return nil, errors.New("it is beneath a whiteout")
		}
		parts = append(parts, part)
	}
	return parts, nil
}
