package gateway

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// directory is an ACME server (RFC 8555) that issues for one name to whoever
// answers its challenge; signatures of requests are not its concern.
type directory struct {
	t              *testing.T
	plain, secure  string // where challenges are asked
	kind           string // of the challenge
	key            *ecdsa.PrivateKey
	root           *x509.Certificate
	server         *httptest.Server
	mu             sync.Mutex
	status, thumb  string
	leaf           []byte
	name           string
	challengeError error
}

const challengeToken = "token-of-the-test-0123456789"

func newDirectory(t *testing.T, kind string) *directory {
	t.Helper()
	d := &directory{t: t, kind: kind, status: "pending"}
	var err error
	if d.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test root"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, d.key.Public(), d.key)
	if err != nil {
		t.Fatal(err)
	}
	if d.root, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	d.server = httptest.NewTLSServer(http.HandlerFunc(d.serve))
	t.Cleanup(d.server.Close)
	return d
}

func (d *directory) serve(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	w.Header().Set("Replay-Nonce", fmt.Sprint(time.Now().UnixNano()))
	base := d.server.URL
	var jws struct{ Protected, Payload string }
	b, _ := io.ReadAll(r.Body)
	_ = json.Unmarshal(b, &jws)
	payload, _ := base64.RawURLEncoding.DecodeString(jws.Payload)
	switch r.URL.Path {
	case "/":
		reply(w, 200, map[string]any{"newNonce": base + "/nonce", "newAccount": base + "/account", "newOrder": base + "/new"})
	case "/nonce":
	case "/account":
		d.account(jws.Protected)
		w.Header().Set("Location", base+"/account/1")
		reply(w, 201, map[string]any{"status": "valid"})
	case "/new":
		var o struct{ Identifiers []struct{ Value string } }
		_ = json.Unmarshal(payload, &o)
		d.name = o.Identifiers[0].Value
		w.Header().Set("Location", base+"/order")
		d.order(w, 201)
	case "/order":
		d.order(w, 200)
	case "/authz":
		reply(w, 200, d.authorization())
	case "/challenge":
		d.check()
		reply(w, 200, d.challenge())
	case "/finalize":
		d.issue(payload)
		d.order(w, 200)
	case "/cert":
		w.Header().Set("Content-Type", "application/pem-certificate-chain")
		_, _ = w.Write(encodePEM("CERTIFICATE", d.leaf))
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// account computes the thumbprint of the account's key (RFC 7638).
func (d *directory) account(protected string) {
	b, _ := base64.RawURLEncoding.DecodeString(protected)
	var h struct {
		JWK struct{ Crv, Kty, X, Y string }
	}
	_ = json.Unmarshal(b, &h)
	sum := sha256.Sum256(fmt.Appendf(nil, `{"crv":%q,"kty":%q,"x":%q,"y":%q}`, h.JWK.Crv, h.JWK.Kty, h.JWK.X, h.JWK.Y))
	d.thumb = base64.RawURLEncoding.EncodeToString(sum[:])
}

func (d *directory) order(w http.ResponseWriter, status int) {
	o := map[string]any{
		"status": d.status, "finalize": d.server.URL + "/finalize", "authorizations": []string{d.server.URL + "/authz"},
		"identifiers": []map[string]string{{"type": "dns", "value": d.name}},
	}
	if d.status == "valid" && d.leaf == nil {
		o["status"] = "ready"
	} else if d.leaf != nil {
		o["certificate"] = d.server.URL + "/cert"
	}
	reply(w, status, o)
}

func (d *directory) authorization() map[string]any {
	return map[string]any{
		"status": d.status, "identifier": map[string]string{"type": "dns", "value": d.name}, "challenges": []any{d.challenge()},
	}
}

func (d *directory) challenge() map[string]any {
	return map[string]any{"type": d.kind, "url": d.server.URL + "/challenge", "token": challengeToken, "status": d.status}
}

// check asks the gateway.
func (d *directory) check() {
	auth := challengeToken + "." + d.thumb
	d.status = "invalid"
	if d.kind == "tls-alpn-01" {
		c, err := tls.Dial("tcp", d.secure, &tls.Config{ServerName: d.name, NextProtos: []string{acmeProtocol}, InsecureSkipVerify: true})
		if err != nil {
			d.challengeError = err
			return
		}
		defer c.Close()
		sum := sha256.Sum256([]byte(auth))
		want, _ := asn1.Marshal(sum[:])
		for _, e := range c.ConnectionState().PeerCertificates[0].Extensions {
			if e.Id.String() == "1.3.6.1.5.5.7.1.31" && string(e.Value) == string(want) {
				d.status = "valid"
			}
		}
		return
	}
	req, _ := http.NewRequest(http.MethodGet, "http://"+d.plain+acmeChallenge+challengeToken, nil)
	req.Host = d.name
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		d.challengeError = err
		return
	}
	defer res.Body.Close()
	if b, _ := io.ReadAll(res.Body); res.StatusCode == 200 && strings.TrimSpace(string(b)) == auth {
		d.status = "valid"
	} else {
		d.challengeError = fmt.Errorf("%s %q, want %q", res.Status, b, auth)
	}
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
}

func (d *directory) issue(payload []byte) {
	var f struct{ CSR string }
	_ = json.Unmarshal(payload, &f)
	der, _ := base64.RawURLEncoding.DecodeString(f.CSR)
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		d.t.Error(err)
		return
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: d.name}, DNSNames: csr.DNSNames,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(12 * time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if d.leaf, err = x509.CreateCertificate(rand.Reader, tmpl, d.root, csr.PublicKey, d.key); err != nil {
		d.t.Error(err)
	}
	d.status = "valid"
}

func TestCertificatesComeByBothChallenges(t *testing.T) {
	for _, kind := range []string{"http-01", "tls-alpn-01"} {
		d := newDirectory(t, kind)
		trusted := x509.NewCertPool()
		trusted.AddCert(d.server.Certificate())
		r, plain, secure := secure(t, func(o *Options) { o.ACME = ACME{Directory: d.server.URL + "/", Roots: trusted} })
		d.plain, d.secure = plain, secure
		r.table.Public[0].Route.Host = "shop.example.com"
		r.table.Public[0].Route.TLS.Mode = "acme"
		r.set()
		roots := x509.NewCertPool()
		roots.AddCert(d.root)
		deadline := time.Now().Add(20 * time.Second)
		for {
			c, err := tls.DialWithDialer(&net.Dialer{Timeout: time.Second}, "tcp", secure, &tls.Config{ServerName: "shop.example.com", RootCAs: roots})
			if err == nil {
				_ = c.Close()
				break
			}
			if time.Now().After(deadline) {
				d.mu.Lock()
				t.Fatalf("%s: no certificate: %v (challenge: %v)", kind, err, d.challengeError)
			}
		}
		_ = r.stop()
	}
}
