package sign

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
)

// TestMain is also the signing command that the tests name.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "sign-for-a-test" {
		os.Exit(signForATest(os.Args[2], os.Args[3]))
	}
	os.Exit(m.Run())
}

// signForATest signs its standard input as a command of an operator's would, or
// does what one should not.
func signForATest(how, keyFile string) int {
	content, err := io.ReadAll(os.Stdin)
	if err != nil {
		return 1
	}
	text, err := os.ReadFile(keyFile)
	if err != nil {
		return 1
	}
	key, err := ParsePrivate(text, nil)
	if err != nil {
		return 1
	}
	sum := sha256.Sum256(content)
	switch how {
	case "content":
	case "digest":
		if len(content) != sha256.Size {
			return 1
		}
		copy(sum[:], content)
	case "fail":
		fmt.Fprintln(os.Stderr, "the token has gone")
		return 3
	case "flood":
		for {
			if _, err := os.Stdout.Write(bytes.Repeat([]byte("A"), 4096)); err != nil {
				return 1
			}
		}
	case "hang":
		select {}
	case "garbage":
		fmt.Fprintln(os.Stdout, "no base64!")
		return 0
	}
	signature, err := ecdsa.SignASN1(nil, key, sum[:])
	if err != nil {
		return 1
	}
	fmt.Fprintln(os.Stdout, base64.StdEncoding.EncodeToString(signature))
	return 0
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// shelf is a Store in memory.
type shelf struct {
	mu        sync.Mutex
	blobs     map[kiln.Digest][]byte
	referrers map[kiln.Digest][]ocispec.Descriptor
	reads     int // of documents and manifests
}

func newShelf() *shelf {
	return &shelf{blobs: map[kiln.Digest][]byte{}, referrers: map[kiln.Digest][]ocispec.Descriptor{}}
}

func (s *shelf) put(mediaType string, b []byte) ocispec.Descriptor {
	d := kiln.DigestOf(b)
	s.blobs[d] = bytes.Clone(b)
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.Digest(d), Size: int64(len(b))}
}

func (s *shelf) Document(_ context.Context, d kiln.Digest) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads++
	b, ok := s.blobs[d]
	if !ok {
		return nil, kiln.Errorf(kiln.CodeNotFound, "", "blob %s is not in the store", d)
	}
	if kiln.DigestOf(b) != d {
		return nil, kiln.Errorf(kiln.CodeInvalid, "", "blob %s is damaged", d)
	}
	return b, nil
}

func (s *shelf) Manifest(ctx context.Context, d kiln.Digest) (m ocispec.Manifest, err error) {
	b, err := s.Document(ctx, d)
	if err != nil {
		return m, err
	}
	return m, json.Unmarshal(b, &m)
}

func (s *shelf) PutReferrer(_ context.Context, about kiln.Digest, a Referrer) (kiln.Digest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: a.ArtifactType,
		Config: s.put(ocispec.MediaTypeEmptyJSON, []byte("{}")), Annotations: a.Annotations,
		Subject: &ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.Digest(about), Size: int64(len(s.blobs[about]))},
	}
	for _, l := range a.Layers {
		d := s.put(l.MediaType, l.Content)
		d.Annotations = l.Annotations
		m.Layers = append(m.Layers, d)
	}
	b, err := json.Marshal(m)
	if err != nil {
		return "", err
	}
	d := s.put(m.MediaType, b)
	for _, known := range s.referrers[about] {
		if known.Digest == d.Digest {
			return kiln.Digest(d.Digest), nil
		}
	}
	d.ArtifactType, d.Annotations = a.ArtifactType, a.Annotations
	s.referrers[about] = append(s.referrers[about], d)
	return kiln.Digest(d.Digest), nil
}

func (s *shelf) Referrers(_ context.Context, about kiln.Digest, artifactType string) ([]ocispec.Descriptor, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []ocispec.Descriptor
	for _, d := range s.referrers[about] {
		if artifactType == "" || d.ArtifactType == artifactType {
			out = append(out, d)
		}
	}
	return out, nil
}

// image stores an image of one layer.
func (s *shelf) image(t testing.TB, content string) kiln.Digest {
	t.Helper()
	config := s.put(ocispec.MediaTypeImageConfig, []byte(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}`))
	b, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: config,
		Layers: []ocispec.Descriptor{s.put(ocispec.MediaTypeImageLayer, []byte(content))},
	})
	check(t, err)
	return kiln.Digest(s.put(ocispec.MediaTypeImageManifest, b).Digest)
}

// bundles returns the raw bundles of a manifest, by predicate type.
func (s *shelf) bundles(t testing.TB, about kiln.Digest) map[PredicateType][]byte {
	t.Helper()
	out := map[PredicateType][]byte{}
	for _, d := range s.referrers[about] {
		if d.ArtifactType != BundleType {
			continue
		}
		m, err := s.Manifest(t.Context(), kiln.Digest(d.Digest))
		check(t, err)
		out[PredicateType(d.Annotations[predicateAnnotation])] = s.blobs[kiln.Digest(m.Layers[0].Digest)]
	}
	return out
}

// attach stores bytes as a bundle, as who may push could.
func (s *shelf) attach(t testing.TB, about kiln.Digest, raw []byte) kiln.Digest {
	t.Helper()
	d, err := s.PutReferrer(t.Context(), about, Referrer{ArtifactType: BundleType, Layers: []ReferrerLayer{{MediaType: BundleType, Content: raw}}})
	check(t, err)
	return d
}

func open(t testing.TB, opt Options) *Signer {
	t.Helper()
	if opt.Dir == "" {
		opt.Dir = filepath.Join(t.TempDir(), "sign")
	}
	s, err := New(opt)
	check(t, err)
	return s
}

// refused wants a *kiln.Error with that code, words and a hint, and returns its
// evidence.
func refused(t testing.TB, err error, code kiln.Code, words string) []string {
	t.Helper()
	k, ok := err.(*kiln.Error) //nolint:errorlint // it must be one itself
	if !ok || k.Code != code || k.Hint == "" || !strings.Contains(k.Message+strings.Join(k.Evidence, "\n"), words) {
		t.Fatalf("not %s with %q: %#v", code, words, err)
	}
	return k.Evidence
}

// clock is a time that a test sets.
type clock struct{ at time.Time }

func (c *clock) now() time.Time { return c.at }
