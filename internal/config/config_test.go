package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnproject/kiln"
)

const whole = `
data = "/srv/kiln"

listen {
  http    = [":80", "[::1]:8080"]
  https   = []
  metrics = ["127.0.0.1:9464"]
}

api {
  listen = ["0.0.0.0:9443"]
  names  = ["Kiln.example.com", "192.0.2.7"]
}

token "ops" {
  role   = "admin"
  sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
}

token "ci" {
  role         = "deploy"
  sha256       = "60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752"
  environments = ["staging", "preview-*"]
  expires      = "2027-01-31T12:00:00Z"
}

storage {
  max         = "40GiB"
  keep_events = 1000000
  logs        = "1GiB"
}

log {
  level = "warn"
}

traces {
  endpoint     = "https://otel.example.com"
  headers_file = "/etc/kiln/otel"
}

notify "chat" {
  url          = "https://hooks.example.com/kiln"
  events       = ["release.*", "instance.died"]
  environments = ["production"]
}
`

func at(t *testing.T, text string) time.Time {
	t.Helper()
	out, err := time.Parse(time.RFC3339, text)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func options(t *testing.T) Options {
	t.Helper()
	return Options{Now: at(t, "2026-06-01T00:00:00Z")}
}

func TestAWholeFile(t *testing.T) {
	got, warnings, err := Parse("kilnd.hcl", []byte(whole), options(t))
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	want := Config{
		Path: "kilnd.hcl", Digest: kiln.DigestOf([]byte(whole)), Data: "/srv/kiln",
		Listen: Listen{HTTP: []string{":80", "[::1]:8080"}, HTTPS: []string{}, Metrics: []string{"127.0.0.1:9464"}},
		API:    API{Listen: []string{"0.0.0.0:9443"}, Names: []string{"kiln.example.com", "192.0.2.7"}},
		Tokens: []kiln.Token{
			{
				Name: "ci", Role: kiln.RoleDeploy, Digest: kiln.DigestOf([]byte("test2")),
				Reach: kiln.Reach{"staging", "preview-*"}, Expires: at(t, "2027-01-31T12:00:00Z"),
			},
			{Name: "ops", Role: kiln.RoleAdmin, Digest: kiln.DigestOf([]byte("test"))},
		},
		Storage:  Storage{Max: 40 << 30, KeepEvents: 1_000_000, Logs: 1 << 30},
		LogLevel: "warn",
		Traces:   Traces{Endpoint: "https://otel.example.com", HeadersFile: "/etc/kiln/otel"},
		Notify: []Notify{{
			Name: "chat", URL: "https://hooks.example.com/kiln", Events: []string{"release.*", "instance.died"}, Environments: kiln.Reach{"production"},
		}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestAnEmptyFileSaysNothing(t *testing.T) {
	got, warnings, err := Parse("kilnd.hcl", []byte("# nothing\n"), options(t))
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	if got.Listen.HTTP != nil || got.Storage != (Storage{}) || got.Tokens != nil {
		t.Errorf("%+v", got)
	}
}

// said returns the diagnostics of a text, each as "line: summary: detail".
func said(t *testing.T, text string, o Options) string {
	t.Helper()
	_, warnings, err := Parse("/etc/kiln/kilnd.hcl", []byte(text), o)
	if err == nil {
		return warnings.Error()
	}
	var shown *kiln.Error
	if !errors.As(err, &shown) || shown.Code != kiln.CodeInvalid || shown.Hint == "" {
		t.Fatalf("%#v", err)
	}
	return kiln.Diagnostics(shown.Diagnostics).Error()
}

func TestWhatIsWrongIsSaid(t *testing.T) {
	hash := strings.Repeat("ab", 32)
	for text, want := range map[string]string{
		"lissten {\n}":                                                         `kilnd.hcl:1: Unsupported block: There is no block "lissten" here. Did you mean "listen"?`,
		"listen {\n  htpp = [\":80\"]\n}":                                      `kilnd.hcl:2: Unsupported argument: There is no argument "htpp" here. Did you mean "http"?`,
		"listen {\n  http = \":80\"\n}":                                        `http must be a list of strings, not string`,
		"listen {\n  http = [\"localhost:80\"]\n}":                             `has "localhost", which is not an address of this machine`,
		"listen {\n  http = [\"80\"]\n}":                                       `is not an address and a port`,
		"listen {\n  http = [\":0\"]\n}":                                       `which is not a port`,
		"listen {\n  http = [\":80\", \":080\"]\n}":                            `is in the list already`,
		"listen {\n  http = [\":80\"]\n  https = [\"127.0.0.1:80\"]\n}":        `kilnd.hcl:3: Address used twice: 127.0.0.1:80 of listen.https and :80 of listen.http`,
		"listen {\n  http = [\":80\"]\n}\napi {\n  listen = [\"[::1]:80\"]\n}": `Address used twice`,
		"listen {}\nlisten {}":                                                 `Duplicate block: There is a listen block at /etc/kiln/kilnd.hcl:1 already`,
		"listen {\n  http = [addr]\n}":                                         `Only values here`,
		"log {\n  level = upper(\"info\")\n}":                                  `Only values here`,
		"log {\n  level = \"inf\"\n}":                                          `Did you mean "info"?`,
		"log {\n  level = \"${1}\"\n}":                                         `Only values here`,
		"data = \"var/lib\"":                                                   `is not an absolute path`,
		"data = \"/a/../b\"":                                                   `is not an absolute path`,
		"storage {\n  max = \"40\"\n}":                                         `is not a size`,
		"storage {\n  max = \"1MiB\"\n}":                                       `max must be from 256MiB to 1024TiB`,
		"storage {\n  keep_events = 10\n}":                                     `keep_events must be a whole number from 1000 to 100000000`,
		"api {\n}":                                                             `The argument "listen" is required here`,
		"api {\n  listen = [\":1\"]\n}":                                        `Nobody may call`,
		"api {\n  listen = [\":1\"]\n  cert = \"/c\"\n}":                       `kilnd.hcl:3: Half a certificate`,
		"api {\n  listen = [\":1\"]\n  key = \"/c\"\n}":                        `kilnd.hcl:3: Half a certificate`,
		"api {\n  listen = [\":1\"]\n  cert = \"/c\"\n  key = \"/k\"\n  names = [\"a\"]\n}":                                                                     `names are for a certificate of the control plane's own`,
		"api {\n  listen = [\":1\"]\n  names = [\"a b\"]\n}":                                                                                                    `is neither a host name nor an IP address`,
		"token \"Ops!\" {\n  role = \"read\"\n  sha256 = \"" + hash + "\"\n}":                                                                                   `"Ops!" is not a name`,
		"token {\n  role = \"read\"\n  sha256 = \"" + hash + "\"\n}":                                                                                            `Wrong labels: It has 0, and is written token "NAME"`,
		"token \"a\" {\n  role = \"reed\"\n  sha256 = \"" + hash + "\"\n}":                                                                                      `"reed" is not possible. Did you mean "read"?`,
		"token \"a\" {\n  role = \"read\"\n}":                                                                                                                   `The argument "sha256" is required here`,
		"token \"a\" {\n  role = \"read\"\n  sha256 = \"" + strings.ToUpper(hash) + "\"\n}":                                                                     `must be 64 lower-case hex digits`,
		"token \"a\" {\n  role = \"read\"\n  sha256 = \"abc\"\n}":                                                                                               `It has 3 characters`,
		"token \"a\" {\n  role = \"admin\"\n  sha256 = \"" + hash + "\"\n  environments = [\"x\"]\n}":                                                           `Not with this role`,
		"token \"a\" {\n  role = \"read\"\n  sha256 = \"" + hash + "\"\n  environments = []\n}":                                                                 `No environment`,
		"token \"a\" {\n  role = \"read\"\n  sha256 = \"" + hash + "\"\n  environments = [\"[\"]\n}":                                                            `Not an environment`,
		"token \"a\" {\n  role = \"read\"\n  sha256 = \"" + hash + "\"\n  expires = \"soon\"\n}":                                                                `is not a time`,
		"token \"a\" {\n  role = \"read\"\n  sha256 = \"" + hash + "\"\n  expires = \"2026-05-31T00:00:00Z\"\n}":                                                `Token has expired`,
		"token \"a\" {\n  role = \"read\"\n  sha256 = \"" + hash + "\"\n}\ntoken \"a\" {\n  role = \"read\"\n  sha256 = \"" + strings.Repeat("c", 64) + "\"\n}": `Duplicate token: token "a" is defined at /etc/kiln/kilnd.hcl:1`,
		"token \"a\" {\n  role = \"read\"\n  sha256 = \"" + hash + "\"\n}\ntoken \"b\" {\n  role = \"read\"\n  sha256 = \"" + hash + "\"\n}":                    `kilnd.hcl:7: Duplicate token: a has the same at /etc/kiln/kilnd.hcl:1`,
		"notify \"a\" {\n  url = \"ftp://x\"\n  events = [\"release.live\"]\n}":                                                                                 `is not a URL`,
		"notify \"a\" {\n  url = \"https://u:p@x/\"\n  events = [\"release.live\"]\n}":                                                                          `A password in the clear`,
		"notify \"a\" {\n  url = \"http://x/\"\n  events = [\"release.live\"]\n}":                                                                               `Notifications in the clear`,
		"notify \"a\" {\n  url = \"https://x/\"\n  events = [\"Release live\"]\n}":                                                                              `is not a kind of event`,
		"notify \"a\" {\n  url = \"https://x/\"\n  events = [\"*\"]\n  secret_file = \"k\"\n}":                                                                  `is not an absolute path`,
		"notify \"a\" {\n  url = \"https://x/\"\n  events = [\"*\"]\n  environments = [\"A b\"]\n}":                                                             `Not an environment`,
		"traces {\n  endpoint = \"collector:4318\"\n}":                                                                                                          `is not a URL`,
		"traces {\n  endpoint = \"http://192.0.2.1:4318\"\n}":                                                                                                   `Traces in the clear`,
		"listen {\n  metrics = [\"0.0.0.0:9464\"]\n}":                                                                                                           `Metrics for anybody: Whoever reaches 0.0.0.0:9464`,
		"track {\n}":     `track`,
		"listen {":       `kilnd.hcl:1`,
		"<<<<<<< HEAD\n": `Unresolved merge conflict`,
	} {
		if got := said(t, text, options(t)); !strings.Contains(got, want) {
			t.Errorf("%s\n got %s\nwant %s", text, got, want)
		}
	}
}

func TestTheDataDirectoryStays(t *testing.T) {
	text := "data = \"/srv/kiln\"\n"
	for data, want := range map[string]string{
		"":             "",
		"/srv/kiln":    "",
		"/etc/kiln":    "This file is the configuration of /etc/kiln",
		"/var/lib/foo": "The data directory cannot change: The control plane is that of /var/lib/foo",
	} {
		o := options(t)
		o.Data = data
		if got := said(t, text, o); want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%q: %s", data, got)
		}
	}
}

func TestATokenInTheFileIsNeverShown(t *testing.T) {
	token := "kiln_" + strings.Repeat("abcdefgh", 7)
	for _, text := range []string{
		"token \"a\" { \n role = \"reed\"  \nsha256 = \"" + token + "\"\n}",
		"token \"a\" {\n  role = \"read\"\n  sha265 = \"" + token + "\"\n}",
		"token \"a\" {\n  role = \"read\" sha256 = \"" + token + "\"\n}",
		"# " + token + "\nlisten { http = [\"" + token + "\"] }",
	} {
		_, _, err := Parse("kilnd.hcl", []byte(text), options(t))
		var shown *kiln.Error
		if !errors.As(err, &shown) || len(shown.Diagnostics) == 0 {
			t.Fatalf("%s: %v", text, err)
		}
		for _, d := range shown.Diagnostics {
			if strings.Contains(d.Snippet, token) {
				t.Errorf("snippet %q", d.Snippet)
			}
		}
	}
	if got := said(t, "token \"a\" {\n  role = \"read\"\n  sha256 = \""+token+"\"\n}", options(t)); !strings.Contains(got, "A token in the clear") || strings.Contains(got, token) {
		t.Error(got)
	}
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func TestOnlyAFileUnderControlIsRead(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, FileName)
	load := func() error { _, _, err := Load(path, options(t)); return err }
	refused := func(want string) {
		t.Helper()
		err := load()
		var shown *kiln.Error
		if !errors.As(err, &shown) || shown.Code != kiln.CodeRefused || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if err := load(); !errors.Is(err, kiln.ErrNotFound) {
		t.Errorf("no file: %v", err)
	}
	write(t, path, "log { level = \"info\" }\n", 0o644)
	if err := load(); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []os.FileMode{0o664, 0o646} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		refused("others than its owner may change it")
	}
	write(t, path, "", 0o644)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	refused("others could put another file in its place")
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(path, 12345, 0); err != nil {
			t.Fatal(err)
		}
		refused("belongs to user 12345")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	refused("not a regular file")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	elsewhere := filepath.Join(t.TempDir(), "real.hcl")
	write(t, elsewhere, "", 0o666)
	if err := os.Symlink(elsewhere, path); err != nil {
		t.Fatal(err)
	}
	refused("others than its owner may change it")
	if err := os.Chmod(elsewhere, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := load(); err != nil {
		t.Errorf("a link to a safe file: %v", err)
	}
}

// certificate writes a certificate and its key.
func certificate(t *testing.T, dir, name string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	sec1, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".key")
	write(t, cert, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), 0o644)
	write(t, key, string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1})), 0o640)
	return cert, key
}

