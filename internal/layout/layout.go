// Package layout reads an image from files that somebody has: a folder with an
// OCI layout, an OCI archive, or what docker save and podman save write. It
// unpacks nothing and runs nothing: an image's documents are read within bounds,
// its blobs are found, and each is known to be what its name says before anybody
// is given it.
package layout

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
)

// Bounds of an image.
const (
	maxDocument = 16 << 20 // bytes of a manifest, an index or a configuration
	maxNested   = 4        // indexes in indexes
	maxEntries  = 1000     // of an index, and layers of an image
)

// Image is an image whose blobs are all there.
type Image struct {
	Digest kiln.Digest // of its manifest
	Blobs  []Blob      // the manifest, the configuration and the layers
}

// Blob is content that is what its digest says.
type Blob struct {
	Digest kiln.Digest
	Size   int64
	Open   func() (io.ReadCloser, error)
}

// Layout is an open folder or archive.
type Layout struct {
	path  string
	files files
}

// files are those of a layout.
type files interface {
	// open opens a regular file; the error matches fs.ErrNotExist where there is
	// none.
	open(name string) (file, error)
	io.Closer
}

// file is one of them, for reading from any offset.
type file interface {
	io.ReaderAt
	io.Closer
	size() int64
}

// Is says whether a path looks like what Open opens: a regular file, or a folder
// with an OCI layout. A program is none: it often has the name of the image that
// is made of it.
func Is(path string) bool {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return false
	case info.IsDir():
		_, err = os.Lstat(path + "/" + ocispec.ImageLayoutFile)
		return err == nil
	}
	return info.Mode().IsRegular() && !isProgram(path)
}

// isProgram says whether a file begins as what Linux executes: ELF, or a script.
func isProgram(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }() // it was only read
	magic := make([]byte, 4)
	n, _ := f.ReadAt(magic, 0)
	return bytes.HasPrefix(magic[:n], []byte("\x7fELF")) || bytes.HasPrefix(magic[:n], []byte("#!"))
}

// packed says whether a file begins as gzip or zstd do: Open refuses it in
// words.
func packed(head []byte) bool {
	return bytes.HasPrefix(head, []byte{0x1f, 0x8b}) || bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd})
}

// Open opens a folder or an archive.
func Open(path string) (*Layout, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, kiln.Errorf(kiln.CodeNotFound, "name a folder with an OCI layout, or an archive of docker save or podman save", "there is no %s", path)
	}
	l := &Layout{path: path}
	switch {
	case err != nil:
	case info.IsDir():
		l.files, err = openFolder(path)
	case info.Mode().IsRegular():
		l.files, err = openArchive(path)
	default:
		err = errors.New("it is neither a folder nor a file")
	}
	if err != nil {
		return nil, l.bad("%w", err)
	}
	return l, nil
}

// Close closes it. Nothing that it gave can be opened after that.
func (l *Layout) Close() error { return l.files.Close() }

// bad is the error of a layout that is not as it should be.
func (l *Layout) bad(format string, args ...any) error {
	return kiln.Errorf(kiln.CodeInvalid, "write it again, as with skopeo copy ... oci:FOLDER, podman save or docker save", "%s is not a whole image: %w", l.path, fmt.Errorf(format, args...))
}

// Image finds the image of a platform ("linux/amd64"), and hashes all of it.
func (l *Layout) Image(ctx context.Context, platform string) (Image, error) {
	var index ocispec.Index
	err := l.read(ocispec.ImageIndexFile, &index)
	if errors.Is(err, fs.ErrNotExist) {
		return l.saved(ctx)
	}
	if err != nil {
		return Image{}, l.bad("%s: %w", ocispec.ImageIndexFile, err)
	}
	c := chooser{layout: l, platform: platform, seen: map[kiln.Digest]bool{}}
	if err := c.look(index.Manifests, maxNested); err != nil {
		return Image{}, err
	}
	d, err := c.chosen()
	if err != nil {
		return Image{}, err
	}
	return l.whole(ctx, d)
}

// whole is an image once every blob of it was hashed.
func (l *Layout) whole(ctx context.Context, d ocispec.Descriptor) (Image, error) {
	var m ocispec.Manifest
	if err := l.document(d, &m); err != nil {
		return Image{}, err
	}
	if m.Config.Digest == "" || len(m.Layers) > maxEntries {
		return Image{}, l.bad("%s is not the manifest of an image of at most %d layers", d.Digest, maxEntries)
	}
	out := Image{Digest: kiln.Digest(d.Digest)}
	for _, one := range append([]ocispec.Descriptor{d, m.Config}, m.Layers...) {
		name, err := blobName(one)
		if err != nil {
			return Image{}, l.bad("%w", err)
		}
		got, size, err := l.hash(ctx, name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return Image{}, l.bad("the blob %s is not there", one.Digest)
		case err != nil:
			return Image{}, l.bad("the blob %s cannot be read: %w", one.Digest, err)
		case size != one.Size:
			return Image{}, l.bad("the blob %s has %d bytes, and its manifest says %d", one.Digest, size, one.Size)
		case got != kiln.Digest(one.Digest):
			return Image{}, l.bad("the blob %s has other content: its digest is %s", one.Digest, got)
		}
		out.Blobs = append(out.Blobs, l.blob(name, got, size))
	}
	return out, nil
}

