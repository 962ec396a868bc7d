package main

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/advisory"
	"github.com/kilnproject/kiln/internal/server"
)

// openDatabase is an empty database, whose events go to a list.
func openDatabase(t *testing.T) (*database, *[]kiln.Event) {
	t.Helper()
	dir := t.TempDir()
	db, err := advisory.Open(dir, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	var events []kiln.Event
	return &database{db: db, dir: dir, record: func(_ context.Context, e kiln.Event) error { events = append(events, e); return nil }}, &events
}

// osvZip has one record.
func osvZip(t *testing.T, ecosystem, id string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	w, err := z.CreateHeader(&zip.FileHeader{Name: id + ".json", Method: zip.Deflate, Modified: time.Now().Add(-100 * time.Hour)})
	if err == nil {
		_, err = w.Write([]byte(`{"id":"` + id + `","modified":"2026-01-02T00:00:00Z","affected":[{"package":{"ecosystem":"` + ecosystem + `","name":"x"},"ranges":[{"type":"SEMVER","events":[{"introduced":"0"}]}]}]}`))
	}
	if err = errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func quietly(kiln.Progress) {}

func wantFiles(t *testing.T, d *database, want int) {
	t.Helper()
	left, err := os.ReadDir(d.dir)
	if err != nil || len(left) != want {
		t.Errorf("%d files are in the folder, want %d: %v, %v", len(left), want, left, err)
	}
}

func TestImportsAreWholeOrNothing(t *testing.T) {
	d, events := openDatabase(t)
	good := osvZip(t, "Go", "GO-1")
	known, err := d.Import(t.Context(), "ada", server.DatabaseImport{Ecosystem: "Go"}, bytes.NewReader(good), quietly)
	if err != nil || known.Digest == "" || len(known.Ecosystems) != 1 || known.Ecosystems[0].From != "file" {
		t.Fatalf("%+v, %v", known, err)
	}
	if age := time.Since(known.Dated); age < 99*time.Hour {
		t.Errorf("a file of 100 hours ago makes a database that is %s old", age)
	}
	if e := (*events)[0]; len(*events) != 1 || e.Kind != "database.imported" || e.Actor != "ada" || e.Data["digest"] != string(known.Digest) || !strings.Contains(e.Message, "nobody signed") {
		t.Errorf("told %+v", *events)
	}
	wantFiles(t, d, 2)
	for name, c := range map[string]struct {
		request server.DatabaseImport
		file    []byte
		code    kiln.Code
	}{
		"another ecosystem":   {server.DatabaseImport{Ecosystem: "npm"}, good, kiln.CodeInvalid},
		"no ecosystem of OSV": {server.DatabaseImport{Ecosystem: "Nix"}, good, kiln.CodeInvalid},
		"no zip":              {server.DatabaseImport{Ecosystem: "Go"}, []byte("no zip"), kiln.CodeInvalid},
		"no key":              {server.DatabaseImport{Key: "no key"}, good, kiln.CodeInvalid},
		"no bundle":           {server.DatabaseImport{Key: publicPEM(t, newKey(t))}, good, kiln.CodeInvalid},
	} {
		_, err := d.Import(t.Context(), "ada", c.request, bytes.NewReader(c.file), quietly)
		if k := (*kiln.Error)(nil); !errors.As(err, &k) || k.Code != c.code || k.Hint == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := d.Import(t.Context(), "ada", server.DatabaseImport{Ecosystem: "Go"}, iotest.TimeoutReader(iotest.OneByteReader(bytes.NewReader(good))), quietly); !errors.Is(err, kiln.ErrInvalid) {
		t.Errorf("a file that breaks off: %v", err)
	}
	if after := d.Status(); after.Digest != known.Digest || len(*events) != 1 {
		t.Errorf("what was refused changed the database, or was told: %+v", *events)
	}
	wantFiles(t, d, 2)

	d.changing.Lock()
	defer d.changing.Unlock()
	if _, err := d.Import(t.Context(), "ada", server.DatabaseImport{Ecosystem: "Go"}, bytes.NewReader(good), quietly); !errors.Is(err, kiln.ErrConflict) {
		t.Errorf("two imports at once: %v", err)
	}
}

// TestAnUpdateThatFails is remembered until one works.
func TestAnUpdateThatFails(t *testing.T) {
	d, events := openDatabase(t)
	if _, err := d.Update(t.Context(), "ada", server.DatabaseUpdate{}, quietly); !errors.Is(err, kiln.ErrInvalid) {
		t.Errorf("an update of nothing: %v", err)
	}
	there := false
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if !there {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		_, _ = w.Write(osvZip(t, "npm", "N-1"))
	}))
	defer s.Close()
	request := server.DatabaseUpdate{Ecosystems: []string{"npm"}, Server: s.URL + "/"}
	if _, err := d.Update(t.Context(), "ada", request, quietly); err == nil {
		t.Error("an update by a server that fails worked")
	}
	if now := d.Status(); !strings.Contains(now.Failed, "502") || now.FailedAt.IsZero() {
		t.Errorf("what is remembered: %+v", now)
	}
	there = true
	now, err := d.Update(t.Context(), "ada", request, quietly)
	if err != nil || now.Failed != "" || len(now.Ecosystems) != 1 || now.Ecosystems[0].From != s.URL+"/npm/all.zip" {
		t.Errorf("%+v, %v", now, err)
	}
	var kinds []string
	for _, e := range *events {
		kinds = append(kinds, e.Kind)
	}
	if !slices.Equal(kinds, []string{"database.update_failed", "database.updated"}) {
		t.Errorf("told %v", kinds)
	}
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func publicPEM(t *testing.T, key *ecdsa.PrivateKey) string {
	t.Helper()
	b, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: b}))
}

