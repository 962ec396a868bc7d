package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"github.com/kilnproject/kiln/internal/gateway/zlog"
)

// ACME says where certificates come from (RFC 8555).
type ACME struct {
	Directory string // URL; empty means Let's Encrypt
	Email     string // of the account; may be empty
	// Roots are trusted for the directory; nil means the machine's.
	Roots *x509.CertPool
}

// acme obtains and renews certificates. Its challenges are answered on the
// gateway's own listeners.
type acme struct {
	dir  string
	acme ACME
	log  *zap.Logger

	mu      sync.Mutex
	wanted  acmeWanted
	changed chan struct{}
	current atomic.Pointer[manager]
}

// acmeWanted is what a table needs.
type acmeWanted struct {
	hosts       []string // sorted
	http, https string   // listeners that the challenges come to
}

// manager is certmagic, set up for one pair of listeners.
type manager struct {
	http, https string
	cache       *certmagic.Cache
	config      *certmagic.Config
	issuer      *certmagic.ACMEIssuer
	hosts       []string
}

func newACME(dir string, o ACME, log *slog.Logger) *acme {
	return &acme{dir: dir, acme: o, log: zlog.New(log), changed: make(chan struct{}, 1)}
}

// follow takes what a table needs; run does it.
func (a *acme) follow(hosts []string, http, https string) {
	a.mu.Lock()
	a.wanted = acmeWanted{hosts, http, https}
	a.mu.Unlock()
	select {
	case a.changed <- struct{}{}:
	default:
	}
}

// run manages certificates until ctx ends. Without hosts it holds nothing.
func (a *acme) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			a.end()
			return
		case <-a.changed:
		}
		a.mu.Lock()
		w := a.wanted
		a.mu.Unlock()
		a.manage(ctx, w)
	}
}

func (a *acme) manage(ctx context.Context, w acmeWanted) {
	m := a.current.Load()
	if m != nil && (len(w.hosts) == 0 || m.http != w.http || m.https != w.https) {
		a.end()
		m = nil
	}
	if len(w.hosts) == 0 {
		return
	}
	if m == nil {
		m = a.newManager(w.http, w.https)
		a.current.Store(m)
	}
	var gone []certmagic.SubjectIssuer
	for _, h := range m.hosts {
		if !slices.Contains(w.hosts, h) {
			gone = append(gone, certmagic.SubjectIssuer{Subject: h})
		}
	}
	m.cache.RemoveManaged(gone)
	m.hosts = w.hosts
	if err := m.config.ManageAsync(ctx, w.hosts); err != nil {
		a.log.Error("certificates cannot be managed", zap.Error(err))
	}
}

func (a *acme) newManager(httpAddress, httpsAddress string) *manager {
	m := &manager{http: httpAddress, https: httpsAddress}
	m.cache = certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert: func(certmagic.Certificate) (*certmagic.Config, error) { return m.config, nil },
		Logger:           a.log,
	})
	m.config = certmagic.New(m.cache, certmagic.Config{
		Storage: &certmagic.FileStorage{Path: a.dir},
		Logger:  a.log,
	})
	host, _, err := net.SplitHostPort(httpAddress)
	if err != nil {
		host = ""
	}
	directory := a.acme.Directory
	if directory == "" {
		directory = certmagic.LetsEncryptProductionCA
	}
	m.issuer = certmagic.NewACMEIssuer(m.config, certmagic.ACMEIssuer{
		CA: directory, TestCA: directory, Email: a.acme.Email, Agreed: true, TrustedRoots: a.acme.Roots,
		ListenHost: host, AltHTTPPort: portOf(httpAddress), AltTLSALPNPort: portOf(httpsAddress),
		DisableHTTPChallenge: httpAddress == "", DisableTLSALPNChallenge: httpsAddress == "",
		Logger: a.log,
	})
	m.config.Issuers = []certmagic.Issuer{m.issuer}
	return m
}

func (a *acme) end() {
	if m := a.current.Swap(nil); m != nil {
		m.cache.Stop()
	}
}

// certificate returns what was obtained for a host, or a challenge's answer.
func (a *acme) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	m := a.current.Load()
	if m == nil {
		return nil, errNoChallenge
	}
	return m.config.GetCertificate(hello)
}

// challenged answers an HTTP-01 challenge.
func (a *acme) challenged(w http.ResponseWriter, r *http.Request) bool {
	m := a.current.Load()
	return m != nil && m.issuer.HandleHTTPChallenge(w, r)
}
