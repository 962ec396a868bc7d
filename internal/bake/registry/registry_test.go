package registry

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/kilnproject/kiln"
)

// shelf is a store in memory.
type shelf struct {
	mu    sync.Mutex
	blobs map[kiln.Digest][]byte
}

func (s *shelf) Put(_ context.Context, r io.Reader, want kiln.Digest) (kiln.Digest, int64, error) {
	b, err := io.ReadAll(r)
	if err != nil {
		return "", 0, err
	}
	sum := sha256.Sum256(b)
	got := kiln.Digest("sha256:" + hex.EncodeToString(sum[:]))
	if want != "" && got != want {
		return "", 0, fmt.Errorf("got %s, want %s", got, want)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.blobs[got] = b
	return got, int64(len(b)), nil
}

func (s *shelf) Has(d kiln.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.blobs[d]
	return ok
}

// serve starts a registry on loopback. tamper may change answers.
func serve(t *testing.T, tamper func(path string, body []byte) []byte) (host string) {
	t.Helper()
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if tamper == nil || r.Method != http.MethodGet {
			inner.ServeHTTP(w, r)
			return
		}
		rec := httptest.NewRecorder()
		inner.ServeHTTP(rec, r)
		body := tamper(r.URL.Path, rec.Body.Bytes())
		for k, v := range rec.Header() {
			if k != "Content-Length" && k != "Docker-Content-Digest" {
				w.Header()[k] = v
			}
		}
		w.WriteHeader(rec.Code)
		_, _ = w.Write(body)
	}))
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

func image(t *testing.T, os, arch string) v1.Image {
	t.Helper()
	img, err := random.Image(2000, 3)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config.OS, config.Architecture = os, arch
	if img, err = mutate.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	return img
}

func push(t *testing.T, ref string, what remote.Taggable) {
	t.Helper()
	parsed, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	switch what := what.(type) {
	case v1.Image:
		err = remote.Write(parsed, what)
	case v1.ImageIndex:
		err = remote.WriteIndex(parsed, what)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// nested is an index within an index, with amd64 and arm64.
func nested(t *testing.T) v1.ImageIndex {
	t.Helper()
	amd := &v1.Platform{OS: "linux", Architecture: "amd64"}
	arm := &v1.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}
	inner := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: image(t, "linux", "arm64"), Descriptor: v1.Descriptor{Platform: arm}},
		mutate.IndexAddendum{Add: image(t, "unknown", "unknown"), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "unknown", Architecture: "unknown"}}})
	return mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: image(t, "linux", "amd64"), Descriptor: v1.Descriptor{Platform: amd}},
		mutate.IndexAddendum{Add: inner})
}

func TestResolveAndPull(t *testing.T) {
	ref := serve(t, nil) + "/lib/app:1"
	push(t, ref, nested(t))
	s := &shelf{blobs: map[kiln.Digest][]byte{}}
	c := New(Options{Store: s})
	lock, err := c.Resolve(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	if len(lock.Platforms) != 2 || lock.Platforms["linux/amd64"] == "" || lock.Platforms["linux/arm64"] == "" {
		t.Fatalf("platforms %v", lock.Platforms)
	}
	var mu sync.Mutex
	steps := 0
	manifest := lock.Platforms["linux/arm64"]
	if err := c.Pull(t.Context(), ref, manifest, func(kiln.Progress) { mu.Lock(); steps++; mu.Unlock() }); err != nil {
		t.Fatal(err)
	}
	if !s.Has(manifest) || len(s.blobs) != 5 || steps != 6 {
		t.Fatalf("%d blobs, %d steps", len(s.blobs), steps)
	}
}

func TestResolveSingleManifest(t *testing.T) {
	ref := serve(t, nil) + "/app:1"
	push(t, ref, image(t, "linux", "riscv64"))
	lock, err := New(Options{}).Resolve(t.Context(), ref)
	if err != nil || lock.Platforms["linux/riscv64"] != lock.Index || lock.Index == "" {
		t.Fatalf("%+v %v", lock, err)
	}
}

func TestErrors(t *testing.T) {
	c := New(Options{Store: &shelf{blobs: map[kiln.Digest][]byte{}}})
	for ref, code := range map[string]kiln.Code{
		"not a reference":             kiln.CodeInvalid,
		serve(t, nil) + "/absent:1":   kiln.CodeNotFound,
		"127.0.0.1:1/unreachable:tag": kiln.CodeUnavailable,
	} {
		_, err := c.Resolve(t.Context(), ref)
		var known *kiln.Error
		if !errors.As(err, &known) || known.Code != code || known.Hint == "" {
			t.Errorf("%s: %v, want %s with a hint", ref, err, code)
		}
	}
}

// TestTamperedAnswers changes what the registry sends: nothing wrong may get
// into the store under a right name.
func TestTamperedAnswers(t *testing.T) {
	armed := false
	part := ""
	ref := serve(t, func(path string, body []byte) []byte {
		if armed && strings.Contains(path, part) && len(body) > 0 {
			return bytes.Replace(body, body[:1], []byte{body[0] ^ 1}, 1)
		}
		return body
	}) + "/app:1"
	push(t, ref, image(t, "linux", "amd64"))
	s := &shelf{blobs: map[kiln.Digest][]byte{}}
	c := New(Options{Store: s})
	lock, err := c.Resolve(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	armed = true
	for _, part = range []string{"/manifests/", "/blobs/"} {
		if err := c.Pull(t.Context(), ref, lock.Index, func(kiln.Progress) {}); err == nil {
			t.Errorf("a changed answer of %s was taken", part)
		}
		if s.Has(lock.Index) {
			t.Error("the manifest is in the store before its parts")
		}
	}
}