func TestNamedFilesAreLookedAt(t *testing.T) {
	dir := t.TempDir()
	cert, key := certificate(t, dir, "a")
	_, other := certificate(t, dir, "b")
	hook := filepath.Join(dir, "hook.key")
	write(t, hook, "a secret of 24 characters", 0o600)
	path := filepath.Join(dir, FileName)
	load := func(cert, key, hook string) string {
		write(t, path, "api {\n  listen = [\":1\"]\n  cert = \""+cert+"\"\n  key = \""+key+"\"\n}\n"+
			"notify \"n\" {\n  url = \"https://x/\"\n  events = [\"*\"]\n  secret_file = \""+hook+"\"\n}\n", 0o644)
		_, _, err := Load(path, options(t))
		var shown *kiln.Error
		if errors.As(err, &shown) {
			return kiln.Diagnostics(shown.Diagnostics).Error()
		}
		return ""
	}
	if got := load(cert, key, hook); got != "" {
		t.Error(got)
	}
	if got := load(cert, other, hook); !strings.Contains(got, "kilnd.hcl:3: Unusable file") || !strings.Contains(got, "not a certificate and its key") {
		t.Error(got)
	}
	if got := load(cert, key+"x", hook); !strings.Contains(got, "cannot be read") {
		t.Error(got)
	}
	if err := os.Chmod(key, 0o644); err != nil {
		t.Fatal(err)
	}
	if got := load(cert, key, hook); !strings.Contains(got, "has mode 0644: others than its owner may read or change it. To mend it: look at what is in it, then: chmod g-w,o= ") {
		t.Error(got)
	}
	if err := errors.Join(os.Chmod(key, 0o600), os.Chmod(hook, 0o640)); err != nil {
		t.Fatal(err)
	}
	if got := load(cert, key, hook); !strings.Contains(got, "kilnd.hcl:9: Unusable file") || !strings.Contains(got, "chmod go=") {
		t.Error(got)
	}
}

