package server

import (
	"crypto/tls"
	"log/slog"
	"os"
	"slices"
	"sync"
	"syscall"
)

// FileCertificate is a certificate from files. It is read again when they have
// changed; while what is there cannot be read, the one before goes on.
type FileCertificate struct {
	paths []string
	load  func() (tls.Certificate, error)
	log   *slog.Logger

	mu   sync.Mutex
	held *tls.Certificate
	seen []stamp
}

// stamp is what tells that a file is another.
type stamp struct {
	inode       uint64
	size        int64
	mtime, ctim syscall.Timespec
}

// NewFileCertificate reads the files once, with load.
func NewFileCertificate(paths []string, load func() (tls.Certificate, error), log *slog.Logger) (*FileCertificate, error) {
	c := &FileCertificate{paths: paths, load: load, log: log, seen: stamps(paths)}
	held, err := load()
	if err != nil {
		return nil, err
	}
	c.held = &held
	return c, nil
}

// Certificate implements Certificates.
func (c *FileCertificate) Certificate() (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := stamps(c.paths)
	if slices.Equal(now, c.seen) {
		return c.held, nil
	}
	c.seen = now
	changed, err := c.load()
	if err != nil {
		c.log.Warn("the API's certificate has changed and cannot be used; the one before goes on", "error", err)
		return c.held, nil
	}
	c.log.Info("the API's certificate has changed")
	c.held = &changed
	return c.held, nil
}

// stamps looks at files; one that is not there has the zero value.
func stamps(paths []string) []stamp {
	out := make([]stamp, len(paths))
	for i, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			continue
		}
		if s, ok := info.Sys().(*syscall.Stat_t); ok {
			out[i] = stamp{inode: s.Ino, size: s.Size, mtime: s.Mtim, ctim: s.Ctim}
		}
	}
	return out
}

// Fingerprint is the SHA-256 of the certificate, which clients may pin until it
// is renewed.
func (c *FileCertificate) Fingerprint() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return FingerprintOf(c.held.Certificate[0])
}
