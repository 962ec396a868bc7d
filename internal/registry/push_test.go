package registry_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/registry"
	"github.com/kilnproject/kiln/internal/store"
)

// answer is what came of a request.
type answer struct {
	status int
	header http.Header
	body   string
	code   string // of the first error
}

// do asks the registry; headers are "Name: value".
func (b bed) do(t testing.TB, method, path, body string, headers ...string) answer {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, b.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Set(name, value)
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	a := answer{status: response.StatusCode, header: response.Header, body: string(text)}
	var said struct{ Errors []struct{ Code string } }
	if json.Unmarshal(text, &said) == nil && len(said.Errors) > 0 {
		a.code = said.Errors[0].Code
	}
	return a
}

// want fails when an answer has another status or code.
func (a answer) want(t testing.TB, what string, status int, code string) {
	t.Helper()
	if a.status != status || a.code != code {
		t.Errorf("%s: %d %s, want %d %s\n%s", what, a.status, a.code, status, code, a.body)
	}
}

func descriptor(mediaType, content string) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromString(content), Size: int64(len(content))}
}

// pushBlob pushes a blob at once.
func (b bed) pushBlob(t testing.TB, repository, content string) ocispec.Descriptor {
	t.Helper()
	d := descriptor(ocispec.MediaTypeImageLayer, content)
	b.do(t, "POST", "/v2/"+repository+"/blobs/uploads/?digest="+string(d.Digest), content).want(t, "push a blob", 201, "")
	return d
}

func text(v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(raw)
}

// image pushes config and layer and returns the manifest.
func (b bed) image(t testing.TB, repository, content string, subject *ocispec.Descriptor) string {
	t.Helper()
	return text(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: b.pushBlob(t, repository, "{}"), Layers: []ocispec.Descriptor{b.pushBlob(t, repository, content)}, Subject: subject,
	})
}

func (b bed) putManifest(t testing.TB, repository, reference, raw string) answer {
	t.Helper()
	var said struct{ MediaType string }
	_ = json.Unmarshal([]byte(raw), &said)
	return b.do(t, "PUT", "/v2/"+repository+"/manifests/"+reference, raw, "Content-Type: "+said.MediaType)
}

func TestARepositoryShowsWhatIsItsOwn(t *testing.T) {
	b := serve(t, nil)
	secret, _, err := b.store.Put(t.Context(), strings.NewReader("of a context"), "")
	if err != nil {
		t.Fatal(err)
	}
	raw := b.image(t, "a", "layer", nil)
	b.putManifest(t, "a", "v1", raw).want(t, "push", 201, "")
	d, layer := digest.FromString(raw), digest.FromString("layer")
	b.do(t, "GET", "/v2/a/manifests/"+string(d), "").want(t, "own manifest", 200, "")
	b.do(t, "GET", "/v2/a/blobs/"+string(layer), "").want(t, "own blob", 200, "")
	b.do(t, "GET", "/v2/b/manifests/"+string(d), "").want(t, "manifest of another", 404, "MANIFEST_UNKNOWN")
	b.do(t, "GET", "/v2/b/blobs/"+string(layer), "").want(t, "blob of another", 404, "BLOB_UNKNOWN")
	b.do(t, "GET", "/v2/a/blobs/"+string(secret), "").want(t, "blob of none", 404, "BLOB_UNKNOWN")
	b.do(t, "GET", "/v2/a/manifests/"+string(secret), "").want(t, "blob as a manifest", 404, "MANIFEST_UNKNOWN")
	b.do(t, "POST", "/v2/b/blobs/uploads/?mount="+string(secret)+"&from=a", "").want(t, "mount of what is in no repository", 202, "")
	b.putManifest(t, "b", "v1", raw).want(t, "manifest whose blobs are elsewhere", 404, "MANIFEST_BLOB_UNKNOWN")
	b.do(t, "POST", "/v2/b/blobs/uploads/?mount="+string(layer)+"&from=a", "").want(t, "mount", 201, "")
	b.do(t, "GET", "/v2/b/blobs/"+string(layer), "").want(t, "after the mount", 200, "")
}

