package bake_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/bake"
)

// TestAgain bakes from nothing what was baked, without the tree that it came
// from: with an ignore file that hides the Dockerfile.
func TestAgain(t *testing.T) {
	needRoot(t)
	s := openShop(t, t.TempDir())
	base := kiln.Image{Name: "base", Platform: platform, Dockerfile: &kiln.Dockerfile{Context: "base", File: "Dockerfile"}}
	request := kiln.BakeRequest{Images: []kiln.Image{base, dockerfile(map[string]string{"base": "base"})}}
	request.Tree = s.tree(map[string]string{
		"base/Dockerfile":   "FROM scratch\nCOPY release /etc/release\n",
		"base/release":      "1",
		"web/Dockerfile":    "FROM base\nCOPY . /app\n",
		"web/.dockerignore": "Dockerfile\nsecret\n",
		"web/page":          "hello",
		"web/secret":        "hidden",
	})
	before := s.mustBake(request)
	again := bake.AgainRequest{Dir: filepath.Join(t.TempDir(), "again"), Images: request.Images, Baked: before.Images, Progress: s.log.add}
	after, err := s.baker.Again(t.Context(), again)
	if err != nil {
		t.Fatalf("%v\n%s", err, s.log.text())
	}
	for name, one := range before.Images {
		if got := after.Images[name]; got.Manifest != one.Manifest || got.Cached {
			t.Errorf("%s: %s (found: %v), was %s", name, got.Manifest, got.Cached, one.Manifest)
		}
	}
	if _, err := os.Lstat(again.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder stays: %v", err)
	}

	page := kiln.DigestOf([]byte("hello"))
	if err := os.Remove(filepath.Join(s.store.Dir(), "blobs", "sha256", page.Hex())); err != nil {
		t.Fatal(err)
	}
	if _, err := s.baker.Again(t.Context(), again); !errors.Is(err, kiln.ErrNotFound) {
		t.Errorf("without a file of the context: %v", err)
	}
	again.Baked = map[string]kiln.Baked{"base": before.Images["base"]}
	if _, err := s.baker.Again(t.Context(), again); !errors.Is(err, kiln.ErrNotFound) {
		t.Errorf("without inputs: %v", err)
	}
}
