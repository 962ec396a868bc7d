package layout

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
)

const own = "linux/amd64"

// tree is a layout's files by name.
type tree map[string][]byte

func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// blob adds a blob and describes it.
func (f tree) blob(mediaType string, b []byte) ocispec.Descriptor {
	d := kiln.DigestOf(b)
	f["blobs/sha256/"+d.Hex()] = b
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.Digest(d), Size: int64(len(b))}
}

// image adds an image of two layers.
func (f tree) image(content string) ocispec.Descriptor {
	layers := []ocispec.Descriptor{f.blob(ocispec.MediaTypeImageLayer, []byte("layer "+content)), f.blob(ocispec.MediaTypeImageLayer, []byte("layer"))}
	config := ocispec.Image{RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{layers[0].Digest, layers[1].Digest}}}
	return f.blob(ocispec.MediaTypeImageManifest, marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: f.blob(ocispec.MediaTypeImageConfig, marshal(config)), Layers: layers,
	}))
}

func (f tree) index(entries ...ocispec.Descriptor) ocispec.Descriptor {
	return f.blob(ocispec.MediaTypeImageIndex, marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: entries}))
}

// top writes what the layout is entered by.
func (f tree) top(entries ...ocispec.Descriptor) {
	f["oci-layout"] = []byte(`{"imageLayoutVersion":"1.0.0"}`)
	f["index.json"] = marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: entries})
}

func on(platform string, d ocispec.Descriptor) ocispec.Descriptor {
	os, arch, _ := strings.Cut(platform, "/")
	d.Platform = &ocispec.Platform{OS: os, Architecture: arch}
	return d
}

func (f tree) folder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, b := range f {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, b, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func (f tree) archive(t *testing.T) string {
	t.Helper()
	var headers []tar.Header
	for _, name := range slices.Sorted(maps.Keys(f)) {
		headers = append(headers, tar.Header{Name: name, Mode: 0o600, Size: int64(len(f[name]))})
	}
	return tarOf(t, f, headers...)
}

func tarOf(t *testing.T, f tree, headers ...tar.Header) string {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f[h.Name]); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(t.TempDir(), "image.tar")
	if err := errors.Join(w.Close(), os.WriteFile(path, b.Bytes(), 0o600)); err != nil {
		t.Fatal(err)
	}
	return path
}

func imageOf(t *testing.T, path string) (Image, error) {
	t.Helper()
	l, err := Open(path)
	if err != nil {
		return Image{}, err
	}
	t.Cleanup(func() { _ = l.Close() })
	return l.Image(t.Context(), own)
}

