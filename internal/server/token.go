package server

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/binary"
	"hash/crc32"
	"strings"

	"github.com/kilnproject/kiln"
)

// TokenPrefix begins every token, so that people and scanners know one.
const TokenPrefix = "kiln_"

// tokenBytes is how much of a token is random.
const tokenBytes = 32

// tokenText writes a token's bytes: letters and digits alone, which are one
// word to a terminal and to a scanner.
func tokenText() *base32.Encoding {
	return base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)
}

// NewToken makes a token: the prefix, 32 random bytes and their checksum. The
// digest is what a control plane knows of it.
func NewToken() (token string, digest kiln.Digest) {
	raw := make([]byte, tokenBytes, tokenBytes+crc32.Size)
	_, _ = rand.Read(raw) // never fails (crypto/rand)
	raw = binary.BigEndian.AppendUint32(raw, crc32.ChecksumIEEE(raw))
	token = TokenPrefix + tokenText().EncodeToString(raw)
	return token, kiln.DigestOf([]byte(token))
}

// CheckToken says whether a text can be a token at all: one that was mistyped
// or cut is told from one that was revoked.
func CheckToken(text string) error {
	rest, ok := strings.CutPrefix(text, TokenPrefix)
	if !ok {
		return kiln.Errorf(kiln.CodeInvalid, "kiln token create makes one", "this is no token of Kiln: it does not begin with %s", TokenPrefix)
	}
	raw, err := tokenText().DecodeString(rest)
	if err != nil || len(raw) != tokenBytes+crc32.Size || crc32.ChecksumIEEE(raw[:tokenBytes]) != binary.BigEndian.Uint32(raw[tokenBytes:]) {
		return kiln.Errorf(kiln.CodeInvalid, "copy it again, whole", "this token was mistyped or cut: its checksum is wrong")
	}
	return nil
}
