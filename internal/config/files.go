package config

import (
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"golang.org/x/net/http/httpguts"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/hclfile"
)

const maxCertificate = 1 << 20

// Certificate reads a chain and its key in PEM, of which nobody but the owner
// may write either, and nobody but owner and group may read the key.
func Certificate(cert, key string) (tls.Certificate, error) {
	chain, err := readSafe(cert, trusted(), maxCertificate)
	if err != nil {
		return tls.Certificate{}, err
	}
	pair, err := readSafe(key, private(), maxCertificate)
	if err != nil {
		return tls.Certificate{}, err
	}
	out, err := tls.X509KeyPair(chain, pair)
	if err != nil {
		return out, kiln.Errorf(kiln.CodeInvalid, "", "%s and %s are not a certificate and its key: %w", cert, key, err)
	}
	return out, nil
}

// checkFiles looks at the files that the configuration names.
func (r *reader) checkFiles(c Config) {
	if c.API.Cert != "" {
		if _, err := Certificate(c.API.Cert, c.API.Key); err != nil {
			r.file(r.single("api").At("cert"), err)
		}
	}
	r.checkEach("notify", "secret_file", Key)
	r.checkEach("source", "credentials", Secret)
	if d := r.single("debian"); d != nil {
		if _, err := readSafe(c.Debian.Keyring, trusted(), maxCertificate); err != nil {
			r.file(d.At("keyring"), err)
		}
	}
	if r.single("signing") != nil {
		r.checkSigning(c.Signing)
	}
	if c.Traces.HeadersFile != "" {
		if _, err := Headers(c.Traces.HeadersFile); err != nil {
			r.file(r.single("traces").At("headers_file"), err)
		}
	}
}

// checkEach looks at the file that an argument of every block of a type names.
func (r *reader) checkEach(blocks, argument string, read func(path string) ([]byte, error)) {
	for _, b := range r.blocks(blocks) {
		d := r.decoder(b.Body)
		if _, file, ok := d.Text(argument); ok {
			if _, err := read(file); err != nil {
				r.file(d.At(argument), err)
			}
		}
	}
}

// shortestKey is how many bytes a key has at least: fewer could be guessed.
const shortestKey = 16

// Key reads the key that notifications are signed with.
func Key(path string) ([]byte, error) {
	text, err := Secret(path)
	if err != nil {
		return nil, err
	}
	key := bytes.TrimSpace(text)
	if encoded, ok := bytes.CutPrefix(key, []byte("whsec_")); ok {
		if key, err = base64.StdEncoding.DecodeString(string(encoded)); err != nil {
			return nil, kiln.Errorf(kiln.CodeInvalid, "echo whsec_$(head -c 32 /dev/urandom | base64) makes one", "%s is not a key: what follows whsec_ is not base64", path)
		}
	}
	if len(key) < shortestKey {
		return nil, kiln.Errorf(kiln.CodeInvalid, "echo whsec_$(head -c 32 /dev/urandom | base64) makes one", "%s has a key of %d bytes, and needs %d", path, len(key), shortestKey)
	}
	return key, nil
}

// Headers reads headers of requests, one a line.
func Headers(path string) (map[string]string, error) {
	text, err := Secret(path)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for i, line := range strings.Split(string(text), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		if !ok || !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) {
			return nil, kiln.Errorf(kiln.CodeInvalid, "write it like Name: value", "line %d of %s is not a header", i+1, path)
		}
		out[name] = value
	}
	return out, nil
}

// file reports what is wrong with a file, where it is named.
func (r *reader) file(at hcl.Range, err error) {
	hint := ""
	if shown := (*kiln.Error)(nil); errors.As(err, &shown) && shown.Hint != "" {
		hint = " To mend it: " + shown.Hint
	}
	r.report.Error(at, "Unusable file", "%s%s", hclfile.Sentence(err), hint)
}