// wantWhole reads every blob of an image, and compares it with its digest.
func wantWhole(t *testing.T, path string) Image {
	t.Helper()
	image, err := imageOf(t, path)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	if len(image.Blobs) != 4 || image.Blobs[0].Digest != image.Digest {
		t.Errorf("%s has %d blobs", path, len(image.Blobs))
	}
	for _, b := range image.Blobs {
		r, err := b.Open()
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil || kiln.DigestOf(content) != b.Digest || int64(len(content)) != b.Size {
			t.Errorf("blob %s: %v, %d bytes of %d", b.Digest, err, len(content), b.Size)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	return image
}

func TestLayouts(t *testing.T) {
	f := tree{}
	want := f.image("ours")
	f.top(want)
	nested := maps.Clone(f)
	nested.top(on("linux/arm64", nested.image("arm")), nested.index(on("linux/arm64", nested.image("arm")), on(own, want), on("unknown/unknown", nested.image("attestation"))))
	typed := maps.Clone(f)
	artifact := typed.image("artifact")
	said := want
	said.ArtifactType, artifact.ArtifactType = ocispec.MediaTypeImageConfig, "application/vnd.example" // as crane writes them
	typed.top(artifact, said)
	for _, path := range []string{f.folder(t), f.archive(t), nested.folder(t), nested.archive(t), typed.folder(t)} {
		if got := wantWhole(t, path); got.Digest != kiln.Digest(want.Digest) {
			t.Errorf("%s has the image %s, want %s", path, got.Digest, want.Digest)
		}
		if !Is(path) {
			t.Errorf("%s is not taken for an image", path)
		}
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if Is(program) {
		t.Error("a program is taken for an image: it may have an image's name")
	}
	if Is(t.TempDir()) || Is(filepath.Join(t.TempDir(), "none")) {
		t.Error("an empty folder, or none, is taken for an image")
	}
}

// saved is what docker save writes: an early one, with a layer that is a link.
func saved() (tree, []tar.Header) {
	f := tree{"one/layer.tar": []byte("first"), "three/layer.tar": []byte("second")}
	ids := []digest.Digest{digest.Digest(kiln.DigestOf([]byte("first"))), digest.Digest(kiln.DigestOf([]byte("first")))}
	f["abc.json"] = marshal(ocispec.Image{RootFS: ocispec.RootFS{Type: "layers", DiffIDs: ids}})
	f["manifest.json"] = []byte(`[{"Config":"abc.json","RepoTags":["web:v1"],"Layers":["one/layer.tar","two/layer.tar"]}]`)
	headers := []tar.Header{{Name: "one/", Typeflag: tar.TypeDir}, {Name: "two/layer.tar", Typeflag: tar.TypeSymlink, Linkname: "../one/layer.tar"}}
	for _, name := range []string{"abc.json", "manifest.json", "one/layer.tar"} {
		headers = append(headers, tar.Header{Name: name, Mode: 0o600, Size: int64(len(f[name]))})
	}
	return f, headers
}

func TestDockerSave(t *testing.T) {
	f, headers := saved()
	first := wantWhole(t, tarOf(t, f, headers...))
	if again := wantWhole(t, tarOf(t, f, headers...)); again.Digest != first.Digest {
		t.Error("the same archive is two images")
	}
	f["manifest.json"] = []byte(`[{"Config":"abc.json","Layers":["one/layer.tar","three/layer.tar"]}]`)
	headers[3].Size = int64(len(f["manifest.json"]))
	headers = append(headers, tar.Header{Name: "three/layer.tar", Size: 6})
	if _, err := imageOf(t, tarOf(t, f, headers...)); err == nil || !strings.Contains(err.Error(), "layer 2 has other content") {
		t.Errorf("a layer with other content: %v", err)
	}
}

func TestBadLayouts(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(f tree, m ocispec.Descriptor)
		want  string
	}{
		"a missing blob": {func(f tree, _ ocispec.Descriptor) { delete(f, "blobs/sha256/"+kiln.DigestOf([]byte("layer")).Hex()) }, "is not there"},
		"a wrong blob": {func(f tree, _ ocispec.Descriptor) {
			f["blobs/sha256/"+kiln.DigestOf([]byte("layer")).Hex()] = []byte("LAYER")
		}, "has other content"},
		"a short blob": {func(f tree, _ ocispec.Descriptor) {
			f["blobs/sha256/"+kiln.DigestOf([]byte("layer")).Hex()] = []byte("lay")
		}, "has 3 bytes"},
		"a missing manifest": {func(f tree, m ocispec.Descriptor) { delete(f, "blobs/sha256/"+m.Digest.Encoded()) }, "is not there"},
		"a manifest that names itself": {func(f tree, m ocispec.Descriptor) {
			f["blobs/sha256/"+m.Digest.Encoded()] = marshal(ocispec.Index{Manifests: []ocispec.Descriptor{m}})
		}, "has other content"},
		"another platform": {func(f tree, m ocispec.Descriptor) { f.top(f.index(on("linux/s390x", m))) }, "no image for linux/amd64"},
		"no image":         {func(f tree, _ ocispec.Descriptor) { f.top() }, "no image for linux/amd64"},
		"two images":       {func(f tree, m ocispec.Descriptor) { f.top(m, f.image("another")) }, "several images"},
		"an index too deep": {func(f tree, m ocispec.Descriptor) {
			for range maxNested {
				m = f.index(m)
			}
			f.top(m)
		}, "more than 4 deep"},
		"no digest":         {func(f tree, m ocispec.Descriptor) { m.Digest = "sha256:../../etc/passwd"; f.top(m) }, "digest"},
		"a broken index":    {func(f tree, _ ocispec.Descriptor) { f["index.json"] = []byte("{") }, "index.json"},
		"a huge index":      {func(f tree, _ ocispec.Descriptor) { f["index.json"] = make([]byte, maxDocument+1) }, "are the most"},
		"nothing of a kind": {func(f tree, _ ocispec.Descriptor) { delete(f, "index.json") }, "neither index.json"},
	} {
		f := tree{}
		m := f.image("ours")
		f.top(m)
		c.spoil(f, m)
		for _, path := range []string{f.folder(t), f.archive(t)} {
			_, err := imageOf(t, path)
			if k := (*kiln.Error)(nil); !errors.As(err, &k) || k.Hint == "" || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v, want %q", name, err, c.want)
			}
		}
	}
}

func TestALinkLeadsNowhereElse(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "index.json")
	f := tree{}
	f.top(f.image("ours"))
	if err := os.WriteFile(outside, f["index.json"], 0o600); err != nil {
		t.Fatal(err)
	}
	dir := f.folder(t)
	if err := errors.Join(os.Remove(filepath.Join(dir, "index.json")), os.Symlink(outside, filepath.Join(dir, "index.json"))); err != nil {
		t.Fatal(err)
	}
	if _, err := imageOf(t, dir); err == nil {
		t.Error("a link out of the folder was followed")
	}
}

