package seal

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
)

// raw makes a tar whose one header is patched after it was written, for what
// a tar writer refuses to write.
func raw(t testing.TB, e entry, patch func(header []byte)) []byte {
	t.Helper()
	b := layer(t, e)
	patch(b[:512])
	sum := 0
	copy(b[148:156], "        ")
	for _, c := range b[:512] {
		sum += int(c)
	}
	copy(b[148:156], []byte{'0' + byte(sum>>15&7), '0' + byte(sum>>12&7), '0' + byte(sum>>9&7), '0' + byte(sum>>6&7), '0' + byte(sum>>3&7), '0' + byte(sum&7), 0, ' '})
	return b
}

func TestHostileLayersAreRefused(t *testing.T) {
	base := []entry{folderAt("d"), file("f", "f"), symlink("loop", "loop"), symlink("a", "b"), symlink("b", "a")}
	cases := map[string]struct {
		layer []byte
		says  string
	}{
		"climbs":                   {layer(t, file("../x", "")), `".."`},
		"climbs inside":            {layer(t, file("d/../../x", "")), `".."`},
		"climbs within":            {layer(t, file("d/../x", "")), `".."`},
		"long name":                {layer(t, file(strings.Repeat("n", 300), "")), "255 bytes"},
		"long by links":            {layer(t, symlink("s", strings.Repeat("d/", 1500)), file("s/"+strings.Repeat("d/", 1000)+"x", "")), "all links followed"},
		"long path":                {layer(t, file(strings.Repeat("n/", 2500)+"x", "")), "4095 bytes"},
		"loop":                     {layer(t, file("loop/x", "")), "too many symbolic links"},
		"loop of two":              {layer(t, file("a/x", "")), "too many symbolic links"},
		"beneath a file":           {layer(t, file("f/x", "")), "not a folder"},
		"empty target":             {layer(t, entry{name: "l", kind: tar.TypeSymlink}), "target"},
		"long target":              {layer(t, symlink("l", strings.Repeat("x", 5000))), "target"},
		"hard link to nothing":     {layer(t, hardlink("h", "none")), "no such entry"},
		"hard link to a folder":    {layer(t, hardlink("h", "d")), "is a folder"},
		"hard link that climbs":    {layer(t, hardlink("h", "../../etc/shadow")), `".."`},
		"hard link through loop":   {layer(t, hardlink("h", "loop/x")), "too many symbolic links"},
		"hard link to a whiteout":  {layer(t, file(".wh.f", ""), hardlink("h", "f")), "no such entry"},
		"hard link to the root":    {layer(t, hardlink("h", "./")), "no such entry"},
		"whiteout of the parent":   {layer(t, file("d/.wh...", "")), "whiteout of nothing"},
		"whiteout of itself":       {layer(t, file("d/.wh..", "")), "whiteout of nothing"},
		"empty whiteout":           {layer(t, file("d/.wh.", "")), "whiteout of nothing"},
		"beneath a whiteout":       {layer(t, file(".wh.d/x", "")), "beneath a whiteout"},
		"owner out of range":       {layer(t, file("x", "").owner(1<<33, 0)), "out of range"},
		"unknown type":             {raw(t, file("x", ""), func(h []byte) { h[156] = 'Z' }), "unknown type"},
		"attributes too large":     {layer(t, file("x", "").attr("user.a", strings.Repeat("v", 70_000))), "too large"},
		"attribute without a name": {layer(t, file("x", "").attr("user.", "v")), "no valid name"},
		"attribute's long name":    {layer(t, file("x", "").attr("user."+strings.Repeat("n", 300), "v")), "no valid name"},
		"terabytes":                {layer(t, entry{name: "x", size: 5 << 40}), "larger than allowed"},
		"cut off":                  {layer(t, file("x", strings.Repeat("x", 5000)))[:2000], "EOF"},
		"not a tar":                {bytes.Repeat([]byte("garbage "), 200), "invalid tar header"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := flatten(t, DefaultLimits(), layer(t, base...), c.layer)
			if err == nil {
				t.Fatal("accepted")
			}
			if !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), string(kiln.DigestOf(c.layer))) {
				t.Errorf("the error does not say %q and the layer: %v", c.says, err)
			}
			if !errors.Is(err, kiln.ErrInvalid) {
				t.Errorf("not an error for a user: %v", err)
			}
		})
	}
}

