package examine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
)

// world is all that an Examiner asks, in memory.
type world struct {
	bundles   map[kiln.Digest]kiln.Bundle
	manifests map[kiln.Digest]ocispec.Manifest
	layers    map[kiln.Digest]kiln.Layer
	damaged   map[kiln.Digest]error
	unsigned  map[kiln.Digest]bool
	said      map[string][]json.RawMessage
	verdicts  map[kiln.Digest][]kiln.Verdict
	packages  map[kiln.Digest][]kiln.Package
	seals     map[kiln.Digest]error // nil is sealed and whole
	again     map[string]kiln.Digest
	failed    error // of baking again
	skipped   []kiln.Digest
}

func (w *world) Bundle(_ context.Context, d kiln.Digest) (kiln.Bundle, error) {
	b, ok := w.bundles[d]
	if !ok {
		return b, kiln.Errorf(kiln.CodeNotFound, "", "no bundle %s", d.Short())
	}
	return b, nil
}

func (w *world) Manifest(_ context.Context, d kiln.Digest) (ocispec.Manifest, error) {
	m, ok := w.manifests[d]
	if !ok {
		return m, kiln.ErrNotFound
	}
	return m, nil
}

func (w *world) TreeFS(t kiln.Tree) fs.FS {
	m := fstest.MapFS{}
	for _, e := range t.Entries {
		m[e.Path] = &fstest.MapFile{Data: []byte(e.Link)} // the tests' files have their content there
	}
	return m
}

func (w *world) Verify(_ context.Context, d kiln.Digest) error {
	if w.unsigned[d] {
		return kiln.Errorf(kiln.CodeRefused, "bake it again", "%s does not run: not signed", d.Short())
	}
	return nil
}

func (w *world) Intact(_ context.Context, d kiln.Digest) error { return w.damaged[d] }

func (w *world) Statements(_ context.Context, d kiln.Digest, kind string) ([]json.RawMessage, error) {
	return w.said[string(d)+kind], nil
}

func (w *world) Verdicts(_ context.Context, d kiln.Digest) ([]kiln.Verdict, error) {
	return w.verdicts[d], nil
}

func (w *world) Inventory(_ context.Context, d kiln.Digest) (kiln.Inventory, error) {
	p, ok := w.packages[d]
	if !ok {
		return kiln.Inventory{}, kiln.ErrNotFound
	}
	return kiln.Inventory{Image: d, Packages: p}, nil
}

func (w *world) examiner() *Examiner {
	return New(Options{
		Store: w, Signed: w, Proved: w, Types: Types{Provenance: "provenance", SBOM: "sbom"},
		Match: func(_ context.Context, packages []kiln.Package) ([]kiln.Finding, string, error) {
			var out []kiln.Finding
			for _, p := range packages {
				if p.Version == "1" {
					out = append(out, kiln.Finding{ID: "CVE-" + p.Name, Package: p.Name, Severity: kiln.SeverityHigh})
				}
			}
			return out, "", nil
		},
		Change: func(before, after []kiln.Finding) (introduced, fixed []kiln.Finding) {
			has := func(all []kiln.Finding, id string) bool {
				return slices.ContainsFunc(all, func(f kiln.Finding) bool { return f.ID == id })
			}
			for _, f := range after {
				if !has(before, f.ID) {
					introduced = append(introduced, f)
				}
			}
			for _, f := range before {
				if !has(after, f.ID) {
					fixed = append(fixed, f)
				}
			}
			return introduced, fixed
		},
		Layers: func(_ context.Context, image kiln.Digest, skip []kiln.Digest) ([]kiln.Layer, error) {
			w.skipped = skip
			var out []kiln.Layer
			for _, l := range w.manifests[image].Layers {
				out = append(out, w.layers[kiln.Digest(l.Digest)])
			}
			return out, nil
		},
		Sealed: func(_ context.Context, t kiln.Template) (kiln.Digest, bool, error) {
			err, sealed := w.seals[t.Image]
			return named("seal"), sealed, err
		},
		Rebuild: func(context.Context, Rebuild) (map[string]kiln.Digest, error) { return w.again, w.failed },
	})
}

func named(s string) kiln.Digest { return kiln.DigestOf([]byte(s)) }

