package seal

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
)

// slack is what headers and padding may add to the contents of the files of
// an image, in bytes.
const slack = 4 << 30

// errDamagedLayer is a blob that has not the digest of its name.
var errDamagedLayer = errors.New("the blob is damaged")

// layerInfo is one layer as its image describes it.
type layerInfo struct {
	Digest    kiln.Digest `json:"digest"` // of the blob
	Size      int64       `json:"size"`   // of the blob, in bytes
	MediaType string      `json:"media_type"`
	DiffID    kiln.Digest `json:"diff_id"` // of the tar
}

// plain tells a blob that is the tar itself. Its contents are skipped when the
// tar is read and copied from the file later, so it is hashed beside that, not
// on the way.
func (l layerInfo) plain() bool { return compression(l.MediaType) == "none" }

// compare holds the digests of blob and tar against those that they must have.
func (l layerInfo) compare(blob, tar kiln.Digest) error {
	if blob != l.Digest {
		return kiln.Errorf(kiln.CodeInvalid, "bake the image again", "layer %s: %w: its content has the digest %s", l.Digest, errDamagedLayer, blob)
	}
	if tar != l.DiffID {
		return kiln.Errorf(kiln.CodeInvalid, "bake the image again", "layer %s unpacks to %s, and the image's config says %s", l.Digest, tar, l.DiffID)
	}
	return nil
}

// layerStream reads one layer's tar and verifies, at its end, that the blob
// has the digest of the manifest and the tar that of the config, unless the
// blob is the tar.
type layerStream struct {
	layerInfo

	packed   hash.Hash      // over the blob
	raw      io.Reader      // the blob, hashed
	unpacked hash.Hash      // over the tar
	tar      *boundedReader // the tar, hashed and bounded
	stop     func()
}

// openStream reads a blob from its start, by position.
func openStream(l layerInfo, file io.ReaderAt, limit int64) (*layerStream, error) {
	blob := io.NewSectionReader(file, 0, l.Size)
	s := &layerStream{layerInfo: l, packed: sha256.New(), unpacked: sha256.New(), stop: func() {}}
	if l.plain() {
		s.tar = &boundedReader{r: blob, limit: limit}
		return s, nil
	}
	s.raw = io.TeeReader(blob, s.packed)
	inflated, err := s.inflate(bufio.NewReaderSize(s.raw, 256<<10))
	if err != nil {
		return nil, kiln.Errorf(kiln.CodeInvalid, "bake the image again from a source that you trust", "layer %s: %w", l.Digest, err)
	}
	ahead := readAhead(inflated)
	stop := s.stop
	s.stop = func() { ahead.stop(); stop() }
	s.tar = &boundedReader{r: io.TeeReader(ahead, s.unpacked), limit: limit}
	return s, nil
}

// inflate chooses by media type, never by content.
func (s *layerStream) inflate(r io.Reader) (io.Reader, error) {
	switch compression(s.MediaType) {
	case "gzip":
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, err
		}
		return z, nil
	case "zstd":
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(2), zstd.WithDecoderMaxWindow(128<<20), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, err
		}
		s.stop = z.Close
		return z, nil
	default:
		return nil, fmt.Errorf("media type %q is not that of a layer", s.MediaType)
	}
}

// compression names how a layer is packed, or "" for what is no layer
// (layer.md, and Docker's image manifest version 2, schema 2).
func compression(mediaType string) string {
	base, suffix, _ := strings.Cut(mediaType, "+")
	switch base {
	case ocispec.MediaTypeImageLayer, "application/vnd.oci.image.layer.nondistributable.v1.tar":
		switch suffix {
		case "":
			return "none"
		case "gzip", "zstd":
			return suffix
		}
	case "application/vnd.docker.image.rootfs.diff.tar", "application/vnd.docker.image.rootfs.foreign.diff.tar":
		return "none"
	case "application/vnd.docker.image.rootfs.diff.tar.gzip", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip":
		return "gzip"
	case "application/vnd.docker.image.rootfs.diff.tar.zstd":
		return "zstd"
	}
	return ""
}

// verify reads what tar readers leave unread and compares both digests.
func (s *layerStream) verify(ctx context.Context) error {
	buf := make([]byte, 256<<10)
	_, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, &contextReader{ctx, s.tar}, buf)
	if err == nil { // what the unpacker did not need; it is idle now
		_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, &contextReader{ctx, s.raw}, buf)
	}
	if err != nil {
		return refuse(s.Digest, "(end)", err)
	}
	return s.compare(digestOf(s.packed), digestOf(s.unpacked))
}

func (s *layerStream) close() { s.stop() }

// boundedReader counts, and refuses to read more than a number of bytes.
type boundedReader struct {
	r     io.Reader
	n     int64
	limit int64
}

func (b *boundedReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.n += int64(n); b.n > b.limit {
		return 0, errors.New("the layer unpacks to more than allowed")
	}
	return n, err
}

// Seek lets a tar reader pass over contents that are read from the file later.
// Only a plain layer can.
func (b *boundedReader) Seek(offset int64, whence int) (int64, error) {
	s, ok := b.r.(io.Seeker)
	if !ok {
		return 0, errors.ErrUnsupported
	}
	at, err := s.Seek(offset, whence)
	if err != nil {
		return 0, err
	}
	if b.n = at; b.n > b.limit {
		return 0, errors.New("the layer unpacks to more than allowed")
	}
	return at, nil
}

// count returns the bytes read so far.
func (b *boundedReader) count() int64 { return b.n }

func digestOf(h hash.Hash) kiln.Digest {
	return kiln.Digest("sha256:" + hex.EncodeToString(h.Sum(nil)))
}
