package registry

import (
	"encoding/json"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// FuzzManifest: what is taken as a manifest says what it is, and names only
// digests.
func FuzzManifest(f *testing.F) {
	const digest = `"sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"`
	f.Add([]byte(`{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":`+digest+`,"size":2},"layers":[{"digest":`+digest+`,"size":1}],"subject":{"digest":`+digest+`}}`), ocispec.MediaTypeImageManifest)
	f.Add([]byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"digest":`+digest+`}]}`), ocispec.MediaTypeImageIndex)
	f.Add([]byte(`{"manifests":[],"config":null}`), typeDockerIndex)
	f.Add([]byte(`{"config":{"digest":"sha256:../x"}}`), typeDockerManifest)
	f.Fuzz(func(t *testing.T, raw []byte, contentType string) {
		doc, err := parseManifest(raw, contentType)
		if err != nil {
			return
		}
		if !json.Valid(raw) || doc.kind() == "" {
			t.Errorf("%q is taken", raw)
		}
		for _, d := range doc.blobs() {
			if _, err := digestOf(string(d.Digest)); err != nil {
				t.Errorf("%q names %q", raw, d.Digest)
			}
		}
	})
}
