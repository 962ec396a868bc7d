package local

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
)

func fileRoute(host, cert, key string) kiln.PublicRoute {
	return kiln.PublicRoute{
		Environment: "test", Protocol: kiln.ProtocolHTTP,
		Route: kiln.Route{Name: "web", Host: host, TLS: kiln.TLS{Mode: "files", Cert: cert, Key: key}},
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestCertificatesAreReadAgainWhenTheyChange(t *testing.T) {
	cert, key := WritePair(t, t.TempDir())
	var log bytes.Buffer
	c := certificates{log: slog.New(slog.NewTextHandler(&log, nil))}
	routes := []kiln.PublicRoute{fileRoute("Web.Test.", cert, key), {Route: kiln.Route{Host: "plain.test"}}}
	want := kiln.Certificate{Chain: read(t, cert), Key: read(t, key)}
	if got := c.of(routes); len(got) != 1 || got["web.test"] != want {
		t.Fatalf("%v", got)
	}
	if c.changed() {
		t.Error("nothing changed")
	}
	WritePair(t, filepath.Dir(cert))
	if !c.changed() {
		t.Error("a renewed certificate was not noticed")
	}
	second := kiln.Certificate{Chain: read(t, cert), Key: read(t, key)}
	if got := c.of(routes)["web.test"]; got != second || got == want {
		t.Error("a renewed certificate was not read")
	}
	if err := os.WriteFile(key, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if got := c.of(routes)["web.test"]; got != second {
			t.Error("a broken file took the certificate away")
		}
	}
	if s := log.String(); strings.Count(s, "\n") != 1 || !strings.Contains(s, "route=web") || strings.Contains(s, "secret") {
		t.Errorf("the log says %s", s)
	}
	if err := errors.Join(os.Remove(cert), os.Remove(key)); err != nil {
		t.Fatal(err)
	}
	if got := c.of(routes)["web.test"]; got != second {
		t.Error("a file that is gone took the certificate away")
	}
	if c.of(nil); c.changed() || len(c.known) > 0 {
		t.Error("what no route wants is looked at")
	}
}

func TestACertificateThatCannotBeUsedIsRefused(t *testing.T) {
	cert, key := WritePair(t, t.TempDir())
	_, other := WritePair(t, t.TempDir())
	pipe := filepath.Join(t.TempDir(), "pipe")
	large := filepath.Join(t.TempDir(), "large")
	if err := errors.Join(unix.Mkfifo(pipe, 0o600), os.WriteFile(large, make([]byte, maxCertificate+1), 0o600)); err != nil {
		t.Fatal(err)
	}
	c := certificates{log: slog.New(slog.DiscardHandler)}
	good := []kiln.PublicRoute{fileRoute("web.test", cert, key)}
	if err := c.check(good, nil); err != nil {
		t.Error(err)
	}
	for name, r := range map[string]kiln.PublicRoute{
		"no file": fileRoute("web.test", cert, key+"x"), "another's key": fileRoute("web.test", cert, other),
		"a pipe": fileRoute("web.test", pipe, key), "a folder": fileRoute("web.test", cert, filepath.Dir(key)),
		"too large": fileRoute("web.test", cert, large), "the key for the chain": fileRoute("web.test", key, key),
	} {
		bad := []kiln.PublicRoute{good[0], r}
		err := c.check(bad, good)
		if !errors.Is(err, kiln.ErrInvalid) || !strings.Contains(err.Error(), "route web") {
			t.Errorf("%s: %v", name, err)
		}
		if err := c.check(bad, bad); err != nil {
			t.Errorf("%s stands in the way of other routes: %v", name, err)
		}
	}
}
