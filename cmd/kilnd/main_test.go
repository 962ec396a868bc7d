package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/cli"
	"github.com/kilnproject/kiln/internal/config"
	"github.com/kilnproject/kiln/internal/local"
)

func noEnvironment(string) string { return "" }

func TestFlagsAndTheirDefaults(t *testing.T) {
	g, err := parse(nil, noEnvironment)
	if err != nil {
		t.Fatal(err)
	}
	var s settings
	g.lay(&s)
	want := settings{
		data: cli.DefaultData, listen: local.Listen{HTTP: []string{":8080"}, HTTPS: []string{":8443"}},
		keepEvents: keptEvents, logBytes: local.DefaultLogBytes, level: slog.LevelInfo,
	}
	if diff := cmp.Diff(want, s, cmp.AllowUnexported(settings{})); diff != "" {
		t.Error(diff)
	}
	g, err = parse([]string{"--data", "/srv/kiln/", "--http", "127.0.0.1:80, [::1]:80", "--https=off", "--storage-max", "40GiB", "--log-level", "debug"}, noEnvironment)
	if err != nil {
		t.Fatal(err)
	}
	s = settings{}
	g.lay(&s)
	want = settings{
		data: "/srv/kiln", listen: local.Listen{HTTP: []string{"127.0.0.1:80", "[::1]:80"}, HTTPS: []string{}},
		storageMax: 40 << 30, keepEvents: keptEvents, logBytes: local.DefaultLogBytes, level: slog.LevelDebug,
	}
	if diff := cmp.Diff(want, s, cmp.AllowUnexported(settings{})); diff != "" {
		t.Error(diff)
	}
	env := map[string]string{"KILN_LISTEN_HTTP": "[::1]:9000", "KILN_DATA": "/d"}
	g, err = parse([]string{"--data", "/flag"}, func(name string) string { return env[name] })
	if err != nil || !slices.Equal(g.http, []string{"[::1]:9000"}) || g.data != "/flag" {
		t.Errorf("%+v %v", g, err)
	}
}

// write writes a configuration into a folder and returns its path.
func write(t *testing.T, dir, text string) string {
	t.Helper()
	path := filepath.Join(dir, config.FileName)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFlagsWinOverTheFileAndTheFileOverDefaults(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "listen {\n  http  = [\":80\"]\n  https = [\":443\", \"127.0.0.1:444\"]\n}\nstorage {\n  max = \"1GiB\"\n  keep_events = 2000\n}\nlog {\n  level = \"warn\"\n}\n")
	g, err := parse([]string{"--data", dir, "--http", ":8081", "--storage-max", "0"}, noEnvironment)
	if err != nil {
		t.Fatal(err)
	}
	s, warnings, err := g.settings(nil)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(s.listen.HTTP, []string{":8081"}) || !slices.Equal(s.listen.HTTPS, []string{":443", "127.0.0.1:444"}) ||
		s.storageMax != 0 || s.keepEvents != 2000 || s.level != slog.LevelWarn || s.file.Path != filepath.Join(dir, config.FileName) {
		t.Errorf("%+v", s)
	}
	if text := warnings.Error(); !strings.Contains(text, "listen.http of the file has no effect") || !strings.Contains(text, "storage.max of the file has no effect") {
		t.Error(text)
	}
}

func TestWhichConfigurationIsRead(t *testing.T) {
	dir, elsewhere := t.TempDir(), t.TempDir()
	g := given{data: dir}
	s, _, err := g.settings(nil)
	if err != nil || s.file.Path != "" || !strings.Contains(s.why, dir) {
		t.Fatalf("%+v %v", s, err)
	}
	// One that comes while the control plane runs is found.
	own := write(t, dir, "log {\n  level = \"warn\"\n}\n")
	next, _, err := g.settings(&s)
	if err != nil || next.file.Path != own || next.level != slog.LevelWarn {
		t.Fatalf("%+v %v", next, err)
	}
	// One that was read must stay there.
	if err := os.Remove(own); err != nil {
		t.Fatal(err)
	}
	if _, _, err := g.settings(&next); !errors.Is(err, kiln.ErrNotFound) {
		t.Errorf("%v", err)
	}
	// The file of a data directory is of no other.
	write(t, dir, "data = \"/srv/other\"\n")
	if _, _, err := g.settings(nil); !errors.Is(err, kiln.ErrInvalid) {
		t.Errorf("%v", err)
	}
	// A named one says which data directory, and cannot say another later.
	named := given{config: write(t, elsewhere, "data = \"/srv/one\"\n")}
	s, _, err = named.settings(nil)
	if err != nil || s.data != "/srv/one" {
		t.Fatalf("%+v %v", s, err)
	}
	write(t, elsewhere, "data = \"/srv/two\"\n")
	if _, _, err := named.settings(&s); !errors.Is(err, kiln.ErrInvalid) {
		t.Errorf("%v", err)
	}
	// --data wins over it, with a warning.
	named.data = "/srv/flag"
	s, warnings, err := named.settings(nil)
	if err != nil || s.data != "/srv/flag" || !strings.Contains(warnings.Error(), "data of the file has no effect") {
		t.Errorf("%+v %v %v", s, warnings, err)
	}
}

