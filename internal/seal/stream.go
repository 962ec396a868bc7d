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
	"os"
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

// layerStream reads one layer's tar and verifies, at its end, that the blob
// has the digest of the manifest and the tar that of the config.
type layerStream struct {
	desc   ocispec.Descriptor
	diffID kiln.Digest
	plain  bool // the blob is the tar

	file     *os.File
	packed   hash.Hash      // over the blob, where it is not the tar
	raw      io.Reader      // the blob, hashed
	unpacked hash.Hash      // over the tar, where it is not the blob
	tar      *boundedReader // the tar, hashed where it is not the blob, and bounded
	sum      *plainSum      // of the blob, where it is the tar
	stop     func()
}

func openLayer(ctx context.Context, store Store, known *knownLayers, desc ocispec.Descriptor, diffID kiln.Digest, limit int64) (*layerStream, error) {
	f, err := store.Open(kiln.Digest(desc.Digest))
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", desc.Digest, err)
	}
	if info, err := f.Stat(); err != nil || info.Size() != desc.Size {
		return nil, errors.Join(kiln.Errorf(kiln.CodeInvalid, "bake the image again", "layer %s is damaged: it has not the %d bytes of the manifest", desc.Digest, desc.Size), err, f.Close())
	}
	s := &layerStream{
		desc: desc, diffID: diffID, plain: compression(desc.MediaType) == "none",
		file: f, packed: sha256.New(), unpacked: sha256.New(), stop: func() {},
	}
	if s.plain {
		// Contents are skipped here and copied from the file later, so the
		// digest is taken beside that, not on the way.
		s.tar = &boundedReader{r: io.NewSectionReader(f, 0, desc.Size), limit: limit}
		s.sum = known.sum(ctx, f, kiln.Digest(desc.Digest))
		return s, nil
	}
	s.raw = io.TeeReader(f, s.packed)
	inflated, err := s.inflate(bufio.NewReaderSize(s.raw, 256<<10))
	if err != nil {
		s.close()
		return nil, kiln.Errorf(kiln.CodeInvalid, "bake the image again from a source that you trust", "layer %s: %w", desc.Digest, err)
	}
	ahead := readAhead(inflated)
	stop := s.stop
	s.stop = func() { ahead.stop(); stop() }
	s.tar = &boundedReader{r: io.TeeReader(ahead, s.unpacked), limit: limit}
	return s, nil
}

// inflate chooses by media type, never by content.
func (s *layerStream) inflate(r io.Reader) (io.Reader, error) {
	switch compression(s.desc.MediaType) {
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
		return nil, fmt.Errorf("media type %q is not that of a layer", s.desc.MediaType)
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
	if s.plain {
		blob, err := s.sum.wait(ctx)
		if err != nil {
			return refuse(kiln.Digest(s.desc.Digest), "(end)", err)
		}
		return s.compare(blob, blob)
	}
	buf := make([]byte, 256<<10)
	_, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, &contextReader{ctx, s.tar}, buf)
	if err == nil { // what the unpacker did not need; it is idle now
		_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, &contextReader{ctx, s.raw}, buf)
	}
	if err != nil {
		return refuse(kiln.Digest(s.desc.Digest), "(end)", err)
	}
	return s.compare(digestOf(s.packed), digestOf(s.unpacked))
}

// compare holds the digests of blob and tar against those that they must have.
func (s *layerStream) compare(blob, tar kiln.Digest) error {
	if blob != kiln.Digest(s.desc.Digest) {
		return kiln.Errorf(kiln.CodeInvalid, "bake the image again", "layer %s: %w: its content has the digest %s", s.desc.Digest, errDamagedLayer, blob)
	}
	if tar != s.diffID {
		return kiln.Errorf(kiln.CodeInvalid, "bake the image again", "layer %s unpacks to %s, and the image's config says %s", s.desc.Digest, tar, s.diffID)
	}
	return nil
}

func (s *layerStream) close() {
	s.stop()
	if s.sum != nil {
		s.sum.stop()
	}
	_ = s.file.Close() // it was only read
}

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
