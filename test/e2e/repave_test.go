package e2e

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/advisory"
	"github.com/kilnproject/kiln/internal/control"
	"github.com/kilnproject/kiln/test/rig"
)

// pushPython makes a tag of a registry name an image with one Python package.
func pushPython(t *testing.T, ref, version string) {
	t.Helper()
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	text := "Metadata-Version: 2.1\nName: kilntest\nVersion: " + version + "\n"
	h := &tar.Header{Name: "usr/lib/python3/dist-packages/kilntest-" + version + ".dist-info/METADATA", Mode: 0o644, Size: int64(len(text))}
	if err := w.WriteHeader(h); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config.OS, config.Architecture = "linux", runtime.GOARCH
	if img, err = mutate.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	write(t, ref, img)
}

func write(t *testing.T, ref string, img v1.Image) {
	t.Helper()
	parsed, err := name.ParseReference(ref)
	if err == nil {
		err = remote.Write(parsed, img, remote.WithContext(t.Context()))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// learn puts advisories into the database of a rig whose control plane is
// away: one about the Python package before a version, one about nothing here.
func learn(t *testing.T, r *rig.Rig, fixed string) {
	t.Helper()
	db, err := advisory.Open(filepath.Join(r.Data, "advisories"), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	record := func(id, ecosystem, name, fixed string) string {
		return fmt.Sprintf(`{"schema_version":"1.6.0","id":%q,"modified":"2026-01-01T00:00:00Z","summary":"a hole",
  "severity":[{"type":"CVSS_V3","score":"CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H"}],
  "affected":[{"package":{"ecosystem":%q,"name":%q},"ranges":[{"type":%q,"events":[{"introduced":"0"},{"fixed":%q}]}]}]}`,
			id, ecosystem, name, map[string]string{"Go": "SEMVER"}[ecosystem]+map[string]string{"PyPI": "ECOSYSTEM"}[ecosystem], fixed)
	}
	err = db.Import(t.Context(), []advisory.Source{
		zipped(t, "PyPI", "PYSEC-2099-7", record("PYSEC-2099-7", "PyPI", "kilntest", fixed)),
		zipped(t, "Go", "GO-2099-0007", record("GO-2099-0007", "Go", "example.com/elsewhere", "1.0.0")),
	})
	if err != nil {
		t.Fatal(err)
	}
}

func zipped(t *testing.T, ecosystem, id, record string) advisory.Source {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	w, err := z.Create(id + ".json")
	if err == nil {
		_, err = io.WriteString(w, record)
	}
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return advisory.Source{Ecosystem: ecosystem, Zip: bytes.NewReader(b.Bytes()), Size: int64(b.Len()), Dated: time.Now()}
}

func TestRepave(t *testing.T) {
	r := newRig(t)
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	ref := strings.TrimPrefix(server.URL, "http://") + "/lib/python:1"
	pushPython(t, ref, "1.0")
	r.Write("app/Dockerfile", "FROM "+ref+"\nCOPY --chmod=755 app /app\nCMD [\"/app\"]\n")
	r.Write("kiln.hcl", one("v1", 2, ""))
	if got := up(r); got.Release.Number != 1 {
		t.Fatalf("first up: %+v", got)
	}
	if said := r.Kiln("repave"); !strings.Contains(said, "nothing to repave") {
		t.Fatalf("a base that did not move: %s", said)
	}

	// The world learns of a hole; what runs is told of, once, and runs on.
	r.StopDaemon()
	learn(t, r, "1.1")
	r.Start()
	r.Eventually(rig.Longest, "the status tells of the finding", func() error {
		if said := r.Kiln("status"); !strings.Contains(said, "PYSEC-2099-7 (critical) is in service web, by kilntest 1.0, fixed in 1.1: kiln repave default") {
			return fmt.Errorf("it says %s", said)
		}
		return nil
	})
	if status, _, body := r.Get("web.test", "/"); status != 200 || body != "v1" {
		t.Fatalf("GET: %d %q", status, body)
	}

	// A base that moved mends it, without the folder.
	pushPython(t, ref, "1.1")
	if said, code := r.Refused("repave", "--plan"); code != 2 {
		t.Fatalf("plan: exit %d, %s", code, said)
	}
	var result control.RepaveResult
	report := underLoad(t, r, 100, func() { r.JSON(&result, "repave", "--finding", "PYSEC-2099-7") })
	if report.Failed > 0 {
		t.Errorf("repave under load: %s", report)
	}
	got := result.Environments[0]
	if got.Outcome != control.RepaveDone || got.Release != 2 || got.Before.Failing != 1 || got.After.Failing != 0 {
		t.Fatalf("repave: %+v", got)
	}
	r.Eventually(rig.Longest, "the problem is gone", func() error {
		if said := r.Kiln("status"); strings.Contains(said, "PYSEC-2099-7") {
			return fmt.Errorf("it says %s", said)
		}
		return nil
	})
	if n := strings.Count(r.Kiln("events", "--last", "1000"), "finding.new"); n != 1 {
		t.Errorf("the finding was told %d times", n)
	}

	// kiln.lock is still the old one: neither plan nor up bring that base back.
	before, err := os.ReadFile(filepath.Join(r.Work, "kiln.lock"))
	if err != nil {
		t.Fatal(err)
	}
	again := up(r)
	if !again.Nothing || again.Release.Number != 2 || len(again.Overlay) != 1 {
		t.Fatalf("up with the old lock: %+v", again)
	}
	after, err := os.ReadFile(filepath.Join(r.Work, "kiln.lock"))
	if err != nil || bytes.Equal(before, after) {
		t.Errorf("kiln.lock was not written with the new pins: %v", err)
	}
	if last := up(r); !last.Nothing || len(last.Overlay) != 0 {
		t.Errorf("up with the new lock: %+v", last)
	}
	var all []kiln.Instance
	r.JSON(&all, "ps")
	if len(all) == 0 {
		t.Error("nothing runs")
	}
}
