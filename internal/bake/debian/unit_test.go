package debian

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/google/go-cmp/cmp"

	"github.com/kilnproject/kiln"
)

func TestMachineSources(t *testing.T) {
	etc := t.TempDir()
	write := func(name, content string) {
		t.Helper()
		p := filepath.Join(etc, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("sources.list", `# comment
deb http://a.example/debian bookworm main contrib # more
deb-src http://a.example/debian bookworm main
deb [arch=amd64 signed-by=/etc/third.gpg] http://third.example bookworm main
deb cdrom:[Debian]/ bookworm main
deb http://flat.example ./
`)
	write("sources.list.d/debian.sources", `Types: deb deb-src
URIs: http://b.example/debian/
Suites: bookworm bookworm-updates
Components: main
Signed-By: /keys/debian-archive-keyring.gpg

Types: deb
URIs: http://off.example
Suites: bookworm
Components: main
Enabled: no

Types: deb
URIs: http://inline.example
Suites: bookworm
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
`)
	got, err := machineSources(etc, "/keys/debian-archive-keyring.gpg")
	if err != nil {
		t.Fatal(err)
	}
	main := []string{"main"}
	want := []source{
		{"http://a.example/debian", "bookworm", []string{"main", "contrib"}, ""},
		{"http://b.example/debian", "bookworm", main, "/keys/debian-archive-keyring.gpg"},
		{"http://b.example/debian", "bookworm-updates", main, "/keys/debian-archive-keyring.gpg"},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(source{})); diff != "" {
		t.Error(diff)
	}
}

func sign(t *testing.T, key *openpgp.Entity, text string) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := clearsign.Encode(&out, key.PrivateKey, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestCheckRelease(t *testing.T) {
	newKey := func() *openpgp.Entity {
		t.Helper()
		k, err := openpgp.NewEntity("archive", "", "a@example.com", nil)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	ours, theirs := newKey(), newKey()
	keys := openpgp.EntityList{ours}
	now := time.Now()
	good := "Origin: Debian\nSuite: stable\nCodename: bookworm\n"
	if name, err := checkRelease(keys, sign(t, ours, good), now); err != nil || name != "bookworm" {
		t.Errorf("got %q, %v", name, err)
	}
	for name, raw := range map[string][]byte{
		"unsigned":     []byte(good),
		"another key":  sign(t, theirs, good),
		"another name": sign(t, ours, "Origin: Docker\nCodename: bookworm\n"),
		"expired":      sign(t, ours, good+"Valid-Until: Mon, 02 Jan 2006 15:04:05 UTC\n"),
		"changed":      bytes.Replace(sign(t, ours, good), []byte("bookworm"), []byte("bullseye"), 1),
		"empty":        nil,
	} {
		if got, err := checkRelease(keys, raw, now); err == nil {
			t.Errorf("%s: taken as %q", name, got)
		}
	}
}

func TestParseURIs(t *testing.T) {
	hex := strings.Repeat("a", 64)
	got, err := parseURIs("noise\n'http://x/pool/b_1.deb' b_1%3a2~rc+b1_amd64.deb 12 SHA256:" + hex + "\n'http://x/a.deb' a_1_all.deb 3 SHA256:" + hex + "\n")
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0].Name != "a" || got[1].Version != "1:2~rc+b1" || got[1].Size != 12 || got[1].Architecture != "amd64" {
		t.Errorf("got %+v", got)
	}
	for _, bad := range []string{"", "'x' a_1_all.deb 3 MD5Sum:00", "'x' a.deb 3 SHA256:" + hex, "'x' a_1_all.deb x SHA256:" + hex} {
		if _, err := parseURIs(bad + "\n"); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestCheckRefuses(t *testing.T) {
	b := New(Options{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	for name, d := range map[string]kiln.Debian{
		"option as suite":   {Suite: "-oDir=/"},
		"path as suite":     {Suite: "../x"},
		"option as package": {Suite: "bookworm", Packages: []string{"-oDpkg::Pre-Invoke=x"}},
		"pattern":           {Suite: "bookworm", Packages: []string{"?all"}},
		"removal":           {Suite: "bookworm", Packages: []string{"libc6/x"}},
	} {
		if _, err := b.check(d, "linux/amd64"); err == nil || !strings.Contains(err.Error(), "is not a Debian") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// pantry is a store in a folder.
type pantry string

func (p pantry) at(d kiln.Digest) string { return filepath.Join(string(p), d.Hex()) }
func (p pantry) Put(_ context.Context, r io.Reader, want kiln.Digest) (kiln.Digest, int64, error) {
	b, err := io.ReadAll(r)
	if err == nil && kiln.DigestOf(b) != want {
		err = kiln.ErrInvalid
	}
	if err != nil {
		return "", 0, err
	}
	return want, int64(len(b)), os.WriteFile(p.at(want), b, 0o600)
}
func (p pantry) Open(d kiln.Digest) (*os.File, error) { return os.Open(p.at(d)) }
func (p pantry) Has(d kiln.Digest) bool               { return p.Verify(context.Background(), d) == nil }

func (p pantry) Verify(_ context.Context, d kiln.Digest) error {
	if b, err := os.ReadFile(p.at(d)); err != nil || kiln.DigestOf(b) != d {
		return kiln.ErrNotFound
	}
	return nil
}

// TestOnlySoundPackagesAreNotDownloaded: a damaged one would fail every build
// of an image from then on.
func TestOnlySoundPackagesAreNotDownloaded(t *testing.T) {
	content := map[string]string{"/kept.deb": "kept", "/damaged.deb": "damaged", "/absent.deb": "absent"}
	var mu sync.Mutex
	var asked []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, r.URL.Path)
		_, _ = io.WriteString(w, content[r.URL.Path])
	}))
	defer server.Close()
	store := pantry(t.TempDir())
	var packages []kiln.LockedPackage
	for path, body := range content {
		d := kiln.DigestOf([]byte(body))
		packages = append(packages, kiln.LockedPackage{Name: path[1:], Digest: d, Size: int64(len(body)), URL: server.URL + path})
		if strings.HasPrefix(path, "/absent") {
			continue
		}
		if err := os.WriteFile(store.at(d), []byte(strings.Replace(body, "damaged", "damagee", 1)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b := New(Options{Dir: t.TempDir(), Store: store, Log: slog.New(slog.DiscardHandler)})
	if err := b.fetch(t.Context(), packages, func(kiln.Progress) {}); err != nil {
		t.Fatal(err)
	}
	slices.Sort(asked)
	if !slices.Equal(asked, []string{"/absent.deb", "/damaged.deb"}) {
		t.Errorf("downloaded %q", asked)
	}
	for _, p := range packages {
		if err := store.Verify(t.Context(), p.Digest); err != nil {
			t.Errorf("%s: %v", p.Name, err)
		}
	}
}

func FuzzSources(f *testing.F) {
	f.Add("deb [a=b signed-by=c] http://x y main\n")
	f.Add("Types: deb\nURIs: x\nSuites: y\n z\n\n")
	f.Fuzz(func(_ *testing.T, text string) {
		parseList(text)
		parseDeb822(text)
	})
}
