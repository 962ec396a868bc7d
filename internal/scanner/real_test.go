package scanner_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	bolt "go.etcd.io/bbolt"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/scanner"
)

// imaged writes a layout with an image of Debian 12 that has one package and
// this test as a program.
func imaged(t *testing.T) string {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range []struct{ path, content string }{
		{"etc/os-release", "ID=debian\nVERSION_ID=\"12\"\n"},
		{"etc/debian_version", "12.5\n"},
		{"var/lib/dpkg/status", "Package: libc6\nStatus: install ok installed\nSource: glibc\nArchitecture: amd64\nVersion: 2.36-9\n\n"},
		{"usr/bin/app", read(t, program)},
	} {
		err = errors.Join(err, w.WriteHeader(&tar.Header{Name: f.path, Mode: 0o755, Size: int64(len(f.content)), Typeflag: tar.TypeReg}))
		_, failed := io.WriteString(w, f.content)
		err = errors.Join(err, failed)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	image, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "layout")
	at, err := layout.Write(dir, empty.Index)
	if err == nil {
		err = at.AppendImage(image)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// database writes one as Trivy keeps it in its cache, with a vulnerability of
// that package and one of a module that this test is built from.
func database(t *testing.T, cache string) {
	t.Helper()
	dir := filepath.Join(cache, "db")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	db, err := bolt.Open(filepath.Join(dir, "trivy.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	golang := "go::GitHub Security Advisory Go"
	err = db.Update(func(tx *bolt.Tx) error {
		var all error
		for _, e := range []struct{ path, key, value string }{
			{"debian 12/glibc", "CVE-2099-0001", `{"FixedVersion":"99.1"}`},
			{golang + "/stdlib", "CVE-2099-0002", `{"VulnerableVersions":["<99.0.0"],"PatchedVersions":["99.0.0"]}`},
			{"vulnerability", "CVE-2099-0001", `{"Title":"in the C library","Severity":"HIGH"}`},
			{"vulnerability", "CVE-2099-0002", `{"Title":"in Go","Severity":"CRITICAL"}`},
			{"data-source", "debian 12", `{"ID":"debian","Name":"Debian"}`},
			{"data-source", golang, `{"ID":"ghsa","Name":"GitHub"}`},
		} {
			top, nested, _ := strings.Cut(e.path, "/")
			bucket, err := tx.CreateBucketIfNotExists([]byte(top))
			if err == nil && nested != "" {
				bucket, err = bucket.CreateBucketIfNotExists([]byte(nested))
			}
			if err == nil {
				err = bucket.Put([]byte(e.key), []byte(e.value))
			}
			all = errors.Join(all, err)
		}
		return all
	})
	now := time.Now().UTC()
	about := fmt.Sprintf(`{"Version":2,"NextUpdate":%q,"UpdatedAt":%q,"DownloadedAt":%q}`,
		now.Add(24*time.Hour).Format(time.RFC3339), now.Format(time.RFC3339), now.Format(time.RFC3339))
	if err := errors.Join(err, db.Close(), os.WriteFile(filepath.Join(dir, "metadata.json"), []byte(about), 0o600)); err != nil {
		t.Fatal(err)
	}
}

// TestTheRealTrivy asks Trivy itself, without a database and with one.
func TestTheRealTrivy(t *testing.T) {
	if _, err := exec.LookPath("trivy"); err != nil {
		t.Skip("trivy is not installed")
	}
	s := &scanner.Scanner{Cache: t.TempDir(), Environment: []string{"TRIVY_SKIP_DB_UPDATE=true", "TRIVY_SKIP_VERSION_CHECK=true"}}
	image := scanner.Image{Layout: imaged(t)}
	_, err := s.Scan(t.Context(), "trivy", image)
	var e *kiln.Error
	if !errors.As(err, &e) || e.Code != kiln.CodeFailed || !strings.Contains(strings.Join(e.Evidence, " "), "DB error") {
		t.Errorf("without a database: %v, it said %q", err, e.Evidence)
	}
	database(t, s.Cache)
	found, err := s.Scan(t.Context(), "trivy", image)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range found {
		got = append(got, fmt.Sprintf("%s %s %s %s; %s", f.ID, f.Severity, f.Package, f.Path, f.Change))
		if f.Layer == "" || f.Version == "" || f.PURL == "" {
			t.Errorf("%+v", f)
		}
	}
	slices.Sort(got)
	want := []string{
		"CVE-2099-0001 high libc6 ; upgrade libc6 to 99.1",
		"CVE-2099-0002 critical stdlib /usr/bin/app; upgrade stdlib to 99.0.0",
	}
	if !slices.Equal(got, want) {
		t.Errorf("found:\n%s", strings.Join(got, "\n"))
	}
}
