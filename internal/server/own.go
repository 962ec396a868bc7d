package server

import (
	"context"
	"crypto/x509"
	"net"
	"net/http"
	"net/url"
	"strconv"
)

// OwnRegistry carries requests for the registry of this control plane to it,
// without a network: the control plane needs neither a token nor its own
// authority to read what was pushed to it.
type OwnRegistry struct {
	remote *Remote
	socket *http.Transport
}

// NewOwnRegistry makes one for the API that a Remote and a socket serve.
func NewOwnRegistry(remote *Remote, socket string) *OwnRegistry {
	return &OwnRegistry{remote, &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}
}

// Carrier is what carries a request; nil for one to another registry.
func (o *OwnRegistry) Carrier(r *http.Request) http.RoundTripper {
	if !o.remote.Named(r.URL) {
		return nil
	}
	return o
}

// RoundTrip implements http.RoundTripper. What is done for a caller of the API,
// the caller must be allowed to do himself.
func (o *OwnRegistry) RoundTrip(r *http.Request) (*http.Response, error) {
	if ActorOf(r.Context()) != "" {
		action := "push"
		if r.Method == http.MethodGet || r.Method == http.MethodHead {
			action = "pull"
		}
		if err := MayUseRegistry(r, action); err != nil {
			return nil, err
		}
	}
	out := r.Clone(r.Context())
	out.URL.Scheme = "http" // within the socket
	out.Header.Del("Authorization")
	return o.socket.RoundTrip(out)
}

// Named says whether a URL leads to this API: it listens on the port, and has a
// certificate for the host. An address of the machine on which it does not
// listen may be another's.
func (r *Remote) Named(u *url.URL) bool {
	host, port := u.Hostname(), u.Port()
	if port == "" {
		port = "443"
	}
	if !r.listensFor(host, port) {
		return false
	}
	certs := r.certs.Load()
	if certs == nil || *certs == nil {
		return false
	}
	pair, err := (*certs).Certificate()
	if err != nil {
		return false
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	return err == nil && leaf.VerifyHostname(host) == nil
}

// listensFor says whether what connects to an address of this machine reaches
// one of the listeners. A name may be any of their addresses, localhost a
// loopback one.
func (r *Remote) listensFor(host, port string) bool {
	wanted := net.ParseIP(host)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.open {
		on, ok := e.Addr().(*net.TCPAddr)
		switch {
		case !ok || strconv.Itoa(on.Port) != port:
		case on.IP.IsUnspecified(),
			host == "localhost" && on.IP.IsLoopback(),
			host != "localhost" && wanted == nil,
			wanted != nil && wanted.Equal(on.IP):
			return true
		}
	}
	return false
}