func TestWhatKilnBakedAndSaysOfIt(t *testing.T) {
	b := serve(t, func(o *registry.Options) {
		o.Needed = func(context.Context, kiln.Digest) (bool, error) { return true, nil }
	})
	raw := b.image(t, "scratch", "layer", nil)
	if _, err := b.store.PutManifest(t.Context(), []byte(raw)); err != nil {
		t.Fatal(err)
	}
	d := kiln.DigestOf([]byte(raw))
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.Digest(d), Size: int64(len(raw))}
	if err := errors.Join(b.store.Tag(t.Context(), desc, "web", nil), b.store.Shelve(t.Context(), "web", d)); err != nil {
		t.Fatal(err)
	}
	said, err := b.store.PutReferrer(t.Context(), d, store.Referrer{
		ArtifactType: "application/vnd.example", Layers: []store.ReferrerLayer{{MediaType: "text/plain", Content: []byte("words")}},
	})
	if err != nil {
		t.Fatal(err)
	}
	b.do(t, "GET", "/v2/web/manifests/latest", "").want(t, "by tag", 200, "")
	b.do(t, "GET", "/v2/web/manifests/"+string(said), "").want(t, "what is said", 200, "")
	b.do(t, "GET", "/v2/web/blobs/"+string(kiln.DigestOf([]byte("words"))), "").want(t, "its content", 200, "")
	if a := b.do(t, "GET", "/v2/web/referrers/"+string(d), ""); a.status != 200 || !strings.Contains(a.body, string(said)) {
		t.Errorf("referrers: %d %s", a.status, a.body)
	}
	if a := b.do(t, "GET", "/v2/other/referrers/"+string(d), ""); a.status != 200 || strings.Contains(a.body, string(said)) {
		t.Errorf("referrers in a repository without the image: %d %s", a.status, a.body)
	}
	b.do(t, "GET", "/v2/other/manifests/"+string(said), "").want(t, "what is said, elsewhere", 404, "MANIFEST_UNKNOWN")
	b.do(t, "DELETE", "/v2/web/manifests/"+string(said), "").want(t, "delete what is said", 403, "DENIED")
	b.do(t, "DELETE", "/v2/web/manifests/"+string(d), "").want(t, "delete what is needed", 403, "DENIED")
	b.do(t, "DELETE", "/v2/web/blobs/"+string(digest.FromString("layer")), "").want(t, "delete a blob of what is needed", 403, "DENIED")
	b.do(t, "DELETE", "/v2/web/manifests/latest", "").want(t, "delete a tag", 202, "")
	b.do(t, "GET", "/v2/web/manifests/"+string(d), "").want(t, "by digest after the tag went", 200, "")
}

func TestARefusedTagStaysWhatItWas(t *testing.T) {
	var refuse error
	var asked []string
	b := serve(t, func(o *registry.Options) {
		o.Pushed = func(_ context.Context, repository, tag string, _ kiln.Digest) error {
			asked = append(asked, repository+":"+tag)
			return refuse
		}
	})
	one, two := b.image(t, "a", "1", nil), b.image(t, "a", "2", nil)
	b.putManifest(t, "a", "v1", one).want(t, "push", 201, "")
	refuse = kiln.Errorf(kiln.CodeRefused, "", "it has findings")
	if a := b.putManifest(t, "a", "v1", two); a.status != 403 || a.code != "DENIED" || !strings.Contains(a.body, "it has findings") {
		t.Errorf("refused: %d %s", a.status, a.body)
	}
	if a := b.do(t, "GET", "/v2/a/manifests/v1", ""); a.body != one {
		t.Errorf("the tag is %s", a.body)
	}
	if fmt.Sprint(asked) != "[a:v1 a:v1]" {
		t.Errorf("asked: %v", asked)
	}
}

