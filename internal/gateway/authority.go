package gateway

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/kilnproject/kiln/internal/durable"
)

const (
	rootLife = 10 * 365 * 24 * time.Hour
	leafLife = 30 * 24 * time.Hour
)

// authority issues certificates for names beneath .localhost, which never
// leave the machine. Its root may sign for no other names.
type authority struct {
	dir string

	mu     sync.Mutex
	root   *x509.Certificate
	key    *ecdsa.PrivateKey
	leaves map[string]*tls.Certificate
}

func newAuthority(dir string) *authority {
	return &authority{dir: dir, leaves: map[string]*tls.Certificate{}}
}

// isLocal says whether a name never leaves the machine.
func isLocal(name string) bool { return name == "localhost" || strings.HasSuffix(name, ".localhost") }

// make reads the root, or makes one; root.pem is what a browser may trust.
func (a *authority) make(now time.Time) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ready(now)
}

func (a *authority) ready(now time.Time) error {
	if a.root != nil && now.Before(a.root.NotAfter.Add(-leafLife)) {
		return nil
	}
	if err := a.read(); err == nil && now.Before(a.root.NotAfter.Add(-leafLife)) {
		return nil
	} else if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return a.create(now)
}

func (a *authority) read() error {
	pair, err := tls.LoadX509KeyPair(filepath.Join(a.dir, "root.pem"), filepath.Join(a.dir, "root.key"))
	if err != nil {
		return fmt.Errorf("read the local authority: %w", err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return fmt.Errorf("read the local authority: its key is a %T", pair.PrivateKey)
	}
	a.root, a.key = pair.Leaf, key
	return nil
}

func (a *authority) create(now time.Time) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make the local authority: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return err
	}
	root := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "Kiln local authority"},
		NotBefore:    now.Add(-time.Hour), NotAfter: now.Add(rootLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage:                    x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		PermittedDNSDomainsCritical: true,
		PermittedDNSDomains:         []string{"localhost"},
	}
	der, err := x509.CreateCertificate(rand.Reader, root, root, key.Public(), key)
	if err != nil {
		return fmt.Errorf("make the local authority: %w", err)
	}
	if root, err = x509.ParseCertificate(der); err != nil {
		return fmt.Errorf("make the local authority: %w", err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("make the local authority: %w", err)
	}
	if err := os.MkdirAll(a.dir, 0o700); err != nil {
		return fmt.Errorf("make the local authority: %w", err)
	}
	if err := durable.Write(filepath.Join(a.dir, "root.key"), encodePEM("PRIVATE KEY", secret), 0o600); err != nil {
		return err
	}
	if err := durable.Write(filepath.Join(a.dir, "root.pem"), encodePEM("CERTIFICATE", der), 0o644); err != nil {
		return err
	}
	a.root, a.key = root, key
	clear(a.leaves)
	return nil
}

// leaf returns a certificate for a name, issued when there is none or when
// half of its life is over.
func (a *authority) leaf(name string, now time.Time) (*tls.Certificate, error) {
	if !isLocal(name) {
		return nil, fmt.Errorf("the local authority signs names beneath .localhost only, not %q", name)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.leaves[name]; c != nil && now.Before(c.Leaf.NotAfter.Add(-leafLife/2)) {
		return c, nil
	}
	if err := a.ready(now); err != nil {
		return nil, err
	}
	c, err := a.issue(name, now)
	if err != nil {
		return nil, err
	}
	a.leaves[name] = c
	return c, nil
}

func (a *authority) issue(name string, now time.Time) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("issue a certificate for %s: %w", name, err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name},
		DNSNames:     []string{name},
		NotBefore:    now.Add(-time.Hour), NotAfter: now.Add(leafLife),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.root, key.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("issue a certificate for %s: %w", name, err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("issue a certificate for %s: %w", name, err)
	}
	return &tls.Certificate{Certificate: [][]byte{der, a.root.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make a serial number: %w", err)
	}
	return n, nil
}

func encodePEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
