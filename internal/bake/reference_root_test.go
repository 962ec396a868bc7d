package bake_test

import (
	"errors"
	"io"
	"log"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/bake"
)

// TestFromReference bakes from an image of a registry, first resolving it,
// then from the lock alone with the registry gone.
func TestFromReference(t *testing.T) {
	needRoot(t)
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer srv.Close()
	ref := strings.TrimPrefix(srv.URL, "http://") + "/lib/base:1"
	pushRandom(t, ref)
	s := newShop(t)
	req := kiln.BakeRequest{
		Images: []kiln.Image{dockerfile(nil), {Name: "base", Platform: platform, Reference: ref}},
		Locked: true,
		Tree:   s.tree(map[string]string{"web/Dockerfile": "ARG TAG=1\nFROM " + strings.TrimSuffix(ref, "1") + "$TAG\nCOPY a /a\n", "web/a": "a\n"}),
	}
	var known *kiln.Error
	if _, err := s.bake(req); !errors.As(err, &known) || known.Code != kiln.CodeRefused {
		t.Fatalf("locked and not in the lock: %v", err)
	}
	req.Locked = false
	first := s.mustBake(req)
	if len(first.Lock.References) != 1 || first.Lock.References[0].Reference != ref {
		t.Fatalf("lock %+v", first.Lock)
	}
	if m, err := s.store.Manifest(t.Context(), first.Images["web"].Manifest); err != nil || len(m.Layers) != 3 {
		t.Fatalf("web has %d layers, %v", len(m.Layers), err)
	}
	srv.Close()
	req.Lock, req.Locked = first.Lock, true
	again := s.mustBake(req)
	if !again.Images["web"].Cached || !again.Images["base"].Cached {
		t.Errorf("not known: %+v", again.Images)
	}
	known = nil
	req.Images[0].Platform, req.Images[1].Platform = "linux/s390x", "linux/s390x"
	if _, err := s.bake(req); !errors.As(err, &known) {
		t.Errorf("a platform that it has not: %v", err)
	}
}

func pushRandom(t *testing.T, ref string) {
	t.Helper()
	img, err := random.Image(1000, 2)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config.OS, config.Architecture, _ = strings.Cut(platform, "/")
	if img, err = mutate.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	parsed, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(parsed, img); err != nil {
		t.Fatal(err)
	}
}

func TestMissingRuntime(t *testing.T) {
	needRoot(t)
	s := newShop(t, func(o *bake.Options) { o.Runtime = "nonesuch-runtime" })
	_, err := s.bake(kiln.BakeRequest{
		Images: []kiln.Image{dockerfile(nil)},
		Tree:   s.tree(map[string]string{"web/Dockerfile": "FROM scratch\nCOPY . /\n"}),
	})
	var known *kiln.Error
	if !errors.As(err, &known) || known.Hint != "apt-get install runc" {
		t.Fatalf("got %v", err)
	}
}

// TestIdle waits for BuildKit to be stopped, and bakes again.
func TestIdle(t *testing.T) {
	needRoot(t)
	s := newShop(t, func(o *bake.Options) { o.Idle = time.Millisecond })
	for _, content := range []string{"1", "2", "3"} {
		s.mustBake(kiln.BakeRequest{
			Images: []kiln.Image{dockerfile(nil)},
			Tree:   s.tree(map[string]string{"web/Dockerfile": "FROM scratch\nCOPY x /\n", "web/x": content}),
		})
	}
}
