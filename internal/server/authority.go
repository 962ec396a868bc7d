package server

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/durable"
)

const (
	leafLife  = 7 * 24 * time.Hour
	leafFresh = 24 * time.Hour // how long one is used before another is issued
	// maxNames bounds a certificate: a machine may have hundreds of addresses.
	maxNames = 64
	// clockSlack is how far a client's clock may be behind.
	clockSlack = 24 * time.Hour
)

// Authority is a certificate authority of one control plane, for its API
// alone. Its key stays in the data directory; the key of the certificates that
// it issues is in memory only.
type Authority struct {
	cert  *x509.Certificate
	key   crypto.Signer
	names []string

	mu     sync.Mutex
	leaf   *tls.Certificate
	issued time.Time
}

// The authority's files in its folder.
const (
	authorityCert = "authority.pem" // may be given to clients
	authorityKey  = "authority.key"
)

// OpenAuthority reads the authority in a folder, or makes it. Names are those
// that clients connect by, besides the machine's own.
func OpenAuthority(dir string, names []string) (*Authority, error) {
	cert := filepath.Join(dir, authorityCert)
	if _, err := os.Lstat(cert); errors.Is(err, fs.ErrNotExist) {
		if err := makeAuthority(dir); err != nil {
			return nil, fmt.Errorf("make the API's authority: %w", err)
		}
	}
	a := &Authority{names: names}
	if err := a.read(cert, filepath.Join(dir, authorityKey)); err != nil {
		return nil, kiln.Errorf(kiln.CodeFailed, "restore it from a backup, or remove both files: then another is made, and clients must pin that one",
			"the API's authority %s cannot be read: %w", cert, err)
	}
	return a, nil
}

// read reads the authority's certificate and key in PEM.
func (a *Authority) read(cert, private string) error {
	pair, err := tls.LoadX509KeyPair(cert, private)
	if err != nil {
		return err
	}
	if a.cert, err = x509.ParseCertificate(pair.Certificate[0]); err != nil {
		return err
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok || !a.cert.IsCA {
		return errors.New("it is not an authority")
	}
	a.key = key
	return nil
}

// never is the end of what does not end (RFC 5280, 4.1.2.5).
func never() time.Time { return time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC) }

// makeAuthority writes a new authority, its key first: it is there once its
// certificate is.
func makeAuthority(dir string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "Kiln API authority " + hostname()},
		NotBefore: time.Now().Add(-clockSlack), NotAfter: never(), IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := durable.Write(filepath.Join(dir, authorityKey), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600); err != nil {
		return err
	}
	return durable.Write(filepath.Join(dir, authorityCert), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600)
}

func serial() *big.Int {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		panic(err) // crypto/rand never fails
	}
	return n.Add(n, big.NewInt(1))
}

func hostname() string {
	name, err := os.Hostname()
	if err != nil || name == "" {
		return "localhost"
	}
	return name
}

// Certificate implements Certificates. It issues another one each day, for the
// names and addresses that the machine has then.
func (a *Authority) Certificate() (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if now := time.Now(); a.leaf != nil && now.Before(a.issued.Add(leafFresh)) && !now.Before(a.issued) {
		return a.leaf, nil
	}
	leaf, err := a.issue()
	if err != nil {
		return nil, fmt.Errorf("issue the API's certificate: %w", err)
	}
	a.leaf, a.issued = leaf, time.Now()
	return leaf, nil
}

func (a *Authority) issue() (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "Kiln API " + hostname()},
		NotBefore: time.Now().Add(-clockSlack), NotAfter: time.Now().Add(leafLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	names := append(slices.Clone(a.names), ownNames()...)
	for _, name := range names[:min(len(names), maxNames)] {
		ip := net.ParseIP(name)
		switch {
		case ip == nil && !slices.Contains(template.DNSNames, name):
			template.DNSNames = append(template.DNSNames, name)
		case ip != nil && !slices.ContainsFunc(template.IPAddresses, ip.Equal):
			template.IPAddresses = append(template.IPAddresses, ip)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der, a.cert.Raw}, PrivateKey: key}, nil
}

// ownNames are the names and addresses of this machine.
func ownNames() []string {
	out := []string{"localhost", hostname()}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return out
	}
	for _, a := range addresses {
		if n, ok := a.(*net.IPNet); ok && !n.IP.IsLinkLocalUnicast() {
			out = append(out, n.IP.String())
		}
	}
	return out
}

// Fingerprint is what clients pin: the SHA-256 of the authority's certificate.
func (a *Authority) Fingerprint() string { return FingerprintOf(a.cert.Raw) }

// FingerprintOf names a certificate, in DER, by its SHA-256.
func FingerprintOf(der []byte) string {
	sum := sha256.Sum256(der)
	return "sha256:" + hex.EncodeToString(sum[:])
}
