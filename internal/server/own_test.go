package server

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/kilnproject/kiln"
)

// TestTheOwnRegistryIsKnownByItsNames: what has the port and a name of the API
// is the API, and another address of the machine may be somebody else.
func TestTheOwnRegistryIsKnownByItsNames(t *testing.T) {
	a := serveRemote(t, nil) // its certificate is for 127.0.0.2, too
	named := func(address string, want bool) {
		t.Helper()
		if got := a.remote.Named(&url.URL{Scheme: "https", Host: address}); got != want {
			t.Errorf("%s, where the API is on %s: %v", address, a.address, got)
		}
	}
	_, port, err := net.SplitHostPort(a.address)
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]bool{
		"127.0.0.1": true, "localhost": true, hostname(): true,
		"127.0.0.2": false, "[::1]": false, "registry.example.com": false,
	} {
		named(host+":"+port, want)
	}
	named("127.0.0.1:1", false)
	named("127.0.0.1", false)

	_, port, err = net.SplitHostPort(a.move(t, "0.0.0.0:0"))
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]bool{"127.0.0.1": true, "127.0.0.2": true, "localhost": true, "127.0.0.9": false} {
		named(host+":"+port, want)
	}
	named(a.address, false)
}

// TestTheOwnRegistryIsAskedForWhoAsks: the control plane itself may, and what it
// does for a caller the caller must be allowed to do.
func TestTheOwnRegistryIsAskedForWhoAsks(t *testing.T) {
	a := serveRemote(t, func(o *Options) { o.Registry = asks })
	own := NewOwnRegistry(a.remote, a.socket)
	t.Cleanup(own.socket.CloseIdleConnections)
	ask := func(method string, who *caller) error {
		ctx := t.Context()
		if who != nil {
			ctx = context.WithValue(ctx, callKey{}, call{caller: *who})
		}
		r, err := http.NewRequestWithContext(ctx, method, "https://"+a.address+"/v2/?do=push", strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer of somebody")
		carrier := own.Carrier(r)
		if carrier == nil {
			t.Fatal("it is another registry")
		}
		response, err := carrier.RoundTrip(r)
		if err != nil {
			return err
		}
		defer func() { _ = response.Body.Close() }()
		if body, err := io.ReadAll(response.Body); err != nil || response.StatusCode != http.StatusOK || strings.Contains(string(body), "token:") {
			t.Errorf("%s: %d %s, %v", method, response.StatusCode, body, err)
		}
		return nil
	}
	for _, c := range []struct {
		method string
		who    *caller
		may    bool
	}{
		{http.MethodGet, nil, true},
		{http.MethodPut, nil, true},
		{http.MethodGet, &caller{actor: "token:eyes", role: kiln.RoleRead}, true},
		{http.MethodHead, &caller{actor: "token:eyes", role: kiln.RoleRead}, true},
		{http.MethodPut, &caller{actor: "token:eyes", role: kiln.RoleRead}, false},
		{http.MethodPost, &caller{actor: "token:ci", role: kiln.RoleDeploy}, true},
		{http.MethodGet, &caller{actor: "token:one", role: kiln.RoleDeploy, reach: kiln.Reach{"preview-*"}}, false},
	} {
		err := ask(c.method, c.who)
		var known *kiln.Error
		if c.may && err != nil || !c.may && (!errors.As(err, &known) || known.Code != kiln.CodeRefused) {
			t.Errorf("%s by %+v: %v", c.method, c.who, err)
		}
	}
	other, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://registry.example.com/v2/", nil)
	if err != nil {
		t.Fatal(err)
	}
	if own.Carrier(other) != nil {
		t.Error("another registry is taken for the own one")
	}
}
