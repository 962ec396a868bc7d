package layout

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
)

// folder is a folder, out of which no name and no link leads.
type folder struct{ root *os.Root }

func openFolder(path string) (files, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	return folder{root}, nil
}

func (f folder) Close() error { return f.root.Close() }

func (f folder) open(name string) (file, error) {
	info, err := f.root.Stat(name) // before it is opened: to open a pipe waits
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	opened, err := f.root.Open(name)
	if err != nil {
		return nil, err
	}
	if info, err = opened.Stat(); err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", name)
	}
	if err != nil {
		return nil, errors.Join(err, opened.Close())
	}
	return whole{opened, info.Size()}, nil
}

type whole struct {
	*os.File
	n int64
}

func (w whole) size() int64 { return w.n }

// maxNames bounds the entries of an archive.
const maxNames = 100_000

// archive is a tar, of which only the places of its files are known.
type archive struct {
	tar   *os.File
	parts map[string]part
	links map[string]string // symbolic and hard ones, by where they lead to
}

type part struct{ at, size int64 }

func openArchive(name string) (files, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	a := archive{tar: f, parts: map[string]part{}, links: map[string]string{}}
	if err := a.list(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return a, nil
}

func (a archive) Close() error { return a.tar.Close() }

// list finds the files of the archive. It reads their headers alone.
func (a archive) list() error {
	info, err := a.tar.Stat()
	if err != nil {
		return err
	}
	magic := make([]byte, 4)
	if _, err := a.tar.ReadAt(magic, 0); err != nil {
		return errors.New("it is too short for an archive")
	}
	if packed(magic) {
		return errors.New("it is packed: unpack it with gunzip or unzstd first")
	}
	for r, n := tar.NewReader(a.tar), 0; ; n++ {
		header, err := r.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("it is no tar that can be read: %w", err)
		case n == maxNames:
			return fmt.Errorf("it has more than %d entries", maxNames)
		}
		if err := a.add(header, info.Size()); err != nil {
			return err
		}
	}
}

func (a archive) add(header *tar.Header, total int64) error {
	name := strings.TrimSuffix(strings.TrimPrefix(header.Name, "./"), "/")
	if header.Typeflag == tar.TypeDir {
		return nil
	}
	if !fs.ValidPath(name) {
		return fmt.Errorf("it has the name %q, which leads out of it", clip(header.Name))
	}
	if _, twice := a.parts[name]; twice || a.links[name] != "" {
		return fmt.Errorf("it has %q twice", clip(name))
	}
	switch header.Typeflag {
	case tar.TypeReg:
		at, err := a.tar.Seek(0, io.SeekCurrent)
		if err != nil {
			return err
		}
		if header.Size > total-at {
			return fmt.Errorf("%q has %d bytes, and the archive ends before", clip(name), header.Size)
		}
		a.parts[name] = part{at, header.Size}
	case tar.TypeSymlink:
		a.links[name] = path.Join(path.Dir(name), header.Linkname) //nolint:gosec // a name in the archive; nothing is unpacked
	case tar.TypeLink:
		a.links[name] = strings.TrimPrefix(header.Linkname, "./")
	default:
		return fmt.Errorf("%q is neither a file nor a link", clip(name))
	}
	return nil
}

// open follows one link: docker save writes a layer once, and links to it.
func (a archive) open(name string) (file, error) {
	p, ok := a.parts[name]
	if !ok {
		p, ok = a.parts[a.links[name]]
	}
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: clip(name), Err: fs.ErrNotExist}
	}
	return section{io.NewSectionReader(a.tar, p.at, p.size)}, nil
}

type section struct{ *io.SectionReader }

func (s section) size() int64 { return s.Size() }
func (section) Close() error  { return nil }

// clip bounds a name for people.
func clip(name string) string {
	if len(name) > 200 {
		return name[:200] + "..."
	}
	return name
}
