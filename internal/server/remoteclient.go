package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/kilnproject/kiln"
)

// RemoteOptions say where a control plane is and how it is known.
type RemoteOptions struct {
	URL   string // "https://host:port"
	Token string
	// CA is certificates in PEM that are trusted instead of the machine's.
	CA []byte
	// Fingerprint is "sha256:" and 64 hex digits: of the server's certificate,
	// or of the authority that issued it, which then need not be trusted
	// otherwise.
	Fingerprint string
	Version     string // the caller's own
}

// NewRemoteClient returns a client of an API over TCP; nothing is dialled yet.
func NewRemoteClient(o RemoteOptions) (*Client, error) {
	base, err := url.Parse(o.URL)
	if err != nil || base.Host == "" || base.Hostname() == "" || base.User != nil || strings.Trim(base.Path, "/") != "" || base.RawQuery != "" {
		return nil, kiln.Errorf(kiln.CodeInvalid, "write it like https://kiln.example.com:9443", "%q is not the address of a control plane", o.URL)
	}
	if base.Scheme != "https" {
		return nil, kiln.Errorf(kiln.CodeInvalid, "write it like https://"+base.Host, "%q would send the token in the clear", o.URL)
	}
	if err := CheckToken(o.Token); err != nil {
		return nil, err
	}
	config, err := o.tls(base.Hostname())
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSClientConfig: config, TLSHandshakeTimeout: 10 * time.Second, DisableCompression: true,
		IdleConnTimeout: time.Minute, // shorter than the server's
	}
	return &Client{
		base: url.URL{Scheme: "https", Host: base.Host}, place: "https://" + base.Host, remote: true, token: o.Token, version: o.Version,
		http: &http.Client{
			Transport: transport,
			// A token goes to the server that was named, and nowhere else.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}, nil
}

// tls says which servers are trusted on a host.
func (o RemoteOptions) tls(host string) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if len(o.CA) > 0 {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(o.CA) {
			return nil, kiln.Errorf(kiln.CodeInvalid, "--ca names a file with certificates in PEM", "the authority's file has no certificate")
		}
	}
	if o.Fingerprint == "" {
		return config, nil
	}
	pin, err := parseFingerprint(o.Fingerprint)
	if err != nil {
		return nil, err
	}
	// The pin takes the place of the machine's authorities, not of the check.
	config.InsecureSkipVerify = true
	config.VerifyConnection = func(s tls.ConnectionState) error { return verified(s.PeerCertificates, host, pin) }
	return config, nil
}

// parseFingerprint reads a SHA-256 with or without its prefix and colons, as
// openssl writes it.
func parseFingerprint(text string) (string, error) {
	digits := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(text, "sha256:"), ":", ""))
	if b, err := hex.DecodeString(digits); err != nil || len(b) != 32 {
		return "", kiln.Errorf(kiln.CodeInvalid, "kiln config show on the server prints it", "%q is not a fingerprint: sha256: and 64 hex digits", text)
	}
	return "sha256:" + digits, nil
}

var errPin = errors.New("the server's certificate is not the pinned one, nor issued by it")

// verified says whether a server is the one that was pinned: its certificate
// is, or it was issued, for the name that was dialled, by the authority that
// is.
func verified(chain []*x509.Certificate, host, pin string) error {
	for i, cert := range chain {
		if FingerprintOf(cert.Raw) != pin {
			continue
		}
		if i == 0 {
			return nil // whoever has its key is whom the pin means
		}
		roots, between := x509.NewCertPool(), x509.NewCertPool()
		roots.AddCert(cert)
		for _, other := range chain[1:i] {
			between.AddCert(other)
		}
		_, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, DNSName: host})
		return err
	}
	return errPin
}

// unreachableRemote says why a server at another place did not answer.
func (c *Client) unreachableRemote(err error) error {
	var authority x509.UnknownAuthorityError
	var name x509.HostnameError
	var deadline interface{ Timeout() bool }
	switch {
	case errors.Is(err, errPin):
		return kiln.Errorf(kiln.CodeRefused, "kiln config show on the server prints its fingerprint; if it is another than yours, somebody may be in between",
			"%s is not the server that --fingerprint names: %w", c.place, err)
	case errors.As(err, &authority):
		return kiln.Errorf(kiln.CodeRefused, "name the authority with --ca, or pin it with --fingerprint: kiln config show on the server prints it",
			"%s has a certificate of an unknown authority: %w", c.place, err)
	case errors.As(err, &name):
		return kiln.Errorf(kiln.CodeRefused, "connect by one of these names, or add the name to api.names in the server's kilnd.hcl",
			"the certificate of %s is for other names: %w", c.place, err)
	case errors.As(err, &deadline) && deadline.Timeout(), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return kiln.Errorf(kiln.CodeUnavailable, "look at the network, and at api.listen in the server's kilnd.hcl",
			"%s does not answer in time: %w", c.place, err)
	default:
		return kiln.Errorf(kiln.CodeUnavailable, "look whether kilnd runs there, and at api.listen in its kilnd.hcl",
			"no control plane answers at %s: %w", c.place, err)
	}
}