func TestManifestsThatAreRefused(t *testing.T) {
	b := serve(t, nil)
	good := b.image(t, "a", "layer", nil)
	config, layer := descriptor("application/json", "{}"), descriptor(ocispec.MediaTypeImageLayer, "layer")
	manifest := func(change func(*ocispec.Manifest)) string {
		m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: []ocispec.Descriptor{layer}}
		change(&m)
		return text(m)
	}
	for name, c := range map[string]struct {
		raw, code string
		status    int
	}{
		"no JSON":             {good[:len(good)-1], "MANIFEST_INVALID", 400},
		"two values":          {good + "{}", "MANIFEST_INVALID", 400},
		"too large":           {strings.Repeat(" ", 4<<20) + good, "SIZE_INVALID", 413},
		"another schema":      {manifest(func(m *ocispec.Manifest) { m.SchemaVersion = 1 }), "MANIFEST_INVALID", 400},
		"unknown type":        {manifest(func(m *ocispec.Manifest) { m.MediaType = "text/html" }), "MANIFEST_INVALID", 400},
		"wrong size":          {manifest(func(m *ocispec.Manifest) { m.Layers[0].Size++ }), "MANIFEST_INVALID", 400},
		"missing blob":        {manifest(func(m *ocispec.Manifest) { m.Layers[0].Digest = digest.FromString("x") }), "MANIFEST_BLOB_UNKNOWN", 404},
		"digest that climbs":  {manifest(func(m *ocispec.Manifest) { m.Config.Digest = "sha256:../../x" }), "MANIFEST_INVALID", 400},
		"subject that climbs": {manifest(func(m *ocispec.Manifest) { m.Subject = &ocispec.Descriptor{Digest: "sha256:../../x"} }), "MANIFEST_INVALID", 400},
		"both kinds":          {strings.Replace(good, `"config"`, `"manifests":[],"config"`, 1), "MANIFEST_INVALID", 400},
	} {
		typed := ocispec.MediaTypeImageManifest
		if name == "unknown type" {
			typed = "text/html"
		}
		a := b.do(t, "PUT", "/v2/a/manifests/v1", c.raw, "Content-Type: "+typed)
		a.want(t, name, c.status, c.code)
	}
	b.do(t, "PUT", "/v2/a/manifests/v1", good, "Content-Type: "+ocispec.MediaTypeImageIndex).want(t, "another type than it says", 400, "MANIFEST_INVALID")
	b.putManifest(t, "a", string(digest.FromString("other")), good).want(t, "another digest", 400, "DIGEST_INVALID")
	b.putManifest(t, "a", ".v1", good).want(t, "a tag that is none", 400, "DIGEST_INVALID")
	b.putManifest(t, "A", "v1", good).want(t, "a repository that is none", 400, "NAME_INVALID")
	b.do(t, "GET", "/v2/a/tags/list", "").want(t, "tags", 404, "NAME_UNKNOWN")
	b.putManifest(t, "a", "v1", good).want(t, "the good one", 201, "")
}

func TestIndexesAreNotNestedForEver(t *testing.T) {
	b := serve(t, nil)
	raw := b.image(t, "a", "layer", nil)
	b.putManifest(t, "a", string(digest.FromString(raw)), raw).want(t, "image", 201, "")
	for depth := 1; ; depth++ {
		kind := ocispec.MediaTypeImageIndex
		if depth == 1 {
			kind = ocispec.MediaTypeImageManifest
		}
		raw = text(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{descriptor(kind, raw)}})
		a := b.putManifest(t, "a", string(digest.FromString(raw)), raw)
		if depth == 5 {
			a.want(t, "five indexes", 400, "MANIFEST_INVALID")
			return
		}
		a.want(t, fmt.Sprint(depth, " indexes"), 201, "")
	}
}

