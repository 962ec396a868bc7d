package registry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/kilnproject/kiln"
)

// The forms in which cosign keeps signatures.
const (
	bundleType       = "application/vnd.dev.sigstore.bundle.v0.3+json"
	bundlePredicate  = "dev.sigstore.bundle.predicateType"
	signPredicate    = "https://sigstore.dev/cosign/sign/v1"
	emptyType        = "application/vnd.oci.empty.v1+json"
	simpleType       = "application/vnd.dev.cosign.artifact.sig.v1+json"
	simpleLayer      = "application/vnd.dev.cosign.simplesigning.v1+json"
	simpleAnnotation = "dev.cosignproject.cosign/signature"
)

// maxSignatures bounds what is read of the signatures of one manifest.
const maxSignatures = 100

// Signature is one that a registry has of an image: a Sigstore bundle, or payload
// and signature of the older form. Nothing of it is verified but the digests.
type Signature struct {
	Bundle             []byte
	Payload, Signature []byte
	// Path are indexes, from the one that is signed to the one that names the
	// image; none where the image itself is signed.
	Path [][]byte
}

// Signatures returns the signatures that a registry, or one of its mirrors, has
// of an image, and of the index that a reference named: what is signed is what
// has the name, which is the index where there is one. What one of them did not
// answer is an error beside what others did.
func (c *Client) Signatures(ctx context.Context, ref string, index, image kiln.Digest) ([]Signature, error) {
	parsed, err := parse(ref)
	if err != nil {
		return nil, err
	}
	var out []Signature
	var failed []error
	for _, at := range c.places(parsed) {
		s := signatures{c: c, ref: ref, repo: at.Context()}
		failed = append(failed, s.all(ctx, index, image))
		out = append(out, s.found...)
	}
	return out, errors.Join(failed...)
}

// signatures are those of one repository.
type signatures struct {
	c     *Client
	ref   string
	repo  name.Repository
	found []Signature
	read  int // referrers
}

func (s *signatures) all(ctx context.Context, index, image kiln.Digest) error {
	if err := s.of(ctx, image, nil); err != nil || index == "" || index == image {
		return err
	}
	seen := 0
	path, err := s.path(ctx, index, image, &seen, 0)
	if err != nil || path == nil {
		return err
	}
	return s.of(ctx, index, path)
}

// path are the indexes from one to the one that names the image; nil for none.
func (s *signatures) path(ctx context.Context, index, image kiln.Digest, seen *int, depth int) ([][]byte, error) {
	want, err := v1.NewHash(string(index))
	if err != nil {
		return nil, invalid(s.ref, "%w", err)
	}
	if *seen++; *seen > maxManifests || depth >= maxNesting {
		return nil, invalid(s.ref, "it has more than %d indexes, or they are nested more than %d deep", maxManifests, maxNesting)
	}
	raw, err := s.c.document(ctx, s.ref, s.repo.Digest(string(index)), want, 0)
	if errors.Is(err, kiln.ErrNotFound) {
		return nil, nil // a mirror may lack it
	}
	if err != nil {
		return nil, err
	}
	var m v1.IndexManifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, invalid(s.ref, "its index cannot be read: %w", err)
	}
	for _, d := range m.Manifests {
		if d.Digest.String() == string(image) {
			return [][]byte{raw}, nil
		}
	}
	for _, d := range m.Manifests {
		if !d.MediaType.IsIndex() {
			continue
		}
		rest, err := s.path(ctx, kiln.Digest(d.Digest.String()), image, seen, depth+1)
		if err != nil || rest != nil {
			return slices.Concat([][]byte{raw}, rest), err
		}
	}
	return nil, nil
}

// of reads the signatures of one manifest: those that refer to it, and those
// under the tag of older clients.
func (s *signatures) of(ctx context.Context, manifest kiln.Digest, path [][]byte) error {
	return errors.Join(s.referring(ctx, manifest, path), s.tagged(ctx, manifest, path))
}

func (s *signatures) referring(ctx context.Context, manifest kiln.Digest, path [][]byte) error {
	index, err := remote.Referrers(s.repo.Digest(string(manifest)), s.c.options(ctx)...)
	if absent(err) {
		return nil
	}
	if err != nil {
		return explain(s.ref, err)
	}
	all, err := index.IndexManifest()
	if err != nil {
		return invalid(s.ref, "its referrers cannot be read: %w", err)
	}
	for _, d := range all.Manifests {
		// Some registries say the type of the config instead, some nothing.
		if kind := d.ArtifactType; kind != "" && kind != emptyType && !signs(kind, d.Annotations) {
			continue
		}
		if s.read++; s.read > maxSignatures {
			return invalid(s.ref, "%s has more than %d referrers that may be signatures", manifest, maxSignatures)
		}
		raw, err := s.c.document(ctx, s.ref, s.repo.Digest(d.Digest.String()), d.Digest, d.Size)
		if err != nil {
			return err
		}
		var m v1.Manifest
		if err := json.Unmarshal(raw, &m); err != nil {
			return invalid(s.ref, "a referrer of it cannot be read: %w", err)
		}
		if !signs(artifactType(raw), m.Annotations) {
			continue
		}
		if err := s.layers(ctx, m, path); err != nil {
			return err
		}
	}
	return nil
}

// signs says whether a referrer is a signature, as far as it says so itself.
func signs(artifactType string, annotations map[string]string) bool {
	said := annotations[bundlePredicate]
	return artifactType == simpleType || artifactType == bundleType && (said == "" || said == signPredicate)
}

func artifactType(manifest []byte) string {
	var m struct {
		ArtifactType string `json:"artifactType"`
	}
	_ = json.Unmarshal(manifest, &m) // it was read before
	return m.ArtifactType
}

func (s *signatures) tagged(ctx context.Context, manifest kiln.Digest, path [][]byte) error {
	desc, err := remote.Get(s.repo.Tag(strings.Replace(string(manifest), ":", "-", 1)+".sig"), s.c.options(ctx)...)
	if absent(err) {
		return nil
	}
	if err != nil {
		return explain(s.ref, err)
	}
	if err := check(s.ref, desc.Manifest, desc.Digest); err != nil {
		return err
	}
	var m v1.Manifest
	if err := json.Unmarshal(desc.Manifest, &m); err != nil {
		return invalid(s.ref, "a signature of it cannot be read: %w", err)
	}
	return s.layers(ctx, m, path)
}

// layers reads the signatures that are the layers of a manifest.
func (s *signatures) layers(ctx context.Context, m v1.Manifest, path [][]byte) error {
	for _, l := range m.Layers {
		if l.MediaType != types.MediaType(bundleType) && l.MediaType != simpleLayer || l.Size > maxDocument {
			continue // none, or larger than a signature
		}
		if len(s.found) >= maxSignatures {
			return invalid(s.ref, "it has more than %d signatures", maxSignatures)
		}
		content, err := s.c.blob(ctx, s.ref, s.repo, l)
		if err != nil {
			return err
		}
		one := Signature{Bundle: content, Path: path}
		if l.MediaType == simpleLayer {
			signed, err := base64.StdEncoding.DecodeString(l.Annotations[simpleAnnotation])
			if err != nil {
				continue // it is nobody's
			}
			one = Signature{Payload: content, Signature: signed, Path: path}
		}
		s.found = append(s.found, one)
	}
	return nil
}

// absent says whether a registry answered that it has none.
func absent(err error) bool {
	var t *transport.Error
	return errors.As(err, &t) && t.StatusCode == http.StatusNotFound
}
