package seal

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
)

// folder is a Store over files that are named by digest.
type folder string

func (f folder) Open(d kiln.Digest) (*os.File, error) {
	return os.Open(filepath.Join(string(f), d.Hex()))
}

func (f folder) Manifest(_ context.Context, d kiln.Digest) (m ocispec.Manifest, err error) {
	return m, f.decode(d, &m)
}

func (f folder) Config(ctx context.Context, d kiln.Digest) (c ocispec.Image, err error) {
	m, err := f.Manifest(ctx, d)
	if err != nil {
		return c, err
	}
	return c, f.decode(kiln.Digest(m.Config.Digest), &c)
}

func (f folder) Verify(_ context.Context, d kiln.Digest) error {
	return os.Remove(filepath.Join(string(f), d.Hex()))
}

func (f folder) decode(d kiln.Digest, v any) error {
	b, err := os.ReadFile(filepath.Join(string(f), d.Hex()))
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

func (f folder) put(t testing.TB, mediaType string, b []byte) ocispec.Descriptor {
	t.Helper()
	d := kiln.DigestOf(b)
	if err := os.WriteFile(filepath.Join(string(f), d.Hex()), b, 0o600); err != nil {
		t.Fatal(err)
	}
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.Digest(d), Size: int64(len(b))}
}

// image stores an image of layers that are given as tars.
func (f folder) image(t testing.TB, layers ...[]byte) kiln.Digest {
	t.Helper()
	config := ocispec.Image{Config: ocispec.ImageConfig{Entrypoint: []string{"/bin/true"}}}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for i, l := range layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.Digest(kiln.DigestOf(l)))
		switch i % 3 {
		case 0:
			m.Layers = append(m.Layers, f.put(t, ocispec.MediaTypeImageLayerGzip, gzipped(t, l)))
		case 1:
			m.Layers = append(m.Layers, f.put(t, ocispec.MediaTypeImageLayerZstd, zstded(t, l)))
		default:
			m.Layers = append(m.Layers, f.put(t, ocispec.MediaTypeImageLayer, l))
		}
	}
	b, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	m.Config = f.put(t, ocispec.MediaTypeImageConfig, b)
	if b, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	return kiln.Digest(f.put(t, ocispec.MediaTypeImageManifest, b).Digest)
}

func gzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func zstded(t testing.TB, b []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(b, nil)
}

// entry is a tar header in short.
type entry struct {
	name, body, link string
	kind             byte // tar.TypeReg when zero
	mode             int64
	uid, gid         int
	sec              int64
	size             int64 // of the body, where it shall be wrong
	xattrs           map[string]string
}

func file(name, body string) entry { return entry{name: name, body: body, sec: 1000} }
func folderAt(name string) entry   { return entry{name: name, kind: tar.TypeDir, mode: 0o755, sec: 2000} }

func symlink(name, to string) entry {
	return entry{name: name, link: to, kind: tar.TypeSymlink, sec: 3000}
}

func hardlink(name, to string) entry {
	return entry{name: name, link: to, kind: tar.TypeLink, sec: 1000}
}
func (e entry) perm(mode int64) entry { e.mode = mode; return e }
func (e entry) owner(u, g int) entry  { e.uid, e.gid = u, g; return e }
func (e entry) attr(name, value string) entry {
	e.xattrs = map[string]string{name: value}
	return e
}

// layer makes a tar.
func layer(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range entries {
		h := &tar.Header{
			Name: e.name, Linkname: e.link, Typeflag: e.kind, Mode: e.mode, Uid: e.uid, Gid: e.gid,
			ModTime: time.Unix(e.sec, 0), Size: int64(len(e.body)), Format: tar.FormatPAX, PAXRecords: map[string]string{},
		}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if e.size != 0 {
			h.Size = e.size
		}
		for k, v := range e.xattrs {
			h.PAXRecords[paxAttribute+k] = v
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	_ = w.Close() // complains where the size was wrong on purpose
	return out.Bytes()
}

// flatten reads layers into a tree whose contents are in the spool.
func flatten(t testing.TB, limits Limits, layers ...[]byte) (*flattener, error) {
	t.Helper()
	unnamed, err := newSpool(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unnamed.Close() })
	f := newFlattener(openSpool(unnamed), limits)
	for _, l := range layers {
		if err := f.layer(t.Context(), kiln.DigestOf(l), bytes.NewReader(l)); err != nil {
			return f, err
		}
	}
	return f, f.spool.finish()
}

// needRoot skips a test that mounts.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 || os.Getenv("KILN_TEST_ROOT") != "1" {
		t.Skip("needs root and KILN_TEST_ROOT=1: it mounts file systems")
	}
}