// image makes an image of layers, of which all is signed and said.
func (w *world) image(name string, layers ...string) kiln.Digest {
	d := named(name)
	var m ocispec.Manifest
	for _, l := range layers {
		m.Layers = append(m.Layers, ocispec.Descriptor{Digest: digest.Digest(named(l)), Size: int64(len(l))})
		w.layers[named(l)] = kiln.Layer{Digest: named(l), Entries: []kiln.LayerEntry{
			{Path: "etc/", Type: "folder", Mode: 0o755},
			{Path: "etc/release", Type: "file", Mode: 0o644, Content: named(l), Size: int64(len(l))},
		}}
	}
	w.manifests[d] = m
	w.said[string(d)+"provenance"] = []json.RawMessage{[]byte(`{"buildDefinition":{"internalParameters":{"inputs":"` + string(named("inputs of "+name)) +
		`"},"resolvedDependencies":[{"name":"source","digest":{"gitCommit":"0123456789abcdef"}},{"name":"base"}]}}`)}
	w.said[string(d)+"sbom"] = []json.RawMessage{[]byte("{}")}
	w.verdicts[d] = []kiln.Verdict{{Image: d, Outcome: kiln.OutcomePass, At: time.Unix(0, 0), Database: named("db")}}
	w.packages[d] = nil
	w.seals[d] = nil
	return d
}

// release is one with the image "web", which has two layers.
func release() (*world, kiln.Release) {
	w := &world{
		bundles: map[kiln.Digest]kiln.Bundle{}, manifests: map[kiln.Digest]ocispec.Manifest{}, layers: map[kiln.Digest]kiln.Layer{},
		unsigned: map[kiln.Digest]bool{}, said: map[string][]json.RawMessage{}, verdicts: map[kiln.Digest][]kiln.Verdict{},
		packages: map[kiln.Digest][]kiln.Package{}, seals: map[kiln.Digest]error{}, again: map[string]kiln.Digest{},
	}
	web := w.image("web", "base", "app")
	w.bundles[named("bundle")] = kiln.Bundle{Images: []kiln.BundleImage{{Name: "web", Platform: "linux/amd64", Manifest: web}}}
	w.again["web"] = web
	return w, kiln.Release{
		Environment: "production", Number: 4, Bundle: named("bundle"),
		Services: []kiln.ReleaseService{{Template: kiln.Template{Service: "web", Image: web}}},
	}
}

func TestVerify(t *testing.T) {
	web := named("web")
	tests := map[string]struct {
		change func(w *world)
		want   string // of the check that fails: "kind of subject: detail"; empty when all holds
	}{
		"all holds":                  {func(*world) {}, ""},
		"not sealed":                 {func(w *world) { delete(w.seals, web) }, ""},
		"the bundle is not signed":   {func(w *world) { w.unsigned[named("bundle")] = true }, "signature of bundle: "},
		"the bundle is gone":         {func(w *world) { w.bundles = nil }, "content of bundle: "},
		"an image is not signed":     {func(w *world) { w.unsigned[web] = true }, "signature of web: "},
		"a layer is damaged":         {func(w *world) { w.damaged = map[kiln.Digest]error{web: errors.New("blob 1 was damaged")} }, "content of web: blob 1"},
		"nobody says where from":     {func(w *world) { delete(w.said, string(web)+"provenance") }, "provenance of web: "},
		"no inventory":               {func(w *world) { delete(w.said, string(web)+"sbom") }, "inventory of web: "},
		"no verdict":                 {func(w *world) { delete(w.verdicts, web) }, "verdict of web: no gate"},
		"the newest verdict fails":   {func(w *world) { w.verdicts[web] = append(w.verdicts[web], kiln.Verdict{Outcome: kiln.OutcomeFail}) }, "verdict of web: fail"},
		"the sealed file is another": {func(w *world) { w.seals[web] = errors.New("the file is another") }, "sealed of service web: the file is another"},
		"it runs something else":     {func(w *world) { w.bundles[named("bundle")] = kiln.Bundle{} }, "content of bundle: service web runs"},
		"baked again otherwise":      {func(w *world) { w.again["web"] = w.image("web 2", "base", "app 2") }, "rebuild of web: "},
		"its context is gone":        {func(w *world) { w.failed = kiln.Errorf(kiln.CodeNotFound, "check it out", "2 files are gone") }, "rebuild of bundle: 2 files are gone"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			w, r := release()
			test.change(w)
			proof, err := w.examiner().Verify(t.Context(), r, true, nil)
			if err != nil {
				t.Fatal(err)
			}
			failed := ""
			for _, c := range proof.Checks {
				if strings.Contains(c.Detail, "of 0001-01-01") {
					t.Errorf("%q is dated by a database that was not asked", c.Detail)
				}
				if c.Outcome == kiln.OutcomeFail && failed == "" {
					failed = fmt.Sprintf("%s of %s: %s", c.Kind, c.Subject, c.Detail)
					if c.Hint == "" {
						t.Errorf("%s: nothing says what to do", failed)
					}
				}
			}
			if proof.Holds != (test.want == "") || !strings.HasPrefix(failed, test.want) || (failed == "") != (test.want == "") {
				t.Errorf("holds: %v, %q, want %q", proof.Holds, failed, test.want)
			}
		})
	}
}