func TestAPushThatStopsLeavesNothing(t *testing.T) {
	b := serve(t, nil)
	start := b.do(t, "POST", "/v2/a/blobs/uploads/", "")
	start.want(t, "begin", 202, "")
	at := start.header.Get("Location")
	b.do(t, "PATCH", at, "hel", "Content-Range: 0-2").want(t, "first chunk", 202, "")
	b.do(t, "PATCH", at, "lo", "Content-Range: 4-5").want(t, "a gap", 416, "BLOB_UPLOAD_INVALID")
	b.do(t, "PATCH", at, "lo", "Content-Range: 3-9").want(t, "less than was said", 400, "SIZE_INVALID")
	if a := b.do(t, "GET", at, ""); a.status != 204 || a.header.Get("Range") != "0-2" {
		t.Errorf("state: %d %s", a.status, a.header.Get("Range"))
	}
	b.do(t, "GET", strings.Replace(at, "/a/", "/b/", 1), "").want(t, "of another repository", 404, "BLOB_UPLOAD_UNKNOWN")
	b.do(t, "PUT", at+"?digest="+string(digest.FromString("other")), "lo").want(t, "as another", 400, "DIGEST_INVALID")
	b.do(t, "GET", at, "").want(t, "after it was refused", 404, "BLOB_UPLOAD_UNKNOWN")
	b.do(t, "POST", "/v2/a/blobs/uploads/?digest="+string(digest.FromString("x")), "y").want(t, "at once as another", 400, "DIGEST_INVALID")
	if left, _ := os.ReadDir(filepath.Join(b.store.Dir(), "tmp")); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	if blobs, _ := os.ReadDir(filepath.Join(b.store.Dir(), "blobs", "sha256")); len(blobs) != 0 {
		t.Errorf("blobs: %v", blobs)
	}
}

func TestUploadsAreBounded(t *testing.T) {
	b := serve(t, nil)
	var last answer
	for range 64 {
		last = b.do(t, "POST", "/v2/a/blobs/uploads/", "")
		last.want(t, "begin", 202, "")
	}
	b.do(t, "POST", "/v2/a/blobs/uploads/", "").want(t, "one more", 429, "TOOMANYREQUESTS")
	b.do(t, "DELETE", last.header.Get("Location"), "").want(t, "end one", 204, "")
	b.do(t, "POST", "/v2/a/blobs/uploads/", "").want(t, "another", 202, "")
}

func TestRightsAreAskedFor(t *testing.T) {
	var asked []string
	b := serve(t, func(o *registry.Options) {
		o.Authorize = func(_ *http.Request, repository string, action registry.Action) error {
			asked = append(asked, repository+" "+string(action))
			return kiln.Errorf(kiln.CodeRefused, "", "not you")
		}
	})
	d := string(digest.FromString("x"))
	for _, c := range []struct{ method, path, want string }{
		{"GET", "/v2/", " pull"},
		{"GET", "/v2/_catalog", " pull"},
		{"GET", "/v2/a/b/manifests/v1", "a/b pull"},
		{"HEAD", "/v2/a/blobs/" + d, "a pull"},
		{"GET", "/v2/a/tags/list", "a pull"},
		{"GET", "/v2/a/referrers/" + d, "a pull"},
		{"PUT", "/v2/a/manifests/v1", "a push"},
		{"POST", "/v2/a/blobs/uploads/", "a push"},
		{"POST", "/v2/a/blobs/uploads", "a push"},
		{"GET", "/v2/a/blobs/uploads/x", "a push"},
		{"PATCH", "/v2/a/blobs/uploads/x", "a push"},
		{"PUT", "/v2/a/blobs/uploads/x", "a push"},
		{"DELETE", "/v2/a/blobs/uploads/x", "a push"},
		{"DELETE", "/v2/a/manifests/v1", "a delete"},
		{"DELETE", "/v2/a/blobs/" + d, "a delete"},
	} {
		asked = nil
		if a := b.do(t, c.method, c.path, ""); a.status != 403 || len(asked) != 1 || asked[0] != c.want {
			t.Errorf("%s %s: %d, asked %q, want %q", c.method, c.path, a.status, asked, c.want)
		}
	}
	for _, path := range []string{"/v2/a", "/v2/a/manifests", "/v2/a/x/y/z", "/v1/a/tags/list"} {
		asked = nil
		if a := b.do(t, "GET", path, ""); a.status != 404 || len(asked) != 0 {
			t.Errorf("%s: %d, asked %q", path, a.status, asked)
		}
	}
}

