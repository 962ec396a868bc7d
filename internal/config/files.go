package config

import (
	"crypto/tls"
	"errors"

	"github.com/hashicorp/hcl/v2"

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
	for _, b := range r.blocks("notify") {
		d := r.decoder(b.Body)
		if _, file, ok := d.Text("secret_file"); ok {
			if _, err := Secret(file); err != nil {
				r.file(d.At("secret_file"), err)
			}
		}
	}
}

// file reports what is wrong with a file, where it is named.
func (r *reader) file(at hcl.Range, err error) {
	hint := ""
	if shown := (*kiln.Error)(nil); errors.As(err, &shown) && shown.Hint != "" {
		hint = " To mend it: " + shown.Hint
	}
	r.report.Error(at, "Unusable file", "%s%s", hclfile.Sentence(err), hint)
}