func TestARebuildNamesTheFile(t *testing.T) {
	w, r := release()
	w.again["web"] = w.image("web 2", "base", "app 2")
	proof, err := w.examiner().Verify(t.Context(), r, true, nil)
	if err != nil || len(proof.Rebuilt) != 1 {
		t.Fatalf("%+v, %v", proof, err)
	}
	want := kiln.EntryChange{Layer: 2, Path: "/etc/release", Change: "content, size 3 to 5"}
	if got := proof.Rebuilt[0]; got.Total != 1 || len(got.Entries) != 1 || got.Entries[0] != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if !slices.Equal(w.skipped, []kiln.Digest{named("base")}) {
		t.Errorf("layers that are the same are read: all but %v", w.skipped)
	}
	w.manifests[named("packed otherwise")] = ocispec.Manifest{Layers: []ocispec.Descriptor{{Digest: digest.Digest(named("base"))}, {Digest: digest.Digest(named("app again"))}}}
	w.layers[named("app again")] = kiln.Layer{Digest: named("app again"), Entries: w.layers[named("app")].Entries}
	w.again["web"] = named("packed otherwise")
	if proof, err = w.examiner().Verify(t.Context(), r, true, nil); err != nil || !strings.Contains(proof.Rebuilt[0].Note, "layer 2 is packed otherwise") {
		t.Errorf("%+v, %v", proof.Rebuilt, err)
	}
}

