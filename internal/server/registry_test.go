package server

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/kilnproject/kiln"
)

// asks is a registry that does what its query says, to those who may.
var asks = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	if err := MayUseRegistry(r, r.URL.Query().Get("do")); err != nil {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	body, _ := io.ReadAll(r.Body)
	_, _ = fmt.Fprintf(w, "%s %s", ActorOf(r.Context()), body)
})

func TestTheRegistryKnowsTokensByPassword(t *testing.T) {
	a := serveRemote(t, func(o *Options) { o.Registry = asks })
	scoped, token := tokenOf("scoped", kiln.RoleDeploy)
	token.Reach = kiln.Reach{"staging"}
	a.options.Access.SetTokens(append(slices.Clone(a.options.Access.tokens), token))
	var events []kiln.Event
	a.options.Access.record = func(e kiln.Event) { events = append(events, e) }
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer client.CloseIdleConnections()
	ask := func(do, user, password string) (int, string, http.Header) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "https://"+a.address+"/v2/?do="+do, strings.NewReader("body"))
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case user == "bearer":
			r.Header.Set("Authorization", "Bearer "+password)
		case password != "":
			r.SetBasicAuth(user, password)
		}
		response, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = response.Body.Close() }()
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return response.StatusCode, string(body), response.Header
	}
	for _, role := range kiln.Roles() {
		for do, need := range map[string]kiln.Role{"pull": kiln.RoleRead, "push": kiln.RoleDeploy, "delete": kiln.RoleAdmin, "other": kiln.RoleAdmin} {
			for _, user := range []string{"", "kiln", "bearer"} {
				want := http.StatusForbidden
				if role.Includes(need) {
					want = http.StatusOK
				}
				status, body, _ := ask(do, user, a.tokens[role])
				if status != want || want == http.StatusOK && body != "token:"+string(role)+" body" {
					t.Errorf("%s as %q with role %s: %d %s", do, user, role, status, body)
				}
			}
		}
	}
	if status, _, _ := ask("pull", "kiln", scoped); status != http.StatusForbidden {
		t.Errorf("a token of some environments: %d", status)
	}
	status, body, header := ask("pull", "", "")
	if status != http.StatusUnauthorized || !strings.Contains(body, `"code":"UNAUTHORIZED"`) || header.Get("WWW-Authenticate") != `Basic realm="kiln"` {
		t.Errorf("without a token: %d %s %v", status, body, header)
	}
	if len(events) != 0 {
		t.Errorf("who has not said who he is made events: %v", events)
	}
	status, body, _ = ask("pull", "kiln", a.tokens[kiln.RoleRead]+"x")
	if status != http.StatusUnauthorized || !strings.Contains(body, `"code":"UNAUTHORIZED"`) || len(events) != 1 {
		t.Errorf("with a wrong token: %d %s, %d events", status, body, len(events))
	}
}

func TestTheRegistryOverTheSocket(t *testing.T) {
	f := serve(t, func(o *Options) { o.Registry = asks })
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://kiln/v2/?do=delete", strings.NewReader("body"))
	if err != nil {
		t.Fatal(err)
	}
	response, err := f.client.http.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	if body, err := io.ReadAll(response.Body); err != nil || response.StatusCode != http.StatusOK || !strings.HasSuffix(string(body), ") body") {
		t.Errorf("%d %s %v", response.StatusCode, body, err)
	}
	if err := MayUseRegistry(r, "pull"); err == nil {
		t.Error("one whom nobody let in may pull")
	}
}
