package local

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
)

const (
	// certificateLook is the time between looks whether certificate files have
	// changed.
	certificateLook = 10 * time.Second
	// maxCertificate bounds one file, in bytes.
	maxCertificate = 1 << 20
)

// certificates reads the files of routes with TLS from files, for the gateway:
// a private key is root's to read, and the gateway is not root.
type certificates struct {
	log *slog.Logger

	mu    sync.Mutex // held while files are read: whoever else comes wants the same
	known map[certificatePaths]*certificate
}

type certificatePaths struct{ cert, key string }

// certificate is what was read last. The pair stays when a later one cannot be
// used.
type certificate struct {
	pair  kiln.Certificate
	found bool // there is a pair
	seen  [2]stamp
	err   error // of the last look
}

// stamp tells one state of a file from another; zero for none.
type stamp struct {
	inode    uint64
	size     int64
	modified time.Time
}

func stampOf(path string) stamp {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return stamp{}
	}
	return stamp{st.Ino, st.Size, time.Unix(st.Mtim.Unix())}
}

func (p certificatePaths) stamps() [2]stamp { return [2]stamp{stampOf(p.cert), stampOf(p.key)} }

// fromFiles says which files a route's certificate is in.
func fromFiles(r kiln.PublicRoute) (certificatePaths, bool) {
	return certificatePaths{r.Route.TLS.Cert, r.Route.TLS.Key}, r.Protocol != kiln.ProtocolTCP && r.Route.TLS.Mode == "files"
}

// of returns what the hosts of the routes show. What cannot be used is left
// out and logged, once for each state of its files.
func (c *certificates) of(routes []kiln.PublicRoute) map[string]kiln.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out map[string]kiln.Certificate
	used := map[certificatePaths]*certificate{}
	for _, r := range routes {
		p, ok := fromFiles(r)
		if !ok {
			continue
		}
		one, fresh := c.look(p)
		used[p] = one
		if fresh && one.err != nil {
			c.log.Error("a certificate is not used", "route", r.Route.Name, "environment", r.Environment, "error", one.err)
		}
		if one.found {
			if out == nil {
				out = map[string]kiln.Certificate{}
			}
			out[hostKey(r.Route.Host)] = one.pair
		}
	}
	c.known = used
	return out
}

// look reads the files when they have changed, and says whether it did.
func (c *certificates) look(p certificatePaths) (one *certificate, fresh bool) {
	one, now := c.known[p], p.stamps()
	if one != nil && one.seen == now {
		return one, false
	}
	if one == nil {
		one = &certificate{}
		if c.known == nil {
			c.known = map[certificatePaths]*certificate{}
		}
		c.known[p] = one
	}
	pair, err := p.read()
	if one.seen, one.err = now, err; err == nil {
		one.pair, one.found = pair, true
	}
	return one, true
}

// check says what is wrong with the certificates of routes that the table
// before did not have.
func (c *certificates) check(routes, before []kiln.PublicRoute) error {
	type claim struct {
		environment, host string
		certificatePaths
	}
	known := map[claim]bool{}
	for _, r := range before {
		if p, ok := fromFiles(r); ok {
			known[claim{r.Environment, hostKey(r.Route.Host), p}] = true
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range routes {
		p, ok := fromFiles(r)
		if !ok || known[claim{r.Environment, hostKey(r.Route.Host), p}] {
			continue
		}
		if one, _ := c.look(p); one.err != nil {
			return kiln.Errorf(kiln.CodeInvalid, "cert is a chain and key its private key, both in PEM, in files that the control plane may read",
				"route %s: the certificate of %s cannot be used: %w", r.Route.Name, r.Route.Host, one.err)
		}
	}
	return nil
}

// changed says whether a file is not what it was when it was read.
func (c *certificates) changed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for p, one := range c.known {
		if one.seen != p.stamps() {
			return true
		}
	}
	return false
}

// read reads both files and sees that they belong together.
func (p certificatePaths) read() (kiln.Certificate, error) {
	chain, err := readCertificate(p.cert)
	if err != nil {
		return kiln.Certificate{}, err
	}
	key, err := readCertificate(p.key)
	if err != nil {
		return kiln.Certificate{}, err
	}
	if _, err := tls.X509KeyPair(chain, key); err != nil {
		return kiln.Certificate{}, fmt.Errorf("%s and %s: %w", p.cert, p.key, err)
	}
	return kiln.Certificate{Chain: string(chain), Key: string(key)}, nil
}

// readCertificate reads a file of bounded size; the path may be a pipe or a
// device for all that is known, which would not end.
func readCertificate(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxCertificate {
		return nil, fmt.Errorf("%s is no file of at most %d bytes", path, maxCertificate)
	}
	return io.ReadAll(io.LimitReader(f, maxCertificate))
}

// followCertificates has the gateway told of certificates that were renewed.
func (e *Engine) followCertificates(ctx context.Context) {
	tick := time.NewTicker(certificateLook)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if e.certificates.changed() {
			e.traffic.mark()
		}
	}
}
