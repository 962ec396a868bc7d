package seal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
)

// The on-disk format, as far as linkNames needs it (the kernel's
// Documentation/filesystems/erofs.rst). Numbers are little-endian.
const (
	blockSize       = 4096
	superOffset     = 1024
	superMagic      = 0xe0f5e1e2
	superRootNid    = superOffset + 14 // 2 bytes
	superInodes     = superOffset + 16 // 8 bytes
	superBlocks     = superOffset + 36 // 4 bytes
	superMetaBlock  = superOffset + 40 // 4 bytes
	inodeSlot       = 32               // bytes; a nid counts them from the metadata's start
	inodeExtended   = 1                // bit of i_format
	layoutPlain     = 0
	layoutInline    = 2
	direntSize      = 12
	xattrHeaderSize = 12
)

var errFormat = errors.New("the image is not as it was expected to be written")

// linkNames makes hard links: the writer knows none, so each further name of
// a file is a placeholder in the image, and here its directory entry gets the
// number of the file's inode. The placeholder's inode stays behind, 32 to 64
// bytes that nothing refers to.
func linkNames(image *os.File, aliases map[string]string) error {
	if len(aliases) == 0 {
		return nil
	}
	e, err := newEditor(image)
	if err != nil {
		return err
	}
	for _, alias := range slices.Sorted(maps.Keys(aliases)) {
		from, err := e.find(alias)
		if err != nil {
			return fmt.Errorf("%s: %w", alias, err)
		}
		to, err := e.find(aliases[alias])
		if err != nil {
			return fmt.Errorf("%s: %w", aliases[alias], err)
		}
		if _, err := image.WriteAt(binary.LittleEndian.AppendUint64(nil, to.nid), from.offset); err != nil {
			return err
		}
	}
	inodes := e.inodes - uint64(len(aliases))
	_, err = image.WriteAt(binary.LittleEndian.AppendUint64(nil, inodes), superInodes)
	return err
}

// padImage extends the file to the blocks that its superblock counts.
func padImage(image *os.File) error {
	var b [4]byte
	if _, err := image.ReadAt(b[:], superBlocks); err != nil {
		return err
	}
	want := int64(binary.LittleEndian.Uint32(b[:])) * blockSize
	info, err := image.Stat()
	if err != nil {
		return err
	}
	if info.Size() > want {
		return errFormat
	}
	return image.Truncate(want)
}

// editor finds directory entries in an image that writeImage wrote.
type editor struct {
	image  io.ReaderAt
	meta   int64 // offset of inode 0
	root   uint64
	inodes uint64
	dirs   map[string]map[string]dirent // by path of the folder
}

// dirent is a directory entry: where it is in the file, and its inode.
type dirent struct {
	offset int64
	nid    uint64
}

func newEditor(image io.ReaderAt) (*editor, error) {
	var b [superOffset + 128]byte
	if _, err := image.ReadAt(b[:], 0); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	if le.Uint32(b[superOffset:]) != superMagic || 1<<b[superOffset+12] != blockSize { //nolint:gosec // within b
		return nil, errFormat
	}
	return &editor{
		image:  image,
		meta:   int64(le.Uint32(b[superMetaBlock:])) * blockSize,
		root:   uint64(le.Uint16(b[superRootNid:])),
		inodes: le.Uint64(b[superInodes:]),
		dirs:   map[string]map[string]dirent{},
	}, nil
}

// find returns the directory entry of a path.
func (e *editor) find(p string) (dirent, error) {
	dir, err := e.dir(path.Dir(p))
	if err != nil {
		return dirent{}, err
	}
	d, ok := dir[path.Base(p)]
	if !ok {
		return dirent{}, errFormat
	}
	return d, nil
}

// dir lists a folder, once.
func (e *editor) dir(p string) (map[string]dirent, error) {
	if list, ok := e.dirs[p]; ok {
		return list, nil
	}
	nid := e.root
	if p != "." {
		d, err := e.find(p)
		if err != nil {
			return nil, err
		}
		nid = d.nid
	}
	list, err := e.list(nid)
	if err != nil {
		return nil, err
	}
	e.dirs[p] = list
	return list, nil
}

// list reads the folder with that inode.
func (e *editor) list(nid uint64) (map[string]dirent, error) {
	at := e.meta + int64(nid)*inodeSlot
	var inode [64]byte
	if n, err := e.image.ReadAt(inode[:], at); n < inodeSlot {
		return nil, err
	}
	le := binary.LittleEndian
	format := le.Uint16(inode[0:])
	header, size := int64(inodeSlot), int64(le.Uint32(inode[8:]))
	if format&inodeExtended != 0 {
		header = 2 * inodeSlot
	}
	if count := int64(le.Uint16(inode[2:])); count > 0 {
		header += xattrHeaderSize + (count-1)*4
	}
	var start int64
	switch format >> 1 & 7 {
	case layoutPlain:
		start = int64(le.Uint32(inode[16:])) * blockSize
	case layoutInline:
		start = at + header
	default:
		return nil, errFormat
	}
	data := make([]byte, size)
	if n, err := e.image.ReadAt(data, start); int64(n) < size {
		return nil, err
	}
	list := map[string]dirent{}
	for block := int64(0); block < size; block += blockSize {
		if err := listBlock(list, data[block:min(block+blockSize, size)], start+block); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// listBlock reads one block of a folder: entries, then their names.
func listBlock(list map[string]dirent, b []byte, at int64) error {
	le := binary.LittleEndian
	if len(b) < direntSize {
		return errFormat
	}
	count := int(le.Uint16(b[8:])) / direntSize
	if count*direntSize > len(b) {
		return errFormat
	}
	for i := range count {
		entry := b[i*direntSize:]
		from, to := int(le.Uint16(entry[8:])), len(b)
		if i+1 < count {
			to = int(le.Uint16(entry[direntSize+8:]))
		}
		if from > to || to > len(b) {
			return errFormat
		}
		name := string(bytes.TrimRight(b[from:to], "\x00"))
		list[name] = dirent{offset: at + int64(i)*direntSize, nid: le.Uint64(entry)}
	}
	return nil
}
