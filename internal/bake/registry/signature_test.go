package registry

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	theirs "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kilnproject/kiln"
)

// signing puts what looks like signatures beside the images of a repository.
type signing struct {
	t    *testing.T
	repo name.Repository
}

// put writes an artifact of one layer, at a tag where there is one.
func (s signing) put(artifactType string, layer types.MediaType, content string, annotations map[string]string, subject v1.Hash, tag string) {
	s.t.Helper()
	blob := static.NewLayer([]byte(content), layer)
	config := static.NewLayer([]byte("{}"), emptyType)
	for _, l := range []v1.Layer{blob, config} {
		s.check(remote.WriteLayer(s.repo, l))
	}
	describe := func(l v1.Layer) v1.Descriptor {
		d, err := l.Digest()
		s.check(err)
		size, err := l.Size()
		s.check(err)
		kind, err := l.MediaType()
		s.check(err)
		return v1.Descriptor{MediaType: kind, Digest: d, Size: size}
	}
	of := describe(blob)
	of.Annotations = annotations
	m := map[string]any{
		"schemaVersion": 2, "mediaType": types.OCIManifestSchema1, "config": describe(config), "layers": []v1.Descriptor{of}, "annotations": annotations,
	}
	if artifactType != "" {
		m["artifactType"] = artifactType
	}
	if tag == "" {
		m["subject"] = v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: subject, Size: 1}
	}
	b, err := json.Marshal(m)
	s.check(err)
	to := name.Reference(s.repo.Digest(string(kiln.DigestOf(b))))
	if tag != "" {
		to = s.repo.Tag(tag)
	}
	s.check(remote.Put(to, raw{b, types.OCIManifestSchema1}))
}

func (s signing) check(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// TestSignatures: those of the image and of the index that the reference names, in
// both forms, and nothing else.
func TestSignatures(t *testing.T) {
	for _, withReferrers := range []bool{true, false} {
		server := httptest.NewServer(theirs.New(theirs.WithReferrersSupport(withReferrers), theirs.Logger(log.New(io.Discard, "", 0))))
		defer server.Close()
		repo, err := name.NewRepository(strings.TrimPrefix(server.URL, "http://") + "/team/app")
		s := signing{t, repo}
		s.check(err)
		index, err := random.Index(100, 1, 2)
		s.check(err)
		s.check(remote.WriteIndex(repo.Tag("v1"), index))
		top, err := index.Digest()
		s.check(err)
		m, err := index.IndexManifest()
		s.check(err)
		image, sibling := m.Manifests[0].Digest, m.Manifests[1].Digest
		signature := map[string]string{simpleAnnotation: base64.StdEncoding.EncodeToString([]byte("signed"))}
		s.put(bundleType, bundleType, "bundle of the image", map[string]string{bundlePredicate: signPredicate}, image, "")
		s.put(bundleType, bundleType, "bundle that does not say", nil, image, "")
		s.put(bundleType, bundleType, "an inventory", map[string]string{bundlePredicate: "https://cyclonedx.org/bom"}, image, "")
		s.put(simpleType, simpleLayer, "older, by reference", signature, image, "")
		s.put("", simpleLayer, "older, by tag", signature, v1.Hash{}, "sha256-"+image.Hex+".sig")
		s.put("", simpleLayer, "not base64", map[string]string{simpleAnnotation: "?"}, v1.Hash{}, "sha256-"+sibling.Hex+".sig")
		s.put(bundleType, bundleType, "bundle of the index", nil, top, "")
		s.put("", simpleLayer, "older, of the index", signature, v1.Hash{}, "sha256-"+top.Hex+".sig")
		s.put(bundleType, bundleType, "bundle of another image", nil, sibling, "")
		raw, err := index.RawManifest()
		s.check(err)

		c := New(Options{Store: &shelf{blobs: map[kiln.Digest][]byte{}}})
		ask := func(index, image v1.Hash) (out []string) {
			t.Helper()
			found, err := c.Signatures(t.Context(), repo.Tag("v1").String(), kiln.Digest(index.String()), kiln.Digest(image.String()))
			s.check(err)
			for _, one := range found {
				text := string(one.Bundle) + string(one.Payload)
				if (one.Payload != nil) != (string(one.Signature) == "signed") {
					t.Errorf("%s: signature %q", text, one.Signature)
				}
				if strings.HasSuffix(text, "the index") != (len(one.Path) == 1 && string(one.Path[0]) == string(raw)) {
					t.Errorf("%s: path of %d", text, len(one.Path))
				}
				out = append(out, text)
			}
			slices.Sort(out)
			return out
		}
		want := []string{"bundle of the image", "bundle that does not say", "older, by reference", "older, by tag"}
		if got := ask(image, image); !slices.Equal(got, want) {
			t.Errorf("of the image: %q", got)
		}
		want = append(want, "bundle of the index", "older, of the index")
		slices.Sort(want)
		if got := ask(top, image); !slices.Equal(got, want) {
			t.Errorf("of image and index: %q", got)
		}
		if got := ask(top, sibling); !slices.Equal(got, []string{"bundle of another image", "bundle of the index", "older, of the index"}) {
			t.Errorf("of the other image: %q", got)
		}
		if got := ask(v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("0", 64)}, image); len(got) != 4 {
			t.Errorf("without its index: %q", got)
		}
	}
}

// TestARegistryThatDoesNotAnswerIsNotOneWithoutSignatures: what could not be asked
// is an error.
func TestARegistryThatDoesNotAnswerIsNotOneWithoutSignatures(t *testing.T) {
	inner := theirs.New(theirs.WithReferrersSupport(true), theirs.Logger(log.New(io.Discard, "", 0)))
	broken := ""
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if broken != "" && strings.Contains(r.URL.Path, broken) {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		inner.ServeHTTP(w, r)
	}))
	defer server.Close()
	c := New(Options{Store: &shelf{blobs: map[kiln.Digest][]byte{}}})
	host := strings.TrimPrefix(server.URL, "http://")
	d := fill(t, c, host)
	for what, wrong := range map[string]bool{"": false, "/referrers/": true, ".sig": true} {
		broken = what
		found, err := c.Signatures(t.Context(), host+"/team/app:v1", d, d)
		if (err != nil) != wrong || len(found) != 0 {
			t.Errorf("%q is refused: %d signatures, %v", what, len(found), err)
		}
	}
}