func (l *Layout) blob(name string, d kiln.Digest, size int64) Blob {
	return Blob{d, size, func() (io.ReadCloser, error) {
		f, err := l.files.open(name)
		if err != nil {
			return nil, err
		}
		return struct {
			io.Reader
			io.Closer
		}{io.NewSectionReader(f, 0, f.size()), f}, nil
	}}
}

// hash is the digest and the size of a file.
func (l *Layout) hash(ctx context.Context, name string) (kiln.Digest, int64, error) {
	f, err := l.files.open(name)
	if err != nil {
		return "", 0, err
	}
	defer func() { _ = f.Close() }() // it was only read
	sum := sha256.New()
	n, err := io.Copy(sum, &interrupted{ctx, io.NewSectionReader(f, 0, f.size())})
	if err == nil && n != f.size() {
		err = io.ErrUnexpectedEOF
	}
	return kiln.Digest("sha256:" + hex.EncodeToString(sum.Sum(nil))), n, err
}

// interrupted is a reader that ends with a context.
type interrupted struct {
	ctx context.Context
	r   io.Reader
}

func (i *interrupted) Read(b []byte) (int, error) {
	if err := i.ctx.Err(); err != nil {
		return 0, err
	}
	return i.r.Read(b)
}

// document reads a small blob, which must be what its digest says.
func (l *Layout) document(d ocispec.Descriptor, into any) error {
	name, err := blobName(d)
	if err != nil {
		return l.bad("%w", err)
	}
	b, err := l.bytes(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return l.bad("the blob %s is not there", d.Digest)
	case err != nil:
		return l.bad("the blob %s cannot be read: %w", d.Digest, err)
	}
	if got := kiln.DigestOf(b); got != kiln.Digest(d.Digest) {
		return l.bad("the blob %s has other content: its digest is %s", d.Digest, got)
	}
	if err := json.Unmarshal(b, into); err != nil {
		return l.bad("the blob %s is no manifest: %w", d.Digest, err)
	}
	return nil
}

func blobName(d ocispec.Descriptor) (string, error) {
	digest, err := kiln.ParseDigest(string(d.Digest))
	if err != nil {
		return "", err
	}
	return "blobs/sha256/" + digest.Hex(), nil
}

// read reads a file with JSON.
func (l *Layout) read(name string, into any) error {
	b, err := l.bytes(name)
	if err == nil {
		err = json.Unmarshal(b, into)
	}
	return err
}

func (l *Layout) bytes(name string) ([]byte, error) {
	f, err := l.files.open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // it was only read
	if f.size() > maxDocument {
		return nil, fmt.Errorf("it has %d bytes, and %d are the most", f.size(), maxDocument)
	}
	return io.ReadAll(io.NewSectionReader(f, 0, f.size()))
}

// chooser finds the images of a platform in an index and those in it.
type chooser struct {
	layout   *Layout
	platform string
	seen     map[kiln.Digest]bool
	found    []ocispec.Descriptor
	others   []string // platforms
}

func (c *chooser) look(entries []ocispec.Descriptor, depth int) error {
	if depth == 0 || len(entries) > maxEntries {
		return c.layout.bad("an index has more than %d images, or indexes in it that are more than %d deep", maxEntries, maxNested)
	}
	for _, e := range entries {
		if c.seen[kiln.Digest(e.Digest)] || !kiln.MayBeImage(e.ArtifactType) {
			continue
		}
		c.seen[kiln.Digest(e.Digest)] = true
		if e.Platform != nil && !c.covers(*e.Platform) {
			c.others = append(c.others, e.Platform.OS+"/"+e.Platform.Architecture)
			continue
		}
		var doc struct {
			Config    *ocispec.Descriptor  `json:"config"`
			Manifests []ocispec.Descriptor `json:"manifests"`
			Subject   *ocispec.Descriptor  `json:"subject"`
		}
		if err := c.layout.document(e, &doc); err != nil {
			return err
		}
		switch {
		case doc.Config != nil && doc.Subject == nil:
			c.found = append(c.found, e)
		case doc.Config == nil:
			if err := c.look(doc.Manifests, depth-1); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *chooser) covers(p ocispec.Platform) bool {
	return p.OS+"/"+p.Architecture == c.platform || p.OS+"/"+p.Architecture+"/"+p.Variant == c.platform
}

func (c *chooser) chosen() (ocispec.Descriptor, error) {
	switch len(c.found) {
	case 1:
		return c.found[0], nil
	case 0:
		slices.Sort(c.others)
		hint := "name another file"
		if c.others = slices.Compact(c.others); len(c.others) > 0 {
			hint = "it has " + strings.Join(c.others, ", ") + "; --platform chooses one"
		}
		return ocispec.Descriptor{}, kiln.Errorf(kiln.CodeNotFound, hint, "%s has no image for %s", c.layout.path, c.platform)
	}
	var names []string
	for _, d := range c.found {
		name := d.Annotations[ocispec.AnnotationRefName]
		if name == "" {
			name = kiln.Digest(d.Digest).Short()
		}
		names = append(names, name)
	}
	return ocispec.Descriptor{}, kiln.Errorf(kiln.CodeInvalid, "write one image alone into it", "%s has several images for %s: %s", c.layout.path, c.platform, strings.Join(names, ", "))
}
