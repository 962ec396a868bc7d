package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
)

func TestFind(t *testing.T) {
	s := open(t)
	d := putImage(t, s, "web", "one")
	other := putImage(t, s, "team/web:v1", "two")
	for name, want := range map[string]kiln.Digest{
		"web": d, "web:latest": d, "team/web:v1": other, string(d): d, d.Hex()[:12]: d, "sha256:" + d.Hex()[:20]: d,
	} {
		if got, err := s.Find(t.Context(), name); err != nil || got != want {
			t.Errorf("%s is %s, %v", name, got, err)
		}
	}
	for _, name := range []string{"we", "web:v1", d.Hex()[:11], strings.Repeat("0", 12), "", ":latest"} {
		if got, err := s.Find(t.Context(), name); !errors.Is(err, kiln.ErrNotFound) {
			t.Errorf("%q is %s, %v", name, got, err)
		}
	}
}

// putIndex stores an index of entries.
func putIndex(t *testing.T, s *Store, entries ...ocispec.Descriptor) ocispec.Descriptor {
	t.Helper()
	desc, err := s.putJSON(t.Context(), ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: entries,
	})
	if err != nil {
		t.Fatal(err)
	}
	return desc
}

func entry(t *testing.T, s *Store, content, platform string) (ocispec.Descriptor, kiln.Digest) {
	t.Helper()
	d := putImage(t, s, "", content)
	desc, err := s.describe(d)
	if err != nil {
		t.Fatal(err)
	}
	if os, arch, ok := strings.Cut(platform, "/"); ok {
		desc.Platform = &ocispec.Platform{OS: os, Architecture: arch}
	}
	return desc, d
}

func TestImageOfAPlatform(t *testing.T) {
	s := open(t)
	amd, want := entry(t, s, "amd", "linux/amd64")
	arm, _ := entry(t, s, "arm", "linux/arm64")
	bare, alone := entry(t, s, "bare", "")
	inner := putIndex(t, s, arm, amd)
	typed, artifact := amd, arm // as crane writes them, and what is no image
	typed.ArtifactType, artifact.ArtifactType, artifact.Platform = ocispec.MediaTypeImageConfig, "application/vnd.example", amd.Platform
	for name, c := range map[string]struct {
		of   ocispec.Descriptor
		want kiln.Digest
	}{
		"itself": {amd, want}, "index": {inner, want}, "index in an index": {putIndex(t, s, inner), want},
		"one without a platform": {putIndex(t, s, bare), alone},
		"one that says its type": {putIndex(t, s, artifact, typed), want},
	} {
		if got, err := s.Image(t.Context(), kiln.Digest(c.of.Digest), "linux/amd64"); err != nil || got != c.want {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
	_, err := s.Image(t.Context(), kiln.Digest(putIndex(t, s, putIndex(t, s, arm)).Digest), "linux/amd64")
	if k := (*kiln.Error)(nil); !errors.As(err, &k) || k.Code != kiln.CodeNotFound || !strings.Contains(k.Hint, "linux/arm64") {
		t.Errorf("without the platform: %v", err)
	}
}

// TestImageLooksOnce has indexes of which each has many entries for the next
// one: as paths they are more than can be walked.
func TestImageLooksOnce(t *testing.T) {
	s := open(t)
	arm, _ := entry(t, s, "arm", "linux/arm64")
	next := putIndex(t, s, arm)
	for range 3 {
		all := make([]ocispec.Descriptor, maxEntries)
		for i := range all {
			all[i] = next
		}
		next = putIndex(t, s, all...)
	}
	if _, err := s.Image(t.Context(), kiln.Digest(next.Digest), "linux/amd64"); !errors.Is(err, kiln.ErrNotFound) {
		t.Error(err)
	}
	if _, err := s.Image(t.Context(), kiln.Digest(putIndex(t, s, putIndex(t, s, next)).Digest), "linux/amd64"); !errors.Is(err, kiln.ErrInvalid) {
		t.Errorf("too deep: %v", err)
	}
}

func TestImageThatIsNotWhole(t *testing.T) {
	ctx := context.Background()
	for name, c := range map[string]struct {
		do   func(s *Store, d kiln.Digest, m ocispec.Manifest) kiln.Digest
		want string
	}{
		"no manifest": {func(*Store, kiln.Digest, ocispec.Manifest) kiln.Digest { return kiln.DigestOf([]byte("nothing")) }, "there is no image"},
		"no layer": {func(s *Store, d kiln.Digest, m ocispec.Manifest) kiln.Digest {
			check(t, os.Remove(filepath.Join(s.dir, "blobs", "sha256", m.Layers[0].Digest.Encoded())))
			return d
		}, "is not there"},
		"no configuration": {func(s *Store, d kiln.Digest, m ocispec.Manifest) kiln.Digest {
			check(t, os.Remove(filepath.Join(s.dir, "blobs", "sha256", m.Config.Digest.Encoded())))
			return d
		}, "is not there"},
		"another size": {func(s *Store, _ kiln.Digest, m ocispec.Manifest) kiln.Digest {
			m.Layers[0].Size++
			desc, err := s.putJSON(ctx, ocispec.MediaTypeImageManifest, m)
			check(t, err)
			return kiln.Digest(desc.Digest)
		}, "its manifest says"},
		"no image": {func(s *Store, _ kiln.Digest, m ocispec.Manifest) kiln.Digest {
			m.Config.MediaType = MediaTypeBundleConfig
			desc, err := s.putJSON(ctx, ocispec.MediaTypeImageManifest, m)
			check(t, err)
			return kiln.Digest(desc.Digest)
		}, "is no image"},
		"other JSON": {func(s *Store, _ kiln.Digest, _ ocispec.Manifest) kiln.Digest {
			desc, err := s.putJSON(ctx, "application/json", map[string]string{"a": "b"})
			check(t, err)
			return kiln.Digest(desc.Digest)
		}, "neither the manifest"},
		"an index that names what is not there": {func(s *Store, _ kiln.Digest, _ ocispec.Manifest) kiln.Digest {
			gone := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: "sha256:" + "00000000000000000000000000000000000000000000000000000000000000ff", Size: 1}
			return kiln.Digest(putIndex(t, s, gone).Digest)
		}, "is not there"},
	} {
		s := open(t)
		d := putImage(t, s, "web", "content")
		m, err := s.Manifest(ctx, d)
		check(t, err)
		_, err = s.Image(ctx, c.do(s, d, m), "linux/amd64")
		if err == nil || !strings.Contains(fmt.Sprint(err), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
