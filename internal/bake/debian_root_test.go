package bake_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnproject/kiln"
)

// TestDebianRebuild makes a runtime image, then makes it again in another
// folder from the lock and the stored packages alone, with URLs that lead
// nowhere.
func TestDebianRebuild(t *testing.T) {
	needRoot(t)
	image := kiln.Image{Name: "os", Platform: platform, Debian: &kiln.Debian{Suite: "bookworm"}}
	first := seeded(t) // has most of the packages
	res := first.mustBake(kiln.BakeRequest{Images: []kiln.Image{image}})
	lock, one := res.Lock, res.Images["os"]
	for i := range lock.Debian[0].Packages {
		lock.Debian[0].Packages[i].URL = "http://127.0.0.1:1/gone.deb"
	}
	second := newShop(t)
	for _, d := range one.Debs {
		f, err := first.store.Open(d)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := second.store.Put(t.Context(), f, d); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	two := second.mustBake(kiln.BakeRequest{Images: []kiln.Image{image}, Lock: lock, Locked: true}).Images["os"]
	if two.Cached || one.Manifest != two.Manifest {
		t.Fatalf("rebuilt as %s, was %s (cached %v)", two.Manifest, one.Manifest, two.Cached)
	}
	checkRuntime(t, first, one)
	t.Logf("made in %v, rebuilt in %v, %.1f MB", one.Took, two.Took, float64(one.Size)/1e6)

	_, err := newShop(t).bake(kiln.BakeRequest{Images: []kiln.Image{image}, Lock: lock, Locked: true})
	var known *kiln.Error
	if !errors.As(err, &known) || !strings.Contains(known.Message, "neither in the store nor at") {
		t.Errorf("packages out of reach: %v", err)
	}
}

// checkRuntime looks for what a runtime image must not have.
func checkRuntime(t *testing.T, s *shop, image kiln.Baked) {
	t.Helper()
	for _, name := range []string{
		"usr/bin/apt", "usr/bin/apt-get", "usr/bin/dpkg", "etc/hostname", "etc/resolv.conf", "etc/machine-id",
		"var/cache/ldconfig/aux-cache", "etc/apt/sources.list", "var/log/dpkg.log", "etc/shadow-", "dev/null",
	} {
		if _, h := s.file(image.Manifest, name); h != nil {
			t.Errorf("%s is in a runtime image", name)
		}
	}
	status, h := s.file(image.Manifest, "var/lib/dpkg/status")
	if h == nil || !strings.Contains(status, "Package: libc6\n") {
		t.Error("the list of packages is not in the image")
	}
	if _, h := s.file(image.Manifest, "usr/bin/su"); h == nil || h.Mode&0o6000 != 0 {
		t.Errorf("su is %+v", h)
	}
	if _, h := s.file(image.Manifest, "etc/passwd"); h == nil || h.Uid != 0 || h.ModTime.Unix() > 946684800 {
		t.Errorf("etc/passwd is %+v", h)
	}
}

func TestDebianNeedsDebian(t *testing.T) {
	needRoot(t)
	s := newShop(t)
	image := kiln.Image{Name: "os", Platform: platform, Debian: &kiln.Debian{Suite: "nonesuch"}}
	_, err := s.bake(kiln.BakeRequest{Images: []kiln.Image{image}})
	var known *kiln.Error
	if !errors.As(err, &known) || !strings.Contains(known.Hint, "mirror") {
		t.Fatalf("a suite that the machine's apt does not use: %v", err)
	}
	dir := t.TempDir()
	at := filepath.Join(dir, "dists", "bookworm")
	if err := os.MkdirAll(at, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(at, "InRelease"), []byte("Origin: Debian\nCodename: bookworm\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	image.Debian = &kiln.Debian{Suite: "bookworm", Mirror: "file://" + dir}
	_, err = s.bake(kiln.BakeRequest{Images: []kiln.Image{image}})
	if !errors.As(err, &known) || !strings.Contains(known.Message, "not signed") {
		t.Fatalf("an unsigned mirror: %v", err)
	}
}