func TestPages(t *testing.T) {
	b := serve(t, nil)
	raw := b.image(t, "a", "layer", nil)
	for _, tag := range []string{"c", "a", "b"} {
		b.putManifest(t, "a", tag, raw).want(t, "push", 201, "")
	}
	var got []string
	next := "/v2/a/tags/list?n=2"
	for next != "" {
		a := b.do(t, "GET", next, "")
		var list struct{ Tags []string }
		if err := json.Unmarshal([]byte(a.body), &list); err != nil {
			t.Fatal(err)
		}
		got = append(got, list.Tags...)
		next, _, _ = strings.Cut(strings.TrimPrefix(a.header.Get("Link"), "<"), ">")
	}
	if fmt.Sprint(got) != "[a b c]" {
		t.Errorf("tags: %v", got)
	}
	b.do(t, "GET", "/v2/a/tags/list?n=-1", "").want(t, "n=-1", 400, "UNSUPPORTED")
	b.putManifest(t, "team/b", "v1", b.image(t, "team/b", "layer", nil)).want(t, "push", 201, "")
	first := b.do(t, "GET", "/v2/_catalog?n=1", "")
	first.want(t, "catalog", 200, "")
	if link := first.header.Get("Link"); first.body != `{"repositories":["a"]}` || link != `</v2/_catalog?last=a&n=1>; rel="next"` {
		t.Errorf("catalog: %s, next %s", first.body, link)
	}
	if a := b.do(t, "GET", "/v2/_catalog?last=a&n=1", ""); a.body != `{"repositories":["team/b"]}` || a.header.Get("Link") != "" {
		t.Errorf("its second page: %s %v", a.body, a.header)
	}
	b.do(t, "DELETE", "/v2/_catalog", "").want(t, "delete the catalog", 405, "UNSUPPORTED")
	// Annotations of two megabytes: referrers come on pages, too.
	subject := descriptor(ocispec.MediaTypeImageManifest, raw)
	for i := range 3 {
		m := ocispec.Manifest{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: "application/x",
			Config: descriptor(ocispec.MediaTypeEmptyJSON, "{}"), Layers: []ocispec.Descriptor{descriptor("text/plain", "layer")}, Subject: &subject,
			Annotations: map[string]string{"n": fmt.Sprint(i), "large": string(bytes.Repeat([]byte("x"), 3<<19))},
		}
		one := text(m)
		if a := b.putManifest(t, "a", string(digest.FromString(one)), one); a.status != 201 || a.header.Get("OCI-Subject") != string(subject.Digest) {
			t.Errorf("referrer: %d %s %v", a.status, a.body, a.header)
		}
	}
	seen, pages := map[digest.Digest]bool{}, 0
	for next = "/v2/a/referrers/" + string(subject.Digest) + "?artifactType=application/x"; next != ""; pages++ {
		a := b.do(t, "GET", next, "")
		var index ocispec.Index
		if err := json.Unmarshal([]byte(a.body), &index); err != nil || a.header.Get("OCI-Filters-Applied") != "artifactType" {
			t.Fatal(err, a.header)
		}
		for _, m := range index.Manifests {
			seen[m.Digest] = true
		}
		next, _, _ = strings.Cut(strings.TrimPrefix(a.header.Get("Link"), "<"), ">")
	}
	if len(seen) != 3 || pages != 3 {
		t.Errorf("%d referrers on %d pages", len(seen), pages)
	}
}

func TestWhatIsSaidElsewhereStaysThere(t *testing.T) {
	b := serve(t, nil)
	raw := b.image(t, "a", "layer", nil)
	b.putManifest(t, "a", "v1", raw).want(t, "push", 201, "")
	subject := descriptor(ocispec.MediaTypeImageManifest, raw)
	said := b.image(t, "b", "words", &subject)
	d := string(digest.FromString(said))
	b.putManifest(t, "b", d, said).want(t, "push what refers to it", 201, "")
	b.do(t, "GET", "/v2/a/manifests/"+d, "").want(t, "of another repository", 404, "MANIFEST_UNKNOWN")
	if a := b.do(t, "GET", "/v2/a/referrers/"+string(subject.Digest), ""); a.status != 200 || strings.Contains(a.body, d) {
		t.Errorf("referrers: %d %s", a.status, a.body)
	}
}
