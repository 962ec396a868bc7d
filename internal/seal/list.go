package seal

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/confine"
)

// ListTask is the name of the task of Entries, for the worker that does it by
// List.
const ListTask = "list"

// maxListed bounds the entries of one answer, all layers together.
const maxListed = 100_000

// listing is what List is asked.
type listing struct {
	Skip []kiln.Digest `json:"skip,omitempty"` // layers of which nothing is wanted
}

// Entries lists what the tars of an image's layers have, but for the layers to
// skip, by a worker's process. Every layer is there, the lowest first.
func (s *Sealer) Entries(ctx context.Context, manifest kiln.Digest, worker confine.Program, skip []kiln.Digest) ([]kiln.Layer, error) {
	var out []kiln.Layer
	err := s.Hand(ctx, manifest, worker, ListTask, listing{skip}, &out)
	return out, err
}

// List is the worker's part of Entries.
func List(ctx context.Context, request json.RawMessage, files []*os.File) (any, error) {
	var h handed
	if err := json.Unmarshal(request, &h); err != nil {
		return nil, fmt.Errorf("read the job: %w", err)
	}
	if len(files) != len(h.Layers)+1 {
		return nil, errors.New("the job has not the files that it needs")
	}
	var ask listing
	if err := json.Unmarshal(h.Request, &ask); err != nil {
		return nil, fmt.Errorf("read the job: %w", err)
	}
	var said struct {
		Damaged kiln.Digest  `json:"damaged,omitempty"`
		Answer  []kiln.Layer `json:"answer,omitempty"`
	}
	var err error
	said.Answer, said.Damaged, err = list(ctx, h, ask, files)
	return said, err
}

// lister notes the entries of the layers that are read.
type lister struct {
	f     *flattener
	out   []kiln.Layer
	skip  []kiln.Digest
	left  int
	files []listedFile
}

// listedFile is an entry whose content is hashed once all layers are read.
type listedFile struct {
	layer, entry int
	node         *node
}

func list(ctx context.Context, h handed, ask listing, files []*os.File) ([]kiln.Layer, kiln.Digest, error) {
	l := &lister{skip: ask.Skip, left: maxListed}
	for _, layer := range h.Layers {
		l.out = append(l.out, kiln.Layer{Digest: layer.Digest, Entries: []kiln.LayerEntry{}})
	}
	l.f = newFlattener(openSpool(files[0]), h.Limits)
	l.f.header, l.f.visit = l.header, l.visit
	if damaged, err := l.f.blobs(ctx, h.Layers, files[1:]); err != nil {
		return nil, damaged, err
	}
	if err := l.f.spool.finish(); err != nil {
		return nil, "", err
	}
	for _, file := range l.files {
		sum := sha256.New()
		if _, err := io.Copy(sum, &contextReader{ctx, file.node.content()}); err != nil {
			return nil, "", err
		}
		l.out[file.layer].Entries[file.entry].Content = digestOf(sum)
	}
	return l.out, "", nil
}

// header notes an entry of the layer that is being read.
func (l *lister) header(h *tar.Header) {
	layer := &l.out[l.f.reading]
	if slices.Contains(l.skip, layer.Digest) || h.Typeflag == tar.TypeXGlobalHeader {
		return
	}
	if l.left == 0 {
		layer.More++
		return
	}
	l.left--
	layer.Entries = append(layer.Entries, kiln.LayerEntry{
		Path: h.Name, Type: kindOf(h), Mode: fs.FileMode(h.Mode & 0o7777), UID: h.Uid, GID: h.Gid, Size: h.Size,
		ModTime: h.ModTime.UTC(), Link: h.Linkname,
	})
}

// visit notes where the content of the entry that was noted last is.
func (l *lister) visit(_ string, n *node) {
	at := int(l.f.reading)
	if last := len(l.out[at].Entries) - 1; last >= 0 && l.out[at].More == 0 && !slices.Contains(l.skip, l.out[at].Digest) {
		l.files = append(l.files, listedFile{at, last, n})
	}
}

func kindOf(h *tar.Header) string {
	switch h.Typeflag {
	case tar.TypeDir:
		return "folder"
	case tar.TypeSymlink:
		return "link"
	case tar.TypeLink:
		return "hard link"
	case tar.TypeChar, tar.TypeBlock:
		return "device"
	case tar.TypeFifo:
		return "pipe"
	}
	return "file"
}

// Check verifies the sealed file of an image for mount points as it lies on the
// disk: the signature of its record, and its digest. It mounts nothing. Without
// such a file it is false.
func (s *Sealer) Check(ctx context.Context, manifest kiln.Digest, mountPoints []string) (kiln.Digest, bool, error) {
	key, err := KeyOf(manifest, mountPoints)
	if err != nil {
		return "", false, err
	}
	r, err := s.load(ctx, key)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := mountAt(s.mountDir(key)); err == nil {
			return "", true, kiln.Errorf(kiln.CodeRefused, "", "it is mounted, and the record of what it is is gone")
		}
		return "", false, nil
	}
	if err == nil {
		err = s.same(ctx, key, r)
	}
	return r.Seal, true, err
}

// same compares a sealed file with its record.
func (s *Sealer) same(ctx context.Context, key Key, r record) error {
	f, err := os.Open(s.imagePath(key))
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	d, _, err := hashFile(ctx, f)
	if err == nil && d != r.Seal {
		err = kiln.Errorf(kiln.CodeRefused, "", "the file is %s, and its record says %s", d.Short(), r.Seal.Short())
	}
	return err
}