func TestHostileEntriesAreMadeHarmless(t *testing.T) {
	f, err := flatten(t, DefaultLimits(),
		layer(t, file("dev/console", "lower"), file("keep", "k")),
		layer(t, entry{name: "dev/sda", kind: tar.TypeBlock}, entry{name: "dev/console", kind: tar.TypeChar},
			file("/absolute", "a"), symlink("out", "../../../../etc/shadow"), file("x", "x").attr("security.capability", "c"),
			entry{name: "y", xattrs: map[string]string{"trusted.overlay.opaque": "y"}}))
	if err != nil {
		t.Fatal(err)
	}
	if f.dropped.Count != 4 || !strings.Contains(strings.Join(f.dropped.First, ";"), "device dev/sda") {
		t.Errorf("dropped: %+v", f.dropped)
	}
	root := f.root
	if len(root.children["dev"].children) != 0 {
		t.Error("a device, or what it replaced, is there")
	}
	if root.children["absolute"] == nil || root.children["x"].xattrs != nil || root.children["y"].xattrs != nil {
		t.Error("absolute name or attributes")
	}
	limits := DefaultLimits()
	v := view{upper: root, left: &limits}
	if _, err = v.find([]string{"out"}, false); !errors.Is(err, errAbsent) {
		t.Errorf("the link leads somewhere: %v", err)
	}
}

func TestLimits(t *testing.T) {
	many := make([]entry, 50)
	for i := range many {
		many[i] = file(strings.Repeat("x", i+1), "12345678")
	}
	// Links make a short name lead through many folders, again and again.
	chain := []entry{symlink("l", strings.Repeat("d/../", 800)+"d")}
	for i := range 200 {
		chain = append(chain, file(fmt.Sprintf("l/f%d", i), ""))
	}
	if _, err := flatten(t, Limits{Entries: 500, Bytes: 400, Names: 500_000}, layer(t, chain...)); err == nil || !strings.Contains(err.Error(), "longer names") {
		t.Errorf("the cost of following links is not counted: %v", err)
	}
	var hidden []entry
	for i := range 60 {
		hidden = append(hidden, file(fmt.Sprintf(".wh.%d", i), ""))
	}
	if _, err := flatten(t, Limits{Entries: 50, Bytes: 400, Names: 2000}, layer(t, hidden...)); err == nil {
		t.Error("whiteouts are not counted")
	}
	if _, err := flatten(t, Limits{Entries: 50, Bytes: 400, Names: 2000}, layer(t, many...)); err != nil {
		t.Error(err)
	}
	for says, limits := range map[string]Limits{
		"more entries":  {Entries: 49, Bytes: 400, Names: 2000},
		"larger than":   {Entries: 50, Bytes: 399, Names: 2000},
		"longer names":  {Entries: 50, Bytes: 400, Names: 1000},
		"more entries ": {Entries: 10, Bytes: 400, Names: 2000},
	} {
		_, err := flatten(t, limits, layer(t, many...))
		if err == nil || !strings.Contains(err.Error(), strings.TrimSpace(says)) {
			t.Errorf("%s: %v", says, err)
		}
	}
	if _, err := flatten(t, Limits{Entries: 5, Bytes: 400, Names: 2000}, layer(t, file("a/b/c/d/e/f", ""))); err == nil {
		t.Error("implied folders are not counted")
	}
}

