package registry

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	theirs "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/store"
)

// fill puts a random image into a registry and pulls it.
func fill(t *testing.T, c *Client, host string) kiln.Digest {
	t.Helper()
	image, err := random.Image(2000, 2)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(host + "/team/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, image); err != nil {
		t.Fatal(err)
	}
	d, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Pull(t.Context(), ref.String(), kiln.Digest(d.String()), func(kiln.Progress) {}); err != nil {
		t.Fatal(err)
	}
	return kiln.Digest(d.String())
}

func TestPushSendsWhatRefersToAnImage(t *testing.T) {
	s, err := store.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	c := New(Options{Store: s})
	for _, withReferrers := range []bool{true, false} {
		server := httptest.NewServer(theirs.New(theirs.WithReferrersSupport(withReferrers)))
		defer server.Close()
		host := strings.TrimPrefix(server.URL, "http://")
		d := fill(t, c, host)
		inventory, err := s.PutReferrer(t.Context(), d, store.Referrer{ArtifactType: "application/x", Layers: []store.ReferrerLayer{{MediaType: "text/plain", Content: []byte("sbom")}}})
		if err != nil {
			t.Fatal(err)
		}
		signature, err := s.PutReferrer(t.Context(), inventory, store.Referrer{ArtifactType: "application/y"})
		if err != nil {
			t.Fatal(err)
		}
		got, err := c.Push(t.Context(), s, d, host+"/other/app:v2", func(kiln.Progress) {})
		if err != nil || got != host+"/other/app@"+string(d) {
			t.Fatalf("%s %v", got, err)
		}
		tag, err := name.ParseReference(host + "/other/app:v2")
		if err != nil {
			t.Fatal(err)
		}
		desc, err := remote.Get(tag)
		if err != nil || desc.Digest.String() != string(d) {
			t.Fatalf("%v %v", desc, err)
		}
		for subject, want := range map[kiln.Digest]kiln.Digest{d: inventory, inventory: signature} {
			index, err := remote.Referrers(tag.Context().Digest(string(subject)))
			if err != nil {
				t.Fatal(err)
			}
			m, err := index.IndexManifest()
			if err != nil || len(m.Manifests) != 1 || m.Manifests[0].Digest.String() != string(want) {
				t.Errorf("referrers of %s: %+v %v", subject, m, err)
			}
		}
		if _, err := c.Push(t.Context(), s, d, host+"/other/app@"+string(inventory), nil); !errors.Is(err, kiln.ErrInvalid) {
			t.Errorf("to another digest: %v", err)
		}
	}
	if _, err := c.Push(t.Context(), s, kiln.DigestOf(nil), "127.0.0.1:1/xx:y", nil); !errors.Is(err, kiln.ErrNotFound) {
		t.Errorf("an image that is not there: %v", err)
	}
}

// elsewhere carries requests to another server than their URL names.
type elsewhere struct{ host string }

func (e elsewhere) RoundTrip(r *http.Request) (*http.Response, error) {
	out := r.Clone(r.Context())
	out.URL.Scheme, out.URL.Host = "http", e.host
	return http.DefaultTransport.RoundTrip(out)
}

// TestTheOwnRegistryNeedsNoNetwork: what names it is carried its way, and all
// else as it was.
func TestTheOwnRegistryNeedsNoNetwork(t *testing.T) {
	server := httptest.NewServer(theirs.New())
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	image, err := random.Image(100, 1)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(host + "/team/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, image); err != nil {
		t.Fatal(err)
	}
	memory := &shelf{blobs: map[kiln.Digest][]byte{}}
	c := New(Options{Store: memory, Own: func(r *http.Request) http.RoundTripper {
		if r.URL.Host == "kiln.test:9443" {
			return elsewhere{host}
		}
		return nil
	}})
	for _, where := range []string{"kiln.test:9443/team/app:v1", host + "/team/app:v1"} {
		lock, err := c.Resolve(t.Context(), where)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Pull(t.Context(), where, lock.Index, func(kiln.Progress) {}); err != nil {
			t.Errorf("%s: %v", where, err)
		}
		clear(memory.blobs)
	}
	if _, err := c.Resolve(t.Context(), "kiln.test:9443/team/other:v1"); !errors.Is(err, kiln.ErrNotFound) {
		t.Errorf("an image that is not there: %v", err)
	}
}

// TestMirrorsComeFirst pulls from a mirror, and from the registry itself what
// no mirror has.
func TestMirrorsComeFirst(t *testing.T) {
	var asked atomic.Int64
	origin := httptest.NewServer(theirs.New())
	defer origin.Close()
	inner := theirs.New()
	mirror := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		inner.ServeHTTP(w, r)
	}))
	defer mirror.Close()
	at, via := strings.TrimPrefix(origin.URL, "http://"), strings.TrimPrefix(mirror.URL, "http://")
	memory := &shelf{blobs: map[kiln.Digest][]byte{}}
	c := New(Options{Store: memory})
	c.SetMirrors(map[string][]string{at: {"127.0.0.1:1", via + "/cache"}})
	image, err := random.Image(100, 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, where := range []string{via + "/cache/team/app:v1", at + "/team/only:v1"} {
		ref, err := name.ParseReference(where)
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(ref, image); err != nil {
			t.Fatal(err)
		}
	}
	for _, ref := range []string{at + "/team/app:v1", at + "/team/only:v1"} {
		before := asked.Load()
		lock, err := c.Resolve(t.Context(), ref)
		if err != nil || lock.Reference != ref {
			t.Fatalf("%s: %+v %v", ref, lock, err)
		}
		if err := c.Pull(context.Background(), ref, lock.Index, func(kiln.Progress) {}); err != nil {
			t.Errorf("%s: %v", ref, err)
		}
		if asked.Load() == before {
			t.Errorf("%s: the mirror was not asked", ref)
		}
	}
	c.SetMirrors(nil)
	before := asked.Load()
	if _, err := c.Resolve(t.Context(), at+"/team/app:v1"); !errors.Is(err, kiln.ErrNotFound) || asked.Load() != before {
		t.Errorf("without mirrors: %v", err)
	}
	if !bytes.Contains(memory.blobs[digestOf(t, image)], []byte("config")) {
		t.Error("the manifest was not pulled")
	}
}

func digestOf(t *testing.T, image v1.Image) kiln.Digest {
	t.Helper()
	d, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return kiln.Digest(d.String())
}
