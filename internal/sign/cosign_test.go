package sign

import (
	"encoding/json"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/secure-systems-lab/go-securesystemslib/dsse"

	"github.com/kilnproject/kiln"
)

// raw is a manifest as it is.
type raw struct {
	b  []byte
	at types.MediaType
}

func (r raw) RawManifest() ([]byte, error)        { return r.b, nil }
func (r raw) MediaType() (types.MediaType, error) { return r.at, nil }

// serve serves a shelf by a registry: its image, what refers to it, and the
// older signature's tag.
func serve(t *testing.T, store *shelf, image kiln.Digest) (ref string) {
	t.Helper()
	server := httptest.NewServer(registry.New(registry.WithReferrersSupport(true), registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	repo, err := name.NewRepository(strings.TrimPrefix(server.URL, "http://")+"/app", name.Insecure)
	check(t, err)
	push := func(d kiln.Digest, to name.Reference) {
		m, err := store.Manifest(t.Context(), d)
		check(t, err)
		for _, blob := range append([]ocispec.Descriptor{m.Config}, m.Layers...) {
			check(t, remote.WriteLayer(repo, static.NewLayer(store.blobs[kiln.Digest(blob.Digest)], types.MediaType(blob.MediaType))))
		}
		check(t, remote.Put(to, raw{store.blobs[d], types.OCIManifestSchema1}))
	}
	push(image, repo.Digest(string(image)))
	for _, d := range store.referrers[image] {
		push(kiln.Digest(d.Digest), repo.Digest(string(d.Digest)))
		if d.ArtifactType == SimpleType {
			push(kiln.Digest(d.Digest), repo.Tag(SignatureTag(image)))
		}
	}
	return repo.Digest(string(image)).String()
}

// TestCosignAccepts runs the real cosign, both ways in which it verifies.
func TestCosignAccepts(t *testing.T) {
	cosign, err := exec.LookPath("cosign")
	if err != nil {
		t.Skip("cosign is not installed")
	}
	store := newShelf()
	s, stranger := open(t, Options{Store: store}), open(t, Options{Store: store})
	image := store.image(t, "a")
	check(t, s.SignImage(t.Context(), image))
	_, err = s.Attest(t.Context(), image, PredicateCycloneDX, json.RawMessage(`{"bomFormat":"CycloneDX","specVersion":"1.6","version":1}`))
	check(t, err)
	_, err = s.AttestProvenance(t.Context(), build(image))
	check(t, err)
	_, err = s.AttestVerdict(t.Context(), kiln.Verdict{Image: image, Outcome: kiln.OutcomePass})
	check(t, err)
	dir := t.TempDir()
	mine, others := filepath.Join(dir, "kiln.pub"), filepath.Join(dir, "others.pub")
	check(t, os.WriteFile(mine, []byte(s.PublicKey()), 0o600))
	check(t, os.WriteFile(others, []byte(stranger.PublicKey()), 0o600))
	// One who trusts a key needs no root of a public instance, and no network.
	root := filepath.Join(dir, "root.json")
	check(t, os.WriteFile(root, []byte(`{"mediaType":"application/vnd.dev.sigstore.trustedroot+json;version=0.1"}`), 0o600))
	ref := serve(t, store, image)
	run := func(key string, args ...string) ([]byte, error) {
		args = append(args, "--key", key, "--insecure-ignore-tlog=true", "--allow-http-registry", ref)
		cmd := exec.CommandContext(t.Context(), cosign, args...)
		cmd.Env = append(os.Environ(), "HOME="+dir)
		return cmd.CombinedOutput()
	}
	for what, args := range map[string][]string{
		"bundle":     {"verify", "--new-bundle-format", "--trusted-root", root},
		"older form": {"verify", "--new-bundle-format=false"},
		"provenance": {"verify-attestation", "--new-bundle-format", "--trusted-root", root, "--type", "slsaprovenance1"},
		"inventory":  {"verify-attestation", "--new-bundle-format", "--trusted-root", root, "--type", "cyclonedx"},
		"verdict":    {"verify-attestation", "--new-bundle-format", "--trusted-root", root, "--type", string(PredicateVerdict)},
	} {
		if out, err := run(mine, args...); err != nil {
			t.Errorf("%s: %v\n%s", what, err, out)
		}
		if out, err := run(others, args...); err == nil {
			t.Errorf("%s: another key is accepted\n%s", what, out)
		}
	}
}

// peer verifies as sigstore-go does: by one key, without an id.
type peer struct{ dsseVerifier }

func (peer) KeyID() (string, error) { return "", nil }

// TestVerifiersWithIDsOfTheirOwn: package dsse gives a key without an id one of
// its own making, and skips a signature that names another.
func TestVerifiersWithIDsOfTheirOwn(t *testing.T) {
	store := newShelf()
	s := open(t, Options{Store: store})
	image := store.image(t, "a")
	check(t, s.SignImage(t.Context(), image))
	var b struct {
		Envelope dsse.Envelope `json:"dsseEnvelope"`
	}
	check(t, json.Unmarshal(store.bundles(t, image)[PredicateSignature], &b))
	key, err := ParsePublic([]byte(s.PublicKey()))
	check(t, err)
	verifier, err := dsse.NewEnvelopeVerifier(peer{dsseVerifier{key}})
	check(t, err)
	if _, err := verifier.Verify(t.Context(), &b.Envelope); err != nil {
		t.Error(err)
	}
	b.Envelope.Signatures[0].KeyID = s.Keys()[0].ID
	if _, err := verifier.Verify(t.Context(), &b.Envelope); err == nil {
		t.Error("an id is of no consequence: bundles may have one")
	}
}