func TestFindPrefersTheDataDirectorysOwn(t *testing.T) {
	dir := t.TempDir()
	if _, err := os.Lstat(SystemFile); err == nil {
		t.Skip("this machine has a configuration")
	}
	if path, err := Find(dir); err != nil || path != "" {
		t.Errorf("%q %v", path, err)
	}
	write(t, filepath.Join(dir, FileName), "", 0o644)
	if path, err := Find(dir); err != nil || path != filepath.Join(dir, FileName) {
		t.Errorf("%q %v", path, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(whole)
	f.Add("token \"a\" { role = \"x\" }")
	f.Add("listen { http = [for a in [1]: a] }")
	f.Fuzz(func(t *testing.T, text string) {
		c, _, err := Parse("kilnd.hcl", []byte(text), options(t))
		if err != nil {
			return
		}
		for _, token := range c.Tokens {
			if _, err := kiln.ParseDigest(string(token.Digest)); err != nil || !token.Role.Includes(kiln.RoleRead) {
				t.Errorf("%+v was taken", token)
			}
		}
		for _, address := range append(append(c.Listen.HTTP, c.Listen.HTTPS...), c.API.Listen...) {
			if _, problem := Address(address); problem != "" {
				t.Errorf("%s %s", address, problem)
			}
		}
	})
}

// TestMetricsAreForThisMachine: where no address is said, nobody else can ask.
func TestMetricsAreForThisMachine(t *testing.T) {
	c, warnings, err := Parse("kilnd.hcl", []byte("listen {\n  metrics = [\":9464\", \"[::1]:9465\"]\n}\n"), options(t))
	if err != nil || len(warnings) > 0 {
		t.Fatal(warnings, err)
	}
	if diff := cmp.Diff([]string{"127.0.0.1:9464", "[::1]:9465"}, c.Listen.Metrics); diff != "" {
		t.Error(diff)
	}
}

func TestKeysAndHeaders(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	key := func(text string) string {
		write(t, path, text, 0o600)
		k, err := Key(path)
		if err != nil {
			return "error: " + err.Error()
		}
		return string(k)
	}
	for text, want := range map[string]string{
		"whsec_MDEyMzQ1Njc4OWFiY2RlZg==\n": "0123456789abcdef",
		" 0123456789abcdef \n":             "0123456789abcdef",
		"0123456789abcde":                  "needs 16",
		"whsec_MDEy":                       "needs 16",
		"whsec_?":                          "not base64",
	} {
		if got := key(text); !strings.Contains(got, want) || strings.HasPrefix(want, "0") && got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
	write(t, path, "# of the collector\nAuthorization: Bearer a:b\n\nx-team:ops\n", 0o600)
	got, err := Headers(path)
	if diff := cmp.Diff(map[string]string{"Authorization": "Bearer a:b", "x-team": "ops"}, got); err != nil || diff != "" {
		t.Error(diff, err)
	}
	for _, bad := range []string{"Authorization\n", "a b: c\n", "a: b\x01\n"} {
		write(t, path, bad, 0o600)
		if _, err := Headers(path); err == nil || !strings.Contains(err.Error(), "line 1 of") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	write(t, path, "a: b\n", 0o644)
	if _, err := Headers(path); err == nil {
		t.Error("headers that others may read were taken")
	}
}
