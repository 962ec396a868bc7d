package kiln

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
)

// Digest names content by its hash, written "sha256:" and 64 lower-case hex
// digits (OCI image specification, descriptor.md#digests). The zero value
// names nothing.
type Digest string

const digestPrefix = "sha256:"

// DigestOf returns the digest of b.
func DigestOf(b []byte) Digest {
	sum := sha256.Sum256(b)
	return Digest(digestPrefix + hex.EncodeToString(sum[:]))
}

// DigestJSON returns the digest of v's canonical JSON: the standard library's
// encoding, whose struct fields keep their order and whose map keys are
// sorted. It panics when v cannot be encoded, which is a programming error.
func DigestJSON(v any) Digest {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("kiln: digest of %T: %v", v, err))
	}
	return DigestOf(b)
}

// ParseDigest checks that s is a whole SHA-256 digest.
func ParseDigest(s string) (Digest, error) {
	h, ok := strings.CutPrefix(s, digestPrefix)
	if !ok || len(h) != sha256.Size*2 || strings.ToLower(h) != h {
		return "", fmt.Errorf("%q is not a digest: want sha256: and 64 lower-case hex digits", s)
	}
	if _, err := hex.DecodeString(h); err != nil {
		return "", fmt.Errorf("%q is not a digest: %w", s, err)
	}
	return Digest(s), nil
}

// Hex returns the digits without the algorithm, safe as a file name for a
// digest that ParseDigest accepted.
func (d Digest) Hex() string { return strings.TrimPrefix(string(d), digestPrefix) }

// Short returns the first 12 hex digits, for tables and names.
func (d Digest) Short() string {
	h := d.Hex()
	return h[:min(12, len(h))]
}