func TestEntriesDiffer(t *testing.T) {
	a := kiln.LayerEntry{Path: "a", Type: "file", Mode: 0o644, Content: named("x"), ModTime: time.Unix(10, 0)}
	tests := map[string]func(e *kiln.LayerEntry){
		"content":                func(e *kiln.LayerEntry) { e.Content = named("y") },
		"mode 0644 to 4755":      func(e *kiln.LayerEntry) { e.Mode = 0o4755 },
		"owner 0:0 to 1:2":       func(e *kiln.LayerEntry) { e.UID, e.GID = 1, 2 },
		"size 0 to 3":            func(e *kiln.LayerEntry) { e.Size = 3 },
		"file to link":           func(e *kiln.LayerEntry) { e.Type = "link" },
		`target "" to "b"`:       func(e *kiln.LayerEntry) { e.Link = "b" },
		"time 1970-01-01T00:00:": func(e *kiln.LayerEntry) { e.ModTime = time.Unix(11, 0) },
		"":                       func(*kiln.LayerEntry) {},
	}
	for want, change := range tests {
		b := a
		change(&b)
		if got := differs(a, b); (want == "") != (got == "") || !strings.HasPrefix(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
	got := compareLayers(1, []kiln.LayerEntry{a, {Path: "./gone"}}, []kiln.LayerEntry{{Path: "come"}, {Path: "a"}, a})
	if len(got) != 2 || got[0].Path != "/come" || got[0].Change != "added" || got[1].Path != "/gone" || got[1].Change != "removed" {
		t.Errorf("%+v", got)
	}
}

func file(path, content string) kiln.TreeEntry {
	return kiln.TreeEntry{Path: path, Link: content, Size: int64(len(content)), Digest: named(content)}
}

func TestDiff(t *testing.T) {
	w, _ := release()
	second := w.image("web 2", "base", "app 2")
	b := w.bundles[named("bundle")]
	b.Files.Entries = []kiln.TreeEntry{file("kiln.hcl", "count = 1\nname = \"a\"\n"), file("same", "x")}
	w.bundles[named("bundle")] = b
	w.bundles[named("bundle 2")] = kiln.Bundle{
		Files:  kiln.Tree{Entries: []kiln.TreeEntry{file("kiln.hcl", "count = 2\nname = \"a\"\n"), file("kiln.lock", "new\n"), file("same", "x")}},
		Images: []kiln.BundleImage{{Name: "job", Manifest: w.image("job", "base")}, {Name: "web", Manifest: second}},
	}
	w.packages[named("web")] = []kiln.Package{{Name: "curl", Version: "1", Ecosystem: "Debian:12"}, {Name: "old", Version: "1"}, {Name: "tls", Version: "1"}, {Name: "tls", Version: "2"}}
	w.packages[second] = []kiln.Package{{Name: "curl", Version: "2", Ecosystem: "Debian:13"}, {Name: "new", Version: "1"}, {Name: "tls", Version: "2"}}
	d, err := w.examiner().Diff(t.Context(), kiln.ReleaseName{Bundle: named("bundle")}, kiln.ReleaseName{Bundle: named("bundle 2")})
	if err != nil {
		t.Fatal(err)
	}
	if len(d.Definition) != 2 || d.Definition[0].Path != "kiln.hcl" || !slices.Contains(d.Definition[0].Lines, "+count = 2") || slices.Contains(d.Definition[0].Lines, "+++ after") ||
		d.Definition[1].Change != "added" {
		t.Errorf("definition: %+v", d.Definition)
	}
	if len(d.Images) != 2 || d.Images[0].Name != "job" || d.Images[0].From != "" || d.Images[1].Name != "web" {
		t.Fatalf("images: %+v", d.Images)
	}
	web := d.Images[1]
	want := []kiln.PackageChange{
		{Name: "curl", Ecosystem: "Debian", From: "1", To: "2"}, {Name: "new", To: "1"}, {Name: "old", From: "1"}, {Name: "tls", From: "1"},
	}
	if !slices.Equal(web.Packages, want) {
		t.Errorf("packages: %+v", web.Packages)
	}
	if len(web.Introduced) != 1 || web.Introduced[0].ID != "CVE-new" || len(web.Fixed) != 3 {
		t.Errorf("introduced %+v, fixed %+v", web.Introduced, web.Fixed)
	}
	if web.Files == nil || web.Files.Total != 1 || web.FromSize != 7 || web.ToSize != 9 {
		t.Errorf("%+v, %d to %d", web.Files, web.FromSize, web.ToSize)
	}
	if same, err := w.examiner().Diff(t.Context(), kiln.ReleaseName{Bundle: named("bundle")}, kiln.ReleaseName{Bundle: named("bundle")}); err != nil || !same.Same() {
		t.Errorf("%+v, %v", same, err)
	}
}

func TestWhatIsNotKnownIsSaid(t *testing.T) {
	w, _ := release()
	second := w.image("web 2", "base", "app 2")
	delete(w.packages, second)
	changes, err := w.examiner().Preview(t.Context(), named("bundle"), []kiln.BundleImage{{Name: "web", Manifest: second}, {Name: "later"}})
	if err != nil || len(changes) != 1 || len(changes[0].Notes) != 1 || changes[0].Files != nil {
		t.Errorf("%+v, %v", changes, err)
	}
	if changes, err = w.examiner().Preview(t.Context(), named("bundle"), []kiln.BundleImage{{Name: "web"}}); err != nil || len(changes) != 0 {
		t.Errorf("an image that is not baked yet: %+v, %v", changes, err)
	}
}

func TestLongTextsAreBounded(t *testing.T) {
	got, more := lines("", strings.Repeat("line\n", 1000))
	if len(got) != maxLines || more != 1001-maxLines {
		t.Errorf("%d lines, %d more", len(got), more)
	}
	if got, more = lines("a\n", "a\n"); len(got) != 0 || more != 0 {
		t.Errorf("%q, %d", got, more)
	}
}