func TestTheChangesAreSaid(t *testing.T) {
	token := func(name string, role kiln.Role, digest string) kiln.Token {
		return kiln.Token{Name: name, Role: role, Digest: kiln.Digest(digest)}
	}
	before := settings{listen: local.Listen{HTTP: []string{":80"}}, keepEvents: 5}
	before.file.Tokens = []kiln.Token{token("a", kiln.RoleRead, "1"), token("b", kiln.RoleRead, "2"), token("c", kiln.RoleRead, "3"), token("d", kiln.RoleRead, "4")}
	after := settings{listen: local.Listen{HTTP: []string{":81"}}, keepEvents: 5, level: slog.LevelDebug}
	after.file.API.Cert = "/c"
	after.file.Tokens = []kiln.Token{token("a", kiln.RoleRead, "9"), token("b", kiln.RoleDeploy, "2"), token("d", kiln.RoleRead, "4"), token("e", kiln.RoleAdmin, "5")}
	want := []string{
		"listen.http: [:80] -> [:81]", "api.cert: (own authority) -> /c", "log.level: INFO -> DEBUG",
		"token a was exchanged: role read", "token b has other rights: role deploy", "token e is new: role admin", "token c is revoked",
	}
	if diff := cmp.Diff(want, before.changes(after)); diff != "" {
		t.Error(diff)
	}
	if same := before.changes(before); len(same) > 0 {
		t.Error(same)
	}
}

func TestCheckStartsNothing(t *testing.T) {
	dir := t.TempDir()
	data := filepath.Join(dir, "data")
	path := write(t, dir, "listen {\n  htpp = []\n}\n")
	var speech bytes.Buffer
	if code := run([]string{"--check", "--config", path, "--data", data}, &speech); code != cli.ExitInvalid ||
		!strings.Contains(speech.String(), path+":2:3") || !strings.Contains(speech.String(), `Did you mean "http"?`) {
		t.Errorf("exit %d: %s", code, &speech)
	}
	write(t, dir, "")
	speech.Reset()
	if code := run([]string{"--check", "--config", path, "--data", data}, &speech); code != cli.ExitOK {
		t.Errorf("exit %d: %s", code, &speech)
	}
	if _, err := os.Stat(data); !os.IsNotExist(err) {
		t.Error("the data directory was made")
	}
}

func TestADraftIsPrintedAndNothingIsWritten(t *testing.T) {
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "compose.yaml"), []byte("services: { web: { image: 'nginx:1', ports: ['80'] } }"), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, speech strings.Builder
	if code := runDraft([]string{folder}, &out, &speech); code != cli.ExitOK {
		t.Fatalf("exit %d: %s", code, &speech)
	}
	var d cli.Draft
	if err := json.Unmarshal([]byte(out.String()), &d); err != nil || !strings.Contains(string(d.Files["kiln.hcl"]), `service "web"`) {
		t.Errorf("%v: %s", err, &out)
	}
	if entries, err := os.ReadDir(folder); err != nil || len(entries) != 1 {
		t.Errorf("%v %v", entries, err)
	}
	if err := os.WriteFile(filepath.Join(folder, "kiln.hcl"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if code := runDraft([]string{folder}, &out, &speech); code != cli.ExitConflict || !strings.Contains(speech.String(), "there is a definition already") {
		t.Errorf("exit %d: %s", code, &speech)
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
		{"--storage-max", "40"},
		{"--storage-max", "GiB"},
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
	at := func(l local.Listen) func(kiln.Route) string { return publicURL(func() local.Listen { return l }) }
	odd := at(local.Listen{HTTP: []string{"127.0.0.1:8480", ":80"}, HTTPS: []string{":8443"}})
	usual := at(local.Listen{HTTP: []string{":80"}, HTTPS: []string{":443"}})
	none := at(local.Listen{HTTP: []string{":80"}})
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
	err := serve(context.Background(), given{}, settings{data: t.TempDir()}, slog.New(slog.DiscardHandler), new(slog.LevelVar), nil)
	if err == nil || !strings.Contains(err.Error(), "needs root") {
		t.Error(err)
	}
}

func TestAnUnusableDataDirectoryIsExplained(t *testing.T) {
	for cause, want := range map[error]string{
		unix.EROFS: "remount", unix.ENOSPC: "free some space", unix.EACCES: "root", unix.ENOTDIR: "another directory",
	} {
		var e *kiln.Error
		if err := unusable("/d", &os.PathError{Op: "open", Path: "/d/kilnd.lock", Err: cause}); !errors.As(err, &e) ||
			!strings.Contains(e.Hint, want) || !strings.Contains(e.Message, cause.Error()) {
			t.Errorf("%v: %+v", cause, err)
		}
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var e *kiln.Error
	if _, err := lockData(file); !errors.As(err, &e) || e.Hint == "" {
		t.Errorf("a file as the data directory: %v", err)
	}
}