func TestBadArchives(t *testing.T) {
	f, good := saved()
	for name, c := range map[string]struct {
		add  tar.Header
		want string
	}{
		"a name that climbs":  {tar.Header{Name: "../../etc/passwd"}, "leads out of it"},
		"an absolute name":    {tar.Header{Name: "/etc/passwd"}, "leads out of it"},
		"a name twice":        {tar.Header{Name: "abc.json"}, "twice"},
		"a device":            {tar.Header{Name: "null", Typeflag: tar.TypeChar}, "neither a file nor a link"},
		"a pipe":              {tar.Header{Name: "pipe", Typeflag: tar.TypeFifo}, "neither a file nor a link"},
		"a link and its name": {tar.Header{Name: "two/layer.tar", Typeflag: tar.TypeSymlink, Linkname: "x"}, "twice"},
	} {
		c.add.Size = int64(len(f[c.add.Name]))
		if c.add.Typeflag == tar.TypeSymlink {
			c.add.Size = 0
		}
		if _, err := imageOf(t, tarOf(t, f, append(slices.Clone(good), c.add)...)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestArchivesThatAreNone(t *testing.T) {
	f, headers := saved()
	whole, err := os.ReadFile(tarOf(t, f, headers...))
	if err != nil {
		t.Fatal(err)
	}
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, _ = z.Write(whole)
	_ = z.Close()
	huge := bytes.Clone(whole)
	copy(huge[124:], fmt.Sprintf("%011o\x00", 7<<30)) // of a folder, which has no size
	for name, c := range map[string]struct {
		content []byte
		want    string
	}{
		"nothing": {nil, "too short"}, "text": {[]byte(strings.Repeat("no archive ", 100)), "no tar"}, "gzip": {packed.Bytes(), "gunzip"},
		"cut off": {whole[:len(whole)-2000], ""}, "a wrong size": {huge, ""},
	} {
		path := filepath.Join(t.TempDir(), "image.tar")
		if err := os.WriteFile(path, c.content, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := imageOf(t, path); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// FuzzArchive reads what strangers write.
func FuzzArchive(f *testing.F) {
	f.Add([]byte(strings.Repeat("\x00", 1024)))
	f.Fuzz(func(t *testing.T, content []byte) {
		path := filepath.Join(t.TempDir(), "image.tar")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := Open(path)
		if err != nil {
			return
		}
		_, _ = l.Image(t.Context(), own)
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
}
