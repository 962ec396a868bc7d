package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	acmeProtocol  = "acme-tls/1"
	acmeChallenge = "/.well-known/acme-challenge/"
)

// tlsState finds a certificate for each host of the table.
type tlsState struct {
	g         *gateway
	config    *tls.Config
	authority *authority
	acme      *acme
}

func newTLS(g *gateway, o ACME) *tlsState {
	s := &tlsState{
		g:         g,
		authority: newAuthority(filepath.Join(g.dir, "ca")),
		acme:      newACME(filepath.Join(g.dir, "acme"), o, g.slog),
	}
	s.config = &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"h2", "http/1.1", acmeProtocol},
		GetCertificate: s.certificate,
	}
	return s
}

// certificate finds the certificate for a handshake.
func (s *tlsState) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if slices.Equal(hello.SupportedProtos, []string{acmeProtocol}) {
		return s.acme.certificate(hello)
	}
	name := hostKey(hello.ServerName)
	h := s.g.table.Load().hosts[name]
	if h == nil {
		return nil, fmt.Errorf("no route serves the host %q", name)
	}
	switch h.tls.Mode {
	case "files":
		if h.cert == nil {
			return nil, fmt.Errorf("the host %q has no certificate", name)
		}
		return h.cert, nil
	case "local":
		return s.authority.leaf(name, time.Now())
	case "acme":
		return s.acme.certificate(hello)
	}
	return nil, fmt.Errorf("the host %q is not served over TLS", name)
}

// follow has certificates obtained for the hosts of a table.
func (s *tlsState) follow(t *table) {
	var hosts []string
	for name, h := range t.hosts {
		if h.tls.Mode == "acme" {
			hosts = append(hosts, name)
		}
	}
	slices.Sort(hosts)
	s.acme.follow(hosts, first(t.source.HTTP), first(t.source.HTTPS))
	for _, h := range t.hosts {
		if h.tls.Mode != "local" {
			continue
		}
		if err := s.authority.make(time.Now()); err != nil {
			s.g.slog.Error("the local certificate authority cannot be used", "error", err)
		}
		return
	}
}

func first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

// run obtains and renews certificates until ctx ends.
func (s *tlsState) run(ctx context.Context) { s.acme.run(ctx) }

// challenged answers an ACME server that asks over plain HTTP, and says
// whether the request was one.
func (s *tlsState) challenged(c *conn) bool {
	if !strings.HasPrefix(string(c.req.Path), acmeChallenge) || c.req.Length != 0 || string(c.req.Method) != http.MethodGet {
		return false
	}
	w := &responder{c: c, header: http.Header{}}
	if !s.acme.challenged(w, c.request(s.g.hard)) {
		return false
	}
	c.entry.status, c.entry.route = http.StatusOK, "acme"
	return w.end() == nil
}

// portOf is the port of "address:port", or 0.
func portOf(address string) int {
	a, err := net.ResolveTCPAddr("tcp", address)
	if err != nil || address == "" {
		return 0
	}
	return a.Port
}

var errNoChallenge = errors.New("no certificate is being obtained")
