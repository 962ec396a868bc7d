package registry_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/registry"
	"github.com/kilnproject/kiln/internal/sign"
	"github.com/kilnproject/kiln/internal/store"
)

// signable is the store as the signer knows it.
type signable struct{ *store.Store }

func (s signable) PutReferrer(ctx context.Context, subject kiln.Digest, r sign.Referrer) (kiln.Digest, error) {
	out := store.Referrer{ArtifactType: r.ArtifactType, Annotations: r.Annotations}
	for _, l := range r.Layers {
		out.Layers = append(out.Layers, store.ReferrerLayer(l))
	}
	return s.Store.PutReferrer(ctx, subject, out)
}

// TestOlderSignaturesHaveTheirTag: clients that know no referrers get the older
// signature by its tag, of the key that signs now, and nobody else's.
func TestOlderSignaturesHaveTheirTag(t *testing.T) {
	var signer *sign.Signer
	b := serve(t, func(o *registry.Options) {
		o.Signature = func(ctx context.Context, d kiln.Digest) (kiln.Digest, error) { return signer.SimpleSignature(ctx, d) }
	})
	signer, err := sign.New(sign.Options{Dir: filepath.Join(t.TempDir(), "sign"), Store: signable{b.store}})
	if err != nil {
		t.Fatal(err)
	}
	raw := b.image(t, "app", "layer", nil)
	b.putManifest(t, "app", "v1", raw).want(t, "push", 201, "")
	image := kiln.DigestOf([]byte(raw))
	repository, err := name.NewRepository(strings.TrimPrefix(b.url, "http://")+"/app", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	tag := repository.Tag(sign.SignatureTag(image))
	unknown := func(what string, tag name.Reference) {
		t.Helper()
		var failed *transport.Error
		if _, err := remote.Get(tag, remote.WithContext(t.Context())); !errors.As(err, &failed) || failed.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %v", what, err)
		}
	}
	unknown("before it is signed", tag)
	_, err = b.store.PutReferrer(t.Context(), image, store.Referrer{ArtifactType: sign.SimpleType})
	if err != nil {
		t.Fatal(err)
	}
	unknown("a stranger's", tag)
	before := kiln.Digest("")
	for range 2 {
		if err := signer.SignImage(t.Context(), image); err != nil {
			t.Fatal(err)
		}
		want, err := signer.SimpleSignature(t.Context(), image)
		if err != nil {
			t.Fatal(err)
		}
		if want == before {
			t.Error("after a rotation the tag names the signature of the old key")
		}
		before = want
		got, err := remote.Image(tag, remote.WithContext(t.Context()))
		if err != nil {
			t.Fatal(err)
		}
		d, err := got.Digest()
		if err != nil || d.String() != string(want) {
			t.Errorf("%s, %v, want %s", d, err, want)
		}
		layers, err := got.Layers()
		if err != nil || len(layers) != 1 {
			t.Fatalf("%d layers, %v", len(layers), err)
		}
		content, err := layers[0].Compressed()
		if err != nil {
			t.Fatal(err)
		}
		_ = content.Close()
		if _, err := signer.Rotate(); err != nil {
			t.Fatal(err)
		}
	}
	other, err := name.NewRepository(strings.TrimPrefix(b.url, "http://")+"/other", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	unknown("in a repository that does not show the image", other.Tag(sign.SignatureTag(image)))
	unknown("of what is not there", repository.Tag(sign.SignatureTag(kiln.DigestOf([]byte("nothing")))))
	b.do(t, "DELETE", "/v2/app/manifests/"+sign.SignatureTag(image), "").want(t, "delete", 404, "MANIFEST_UNKNOWN")
}

// TestACopyOfWhatKilnSaysHidesNothing: a client that copies an image with its
// signatures to another repository, as cosign does, pushes what Kiln said. That
// stays in the first repository, and is not deleted with the copy.
func TestACopyOfWhatKilnSaysHidesNothing(t *testing.T) {
	var signer *sign.Signer
	b := serve(t, func(o *registry.Options) {
		o.Said = func(ctx context.Context, subject, d kiln.Digest) (bool, error) { return signer.Said(ctx, subject, d) }
	})
	signer, err := sign.New(sign.Options{Dir: filepath.Join(t.TempDir(), "sign"), Store: signable{b.store}})
	if err != nil {
		t.Fatal(err)
	}
	raw := b.image(t, "app", "layer", nil)
	b.putManifest(t, "app", "v1", raw).want(t, "push", 201, "")
	image := kiln.DigestOf([]byte(raw))
	if err := signer.SignImage(t.Context(), image); err != nil {
		t.Fatal(err)
	}
	if _, err := b.store.PutReferrer(t.Context(), image, store.Referrer{ArtifactType: sign.BundleType}); err != nil { // a stranger's
		t.Fatal(err)
	}
	of := func(repository string) []string {
		a := b.do(t, "GET", "/v2/"+repository+"/referrers/"+string(image), "")
		var index struct{ Manifests []struct{ Digest string } }
		if err := json.Unmarshal([]byte(a.body), &index); err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, m := range index.Manifests {
			out = append(out, m.Digest)
		}
		return out
	}
	said := of("app")
	if len(said) != 3 {
		t.Fatalf("%d referrers", len(said))
	}
	for _, d := range said {
		a := b.do(t, "GET", "/v2/app/manifests/"+d, "")
		var m struct {
			Config struct{ Digest string }
			Layers []struct{ Digest string }
		}
		if err := json.Unmarshal([]byte(a.body), &m); err != nil {
			t.Fatal(err)
		}
		for _, blob := range append(m.Layers, m.Config) {
			b.do(t, "POST", "/v2/copy/blobs/uploads/?mount="+blob.Digest+"&from=app", "").want(t, "mount", 201, "")
		}
		b.putManifest(t, "copy", d, a.body).want(t, "copy", 201, "")
	}
	left := of("app")
	if len(left) != 2 || of("copy") == nil {
		t.Errorf("after the copy there are %v of %v", left, said)
	}
	for _, d := range left {
		a := b.do(t, "GET", "/v2/app/manifests/"+d, "")
		a.want(t, "what Kiln says", 200, "")
		var m struct{ Layers []struct{ Digest string } }
		if err := json.Unmarshal([]byte(a.body), &m); err != nil {
			t.Fatal(err)
		}
		b.do(t, "GET", "/v2/app/blobs/"+m.Layers[0].Digest, "").want(t, "its content", 200, "")
	}
	for _, d := range said {
		b.do(t, "DELETE", "/v2/copy/manifests/"+d, "").want(t, "delete the copy", 202, "")
	}
	if after := of("app"); !slices.Equal(after, left) {
		t.Errorf("after the copy was deleted there are %v of %v", after, left)
	}
	if proof, err := signer.Verify(t.Context(), image); err != nil || len(proof.Attestations) != 1 {
		t.Errorf("%+v, %v", proof, err)
	}
}