// TestHeadersAreNotKept has headers with half a megabyte of what nobody needs
// beside a name, a target and an attribute that are kept.
func TestHeadersAreNotKept(t *testing.T) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	long := strings.Repeat("n", 120) // only in the extended header
	for i := range 40 {
		h := &tar.Header{
			Name: fmt.Sprintf("%s/%s%d", long, long, i), Linkname: fmt.Sprintf("%s%d", long, i), Typeflag: tar.TypeSymlink, Format: tar.FormatPAX,
			PAXRecords: map[string]string{"KILN.x": strings.Repeat("x", 500_000), paxAttribute + "user.a": "b"},
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	f, err := flatten(t, DefaultLimits(), out.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if kept := int64(after.HeapAlloc) - int64(before.HeapAlloc); kept > 5<<20 {
		t.Errorf("%d bytes are kept for 40 entries", kept)
	}
	runtime.KeepAlive(f)
	runtime.KeepAlive(&out)
}

// TestBombIsBounded feeds a compressed stream of endless zeros after the end
// of a valid tar, where no header announces them.
func TestBombIsBounded(t *testing.T) {
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	good := layer(t, file("a", "a"))
	if _, err := w.Write(good); err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(w, zeros{}, 64<<20); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l := layerInfo{Digest: kiln.DigestOf(b.Bytes()), Size: int64(b.Len()), MediaType: ocispec.MediaTypeImageLayerZstd, DiffID: "sha256:x"}
	s, err := openStream(l, bytes.NewReader(b.Bytes()), 16<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if err := s.verify(t.Context()); err == nil || !strings.Contains(err.Error(), "unpacks to more than allowed") {
		t.Errorf("bomb: %v", err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestSparseContentTakesNoRoom(t *testing.T) {
	unnamed, err := newSpool(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unnamed.Close() }()
	s := openSpool(unnamed)
	if _, err := s.add(t.Context(), zeros{}, 256<<20); err != nil {
		t.Fatal(err)
	}
	if err := s.finish(); err != nil {
		t.Fatal(err)
	}
	if used := diskBytes(t, s.file); used > 1<<20 {
		t.Errorf("256 MiB of zeros take %d bytes", used)
	}
}

// TestDigestsAreVerified damages what an image names, one after the other.
func TestDigestsAreVerified(t *testing.T) {
	store := folder(t.TempDir())
	good := layer(t, file("a", "a"))
	manifest := store.image(t, good)
	m, err := store.Manifest(t.Context(), manifest)
	if err != nil {
		t.Fatal(err)
	}
	// What is taken for damage is removed.
	try := func(change func(*ocispec.Manifest, *ocispec.Image)) (removed bool, err error) {
		config, err := store.Config(t.Context(), manifest)
		if err != nil {
			t.Fatal(err)
		}
		other := m
		other.Layers = []ocispec.Descriptor{m.Layers[0]}
		change(&other, &config)
		b, _ := json.Marshal(config)
		other.Config = store.put(t, ocispec.MediaTypeImageConfig, b)
		b, _ = json.Marshal(other)
		d := store.put(t, ocispec.MediaTypeImageManifest, b)
		out, err := os.Create(filepath.Join(t.TempDir(), "out"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = out.Close() }()
		_, err = build(t.Context(), Options{Dir: t.TempDir(), Store: store, Limits: DefaultLimits()}, kiln.Digest(d.Digest), nil, out)
		_, gone := os.Stat(filepath.Join(string(store), kiln.Digest(other.Layers[0].Digest).Hex()))
		return gone != nil, err
	}
	if _, err := try(func(*ocispec.Manifest, *ocispec.Image) {}); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*ocispec.Manifest, *ocispec.Image){
		"diff id":    func(_ *ocispec.Manifest, c *ocispec.Image) { c.RootFS.DiffIDs[0] = digest.Digest(kiln.DigestOf(nil)) },
		"count":      func(_ *ocispec.Manifest, c *ocispec.Image) { c.RootFS.DiffIDs = nil },
		"media type": func(m *ocispec.Manifest, _ *ocispec.Image) { m.Layers[0].MediaType = "application/octet-stream" },
		"wrong type": func(m *ocispec.Manifest, _ *ocispec.Image) { m.Layers[0].MediaType = ocispec.MediaTypeImageLayer },
		"size":       func(m *ocispec.Manifest, _ *ocispec.Image) { m.Layers[0].Size-- },
		"blob": func(m *ocispec.Manifest, _ *ocispec.Image) {
			b, _ := os.ReadFile(filepath.Join(string(store), kiln.Digest(m.Layers[0].Digest).Hex()))
			b[9] ^= 1 // the operating system in gzip's header
			d := store.put(t, "", b)
			// The same tar, under the name of another blob.
			m.Layers[0].Digest = digest.Digest(kiln.DigestOf([]byte("other")))
			if err := os.Rename(filepath.Join(string(store), kiln.Digest(d.Digest).Hex()), filepath.Join(string(store), kiln.Digest(m.Layers[0].Digest).Hex())); err != nil {
				t.Fatal(err)
			}
		},
	} {
		removed, err := try(change)
		if !errors.Is(err, kiln.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
		if removed != (name == "blob") {
			t.Errorf("%s: taken for damage or not: %v", name, err)
		}
	}
}

func TestCancelledBuildStops(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	unnamed, err := newSpool(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unnamed.Close() }()
	f := newFlattener(openSpool(unnamed), DefaultLimits())
	if err := f.layer(ctx, "", bytes.NewReader(layer(t, file("a", "a")))); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
