package e2e

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/kilnproject/kiln/internal/kilntest"
)

// TestAServiceOnThePublicPort: the default, where services have port 8080 and
// public HTTP is on all addresses of it.
func TestAServiceOnThePublicPort(t *testing.T) {
	r := newRig(t)
	port, err := kilntest.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	r.KillDaemon()
	r.HTTP = fmt.Sprintf("127.0.0.1:%d", port)
	r.StartWith("--http", fmt.Sprintf(":%d", port), "--https", "off")
	definition := strings.Replace(one("v1", 1, ""), "8080", fmt.Sprint(port), 1)
	r.Write("kiln.hcl", strings.Replace(definition, "VERSION =", fmt.Sprintf("PORT = \"%d\", VERSION =", port), 1))
	if got := up(r); got.Release.Number != 1 {
		t.Fatalf("%+v", got)
	}
	if status, _, body := r.Get("web.test", "/"); status != 200 || body != "v1" {
		t.Errorf("GET: %d %q", status, body)
	}
	if _, err := net.Listen("tcp", fmt.Sprintf(":%d", port)); err == nil {
		t.Error("another program could listen there, too")
	}
}
