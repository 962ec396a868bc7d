package main

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/cli"
)

func noEnvironment(string) string { return "" }

func TestFlagsAndTheirDefaults(t *testing.T) {
	c, err := parse(nil, noEnvironment)
	if err != nil {
		t.Fatal(err)
	}
	if want := (config{data: cli.DefaultData, http: ":8080", https: ":8443", level: slog.LevelInfo}); c != want {
		t.Errorf("%+v", c)
	}
	c, err = parse([]string{"--data", "/srv/kiln/", "--http", "127.0.0.1:80", "--https=off", "--storage-max", "40GiB", "--log-level", "debug"}, noEnvironment)
	if err != nil {
		t.Fatal(err)
	}
	if want := (config{data: "/srv/kiln", http: "127.0.0.1:80", storageMax: 40 << 30, level: slog.LevelDebug}); c != want {
		t.Errorf("%+v", c)
	}
	env := map[string]string{"KILN_LISTEN_HTTP": "[::1]:9000", "KILN_DATA": "/d"}
	c, err = parse([]string{"--data", "/flag"}, func(name string) string { return env[name] })
	if err != nil || c.http != "[::1]:9000" || c.data != "/flag" {
		t.Errorf("%+v %v", c, err)
	}
}

func TestWrongFlagsAreInvalid(t *testing.T) {
	for _, args := range [][]string{
		{"--http", "8080"},
		{"--http", "localhost:80"},
		{"--http", ":0"},
		{"--http", ":70000"},
		{"--https", "1.2.3.4"},
		{"--storage-max", "forty"},
		{"--storage-max", "-1"},
		{"--storage-max", "9999999TiB"},
		{"--log-level", "loud"},
		{"--data", "/" + strings.Repeat("x", 100)},
		{"run"},
		{"--nope"},
	} {
		var speech bytes.Buffer
		if code := run(args, &speech); code != cli.ExitInvalid || !strings.HasPrefix(speech.String(), "error: ") || !strings.Contains(speech.String(), "hint: ") {
			t.Errorf("%v: exit %d: %s", args, code, &speech)
		}
	}
}

func TestPublicURLs(t *testing.T) {
	odd := publicURL(config{http: "127.0.0.1:8480", https: ":8443"})
	usual := publicURL(config{http: ":80", https: ":443"})
	none := publicURL(config{http: ":80"})
	plain := kiln.Route{Host: "shop.localhost"}
	secure := kiln.Route{Host: "shop.localhost", Path: "/api", TLS: kiln.TLS{Mode: "local"}}
	for _, c := range []struct {
		url  func(kiln.Route) string
		r    kiln.Route
		want string
	}{
		{odd, plain, "http://shop.localhost:8480/"},
		{odd, secure, "https://shop.localhost:8443/api"},
		{usual, plain, "http://shop.localhost/"},
		{usual, secure, "https://shop.localhost/api"},
		{usual, kiln.Route{Listen: "127.0.0.1:6379"}, "tcp://127.0.0.1:6379"},
		{none, secure, ""},
	} {
		if got := c.url(c.r); got != c.want {
			t.Errorf("%+v: %q, want %q", c.r, got, c.want)
		}
	}
}

func TestOneControlPlanePerDataDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	first, err := lockData(dir)
	if err != nil {
		t.Fatal(err)
	}
	_, err = lockData(dir)
	if err == nil || !strings.Contains(err.Error(), "process "+strconv.Itoa(os.Getpid())) {
		t.Errorf("a second one: %v", err)
	}
	var speech bytes.Buffer
	if code := cli.Explain(&speech, err); code != cli.ExitConflict {
		t.Errorf("exit %d: %s", code, &speech)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := lockData(dir)
	if err != nil {
		t.Fatalf("after the first has ended: %v", err)
	}
	_ = again.Close()
}

// TestANarrowUmaskDoesNotCloseTheDataDirectory: the gateway passes through it.
func TestANarrowUmaskDoesNotCloseTheDataDirectory(t *testing.T) {
	defer unix.Umask(unix.Umask(0o077))
	dir := filepath.Join(t.TempDir(), "data")
	lock, err := lockData(dir)
	if err != nil {
		t.Fatal(err)
	}
	_ = lock.Close()
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o711 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

func TestNotRootIsTold(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("runs as root")
	}
	err := serve(context.Background(), config{data: t.TempDir()}, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "needs root") {
		t.Error(err)
	}
}