// TestBundlesGoFromMachineToMachine makes one of files and imports it, with keys
// as openssl writes them.
func TestBundlesGoFromMachineToMachine(t *testing.T) {
	dir, key := t.TempDir(), newKey(t)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	sec1, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	source := filepath.Join(dir, "all.zip")
	keys := map[string][]byte{
		"pkcs8": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}),
		"sec1":  append(pem.EncodeToMemory(&pem.Block{Type: "EC PARAMETERS", Bytes: []byte{1}}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1})...),
	}
	if err := os.WriteFile(source, osvZip(t, "Go", "GO-1"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, text := range keys {
		file, bundle := filepath.Join(dir, name), filepath.Join(dir, name+".bundle")
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		made, err := bundleAs(t.Context(), []string{"bundle", "--key", file, "--", bundle, "Go=" + source})
		if err != nil || !slices.Equal(made.Ecosystems, []string{"Go"}) || time.Since(made.Dated) < 99*time.Hour {
			t.Fatalf("%s: %+v, %v", name, made, err)
		}
		content, err := os.ReadFile(bundle)
		if err != nil {
			t.Fatal(err)
		}
		d, _ := openDatabase(t)
		if _, err := d.Import(t.Context(), "ada", server.DatabaseImport{Key: publicPEM(t, newKey(t))}, bytes.NewReader(content), quietly); !errors.Is(err, &kiln.Error{Code: kiln.CodeRefused}) {
			t.Errorf("%s: by another's key: %v", name, err)
		}
		if known, err := d.Import(t.Context(), "ada", server.DatabaseImport{Key: publicPEM(t, key)}, bytes.NewReader(content), quietly); err != nil || known.Ecosystems[0].From != "bundle" || !known.Dated.Equal(made.Dated) {
			t.Errorf("%s: %+v, %v", name, known, err)
		}
	}
	for name, args := range map[string][]string{
		"no such file":  {"bundle", "--key", filepath.Join(dir, "sec1"), "--", filepath.Join(dir, "b"), "Go=" + filepath.Join(dir, "none")},
		"no ecosystem":  {"bundle", "--key", filepath.Join(dir, "sec1"), "--", filepath.Join(dir, "b"), "Nix=" + source},
		"no key":        {"bundle", "--key", source, "--", filepath.Join(dir, "b"), "Go=" + source},
		"other command": {"other", "--", filepath.Join(dir, "b"), "Go=" + source},
	} {
		if _, err := bundleAs(t.Context(), args); err == nil {
			t.Errorf("%s: a bundle was made", name)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 5 {
		t.Errorf("left: %v", left)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}
