package sign

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/store"
)

// onDisk is the store that Kiln has, as this package names its methods.
type onDisk struct{ *store.Store }

func (s onDisk) PutReferrer(ctx context.Context, about kiln.Digest, r Referrer) (kiln.Digest, error) {
	out := store.Referrer{ArtifactType: r.ArtifactType, Annotations: r.Annotations}
	for _, l := range r.Layers {
		out.Layers = append(out.Layers, store.ReferrerLayer(l))
	}
	return s.Store.PutReferrer(ctx, about, out)
}

// TestOverTheStore: what is signed is found after a restart, and a bundle whose
// file was changed on the disk is said to be changed.
func TestOverTheStore(t *testing.T) {
	dir := t.TempDir()
	blobs, err := store.Open(filepath.Join(dir, "store"))
	check(t, err)
	put := func(content string) kiln.Digest {
		d, _, err := blobs.Put(t.Context(), bytes.NewReader([]byte(content)), "")
		check(t, err)
		return d
	}
	config := put("{}")
	image := put(`{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageManifest + `","config":{"mediaType":"` +
		ocispec.MediaTypeImageConfig + `","digest":"` + string(config) + `","size":2},"layers":[]}`)
	s := open(t, Options{Dir: filepath.Join(dir, "sign"), Store: onDisk{blobs}})
	check(t, s.SignImage(t.Context(), image))
	large := append(append([]byte(`"`), bytes.Repeat([]byte("x"), MaxPredicate-500)...), '"')
	_, err = s.Attest(t.Context(), image, PredicateSPDX, large)
	check(t, err)
	_, err = s.AttestVerdict(t.Context(), kiln.Verdict{Image: image, Outcome: kiln.OutcomePass})
	check(t, err)

	blobs, err = store.Open(filepath.Join(dir, "store"))
	check(t, err)
	s = open(t, Options{Dir: filepath.Join(dir, "sign"), Store: onDisk{blobs}})
	p, err := s.Verify(t.Context(), image)
	if err != nil || len(p.Attestations) != 3 || p.MayRun() != nil || len(p.Ignored) != 0 {
		t.Fatalf("%+v, %v", p, err)
	}
	if got, err := s.Predicates(t.Context(), image, PredicateSPDX); err != nil || len(got) != 1 || !bytes.Equal(got[0], json.RawMessage(large)) {
		t.Errorf("%d, %v", len(got), err)
	}

	for _, a := range p.Attestations {
		m, err := blobs.Manifest(t.Context(), a.Referrer)
		check(t, err)
		path := filepath.Join(blobs.Dir(), "blobs", "sha256", kiln.Digest(m.Layers[0].Digest).Hex())
		raw, err := os.ReadFile(path)
		check(t, err)
		raw[len(raw)/2] ^= 1
		check(t, os.Chmod(path, 0o600))
		check(t, os.WriteFile(path, raw, 0o600))
	}
	s = open(t, Options{Dir: filepath.Join(dir, "sign"), Store: onDisk{blobs}})
	if _, err := s.Verify(t.Context(), image); !errors.Is(err, ErrChanged) {
		t.Errorf("bundles that were changed on the disk: %v", err)
	}
	check(t, s.SignImage(t.Context(), image))
	if _, err := s.Verify(t.Context(), image); err != nil {
		t.Errorf("signed again: %v", err)
	}
}
