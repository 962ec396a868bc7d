package bake

import (
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnproject/kiln"
)

// shelve puts a small image into a store.
func shelve(t *testing.T, s shelf, content string) kiln.Digest {
	t.Helper()
	put := func(content string) kiln.Digest {
		d, _, err := s.Put(t.Context(), strings.NewReader(content), "")
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	return put(`{"config":{"digest":"` + string(put("{}")) + `"},"layers":[{"digest":"` + string(put(content)) + `","size":5}]}`)
}

// TestMaterials: images of all three kinds say what they are made from, baked
// now or found by a record that an earlier version wrote.
func TestMaterials(t *testing.T) {
	s := shelf{t.TempDir()}
	b := newBaker(t, s)
	debian := kiln.Image{Name: "golden", Platform: "linux/amd64", Debian: &kiln.Debian{Suite: "bookworm"}}
	ref := kiln.Image{Name: "ref", Platform: "linux/amd64", Reference: "example.com/x"}
	web := fromFile("web", map[string]string{"base": "golden"})
	web.Dockerfile.Context = "app"
	golden, tool, shown, made := shelve(t, s, "golden"), shelve(t, s, "tool"), shelve(t, s, "ref"), shelve(t, s, "web")
	deb, _, err := s.Put(t.Context(), strings.NewReader("deb"), "")
	if err != nil {
		t.Fatal(err)
	}
	packages := []kiln.LockedPackage{
		{Name: "libc6", Version: "2.36-9", Architecture: "amd64", Digest: deb, URL: "http://deb.example/libc6.deb"},
	}
	platform := func(d kiln.Digest) map[string]kiln.Digest { return map[string]kiln.Digest{"linux/amd64": d} }
	tree := plant(t, s, map[string]string{"app/": "", "app/Dockerfile": "FROM base\nCOPY --from=tool:1 /t /t\n", "app/x": "1"})
	req := kiln.BakeRequest{
		Images: []kiln.Image{debian, ref, web}, Tree: tree, Locked: true,
		Lock: kiln.Lock{
			Debian:     []kiln.LockedDebian{{Key: debianKey(debian), Packages: packages}},
			References: []kiln.LockedReference{{Reference: "example.com/x", Platforms: platform(shown)}, {Reference: "tool:1", Platforms: platform(tool)}},
		},
	}
	f, err := newFolder(s, tree, "app")
	if err != nil {
		t.Fatal(err)
	}
	recipe, err := readRecipe(web, f)
	if err != nil {
		t.Fatal(err)
	}
	in, err := dockerfileInputs(web, recipe, f, map[string]kiln.Digest{"base": golden, "tool:1": tool})
	if err != nil {
		t.Fatal(err)
	}
	for inputs, manifest := range map[kiln.Digest]kiln.Digest{in.digest(): made, debianInputs(debian, packages).digest(): golden} {
		if err := writeJSON(filepath.Join(b.opts.Dir, "inputs", inputs.Hex()+".json"), map[string]kiln.Digest{"manifest": manifest}); err != nil {
			t.Fatal(err)
		}
	}
	want := map[string][]kiln.Material{
		"golden": {{Kind: kiln.MaterialPackage, Name: "libc6:amd64=2.36-9", URI: "http://deb.example/libc6.deb", Digest: deb}},
		"ref":    {{Kind: kiln.MaterialImage, Name: "example.com/x", URI: "oci://example.com/x:latest", Digest: shown}},
		"web": {
			{Kind: kiln.MaterialContext, Name: "app", Digest: kiln.DigestJSON(kiln.Tree{Entries: f.entries})},
			{Kind: kiln.MaterialDockerfile, Name: "app/Dockerfile", Digest: kiln.DigestOf(recipe.source)},
			{Kind: kiln.MaterialImage, Name: "base", Digest: golden},
			{Kind: kiln.MaterialImage, Name: "tool:1", URI: "oci://docker.io/library/tool:1", Digest: tool},
		},
	}
	baked, err := b.Bake(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	found, reasons, err := b.Lookup(t.Context(), req)
	if err != nil || len(reasons) > 0 {
		t.Fatal(reasons, err)
	}
	for how, all := range map[string]map[string]kiln.Baked{"bake": baked.Images, "lookup": found} {
		got := map[string][]kiln.Material{}
		for name, one := range all {
			got[name] = one.Materials
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(how, diff)
		}
	}
	// One that is baked now has the same.
	fresh, err := newJob(b, req).record(t.Context(), web, in, made)
	if diff := cmp.Diff(want["web"], fresh.Materials); err != nil || diff != "" {
		t.Error(err, diff)
	}

	// A mirror that moved is said, and decides nothing.
	before := found["golden"]
	packages[0].URL = "http://mirror.example/libc6.deb"
	moved, _, err := b.Lookup(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	now := moved["golden"]
	if now.Inputs != before.Inputs || now.Manifest != before.Manifest || now.Materials[0].URI != packages[0].URL || now.Materials[0].Digest != deb {
		t.Errorf("%+v", now)
	}
	if names := slices.Sorted(maps.Keys(moved)); len(names) != 3 {
		t.Error(names)
	}
}
