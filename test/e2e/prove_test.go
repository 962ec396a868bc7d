package e2e

import (
	"archive/zip"
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/control"
	"github.com/kilnproject/kiln/test/rig"
)

// advisoryOf is a record about an npm package that all images here have.
const advisoryOf = `{
  "schema_version": "1.6.0", "id": "KILN-2026-0001", "modified": "2026-01-02T00:00:00Z", "published": "2026-01-01T00:00:00Z",
  "summary": "left-over runs what it is told", "severity": [{"type": "CVSS_V3", "score": "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H"}],
  "affected": [{"package": {"ecosystem": "npm", "name": "left-over"}, "ranges": [{"type": "SEMVER", "events": [{"introduced": "0"}, {"fixed": "1.2.3"}]}]}]
}`

// noneOf is a record about a Go module that no image here has.
const noneOf = `{
  "schema_version": "1.6.0", "id": "GO-2026-0001", "modified": "2026-01-02T00:00:00Z", "published": "2026-01-01T00:00:00Z",
  "affected": [{"package": {"ecosystem": "Go", "name": "example.test/none"}, "ranges": [{"type": "SEMVER", "events": [{"introduced": "0"}]}]}]
}`

// osv writes a zip of one record beside the definition's folder.
func osv(t *testing.T, id, record string) string {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	w, err := z.CreateHeader(&zip.FileHeader{Name: id + ".json", Method: zip.Deflate, Modified: time.Now().Add(-time.Hour)})
	if err == nil {
		_, err = w.Write([]byte(record))
	}
	path := filepath.Join(t.TempDir(), "all.zip")
	if err = errors.Join(err, z.Close(), os.WriteFile(path, b.Bytes(), 0o600)); err != nil {
		t.Fatal(err)
	}
	return path
}

// gated is the definition with a gate in the image.
func gated(gate string) string {
	text := strings.Replace(one("v1", 1, ""), `gate { no_database = "warn" }`, "", 1)
	return strings.Replace(text, `dockerfile { context = "app" }`, "dockerfile { context = \"app\" }\n  gate {\n"+gate+"\n  }", 1)
}

func ignoring(until time.Time) string {
	return `    ignore "KILN-2026-0001" {
      until  = "` + until.UTC().Format(time.DateOnly) + `"
      reason = "nobody tells it anything"
    }`
}

// vulnerable puts a package with a known vulnerability into the image.
func vulnerable(r *rig.Rig) {
	r.Write("app/left-over.json", `{"name": "left-over", "version": "1.0.0"}`)
	r.Write("app/Dockerfile", "FROM scratch\nCOPY --chmod=755 app /app\nCOPY left-over.json /srv/node_modules/left-over/package.json\nCMD [\"/app\"]\n")
}

func wantAll(t *testing.T, what, said string, words ...string) {
	t.Helper()
	for _, word := range words {
		if !strings.Contains(said, word) {
			t.Errorf("%s does not say %q:\n%s", what, word, said)
		}
	}
}

func TestAVulnerabilityStopsAnUp(t *testing.T) {
	r := newRig(t)
	vulnerable(r)
	r.Write("kiln.hcl", gated(""))
	said, code := r.Refused("up")
	if code != 6 {
		t.Errorf("up without a database exits %d", code)
	}
	wantAll(t, "up without a database", said, "there is no database of vulnerabilities", "kiln db import FILE")
	wantAll(t, "status without a database", r.Kiln("status"), "there is no database of vulnerabilities", "kiln db update")
	if _, code := r.Refused("scan", "app"); code != 2 {
		t.Errorf("a scan that cannot tell exits %d, want 2", code)
	}

	importBundle(t, r)
	said, code = r.Refused("up")
	if code != 6 {
		t.Errorf("up with a vulnerability exits %d", code)
	}
	wantAll(t, "up with a vulnerability", said, "KILN-2026-0001", "left-over 1.0.0", "/srv/node_modules/left-over/package.json", "critical!", "1.2.3", "upgrade left-over to 1.2.3")
	if got := instances(r); len(got) > 0 {
		t.Errorf("what does not pass runs: %v", ids(got))
	}
	scans(t, r)

	r.Write("kiln.hcl", gated(ignoring(time.Now().AddDate(0, 0, 7))))
	if got := up(r); got.Release.Number != 1 || got.Verdicts["app"].Outcome != kiln.OutcomePass {
		t.Errorf("up with an ignore: %+v", got.Verdicts)
	}
	if _, _, body := r.Get("web.test", "/"); body != "v1" {
		t.Errorf("GET: %q", body)
	}
	for _, subject := range []string{"default", "default/1", "app"} {
		wantAll(t, "scan "+subject, r.Kiln("scan", subject), "pass", "nobody tells it anything")
	}
	r.Write("kiln.hcl", strings.Replace(gated(ignoring(time.Now().AddDate(0, 0, -1))), "v1", "v2", 1))
	said, code = r.Refused("up")
	if code != 6 {
		t.Errorf("up with an ignore of yesterday exits %d", code)
	}
	wantAll(t, "up with an ignore of yesterday", said, "KILN-2026-0001", "expired")
	if _, _, body := r.Get("web.test", "/"); body != "v1" {
		t.Errorf("after what was refused, GET: %q", body)
	}
}

// importBundle makes a signed bundle, as on another machine, and imports it.
// Before that, one that was changed, and another's key, are refused.
func importBundle(t *testing.T, r *rig.Rig) {
	t.Helper()
	dir := t.TempDir()
	key, public, bundle := filepath.Join(dir, "key"), filepath.Join(dir, "pub"), filepath.Join(dir, "bundle")
	for _, args := range [][]string{{"genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", key}, {"pkey", "-in", key, "-pubout", "-out", public}} {
		if out, err := exec.CommandContext(t.Context(), "openssl", args...).CombinedOutput(); err != nil {
			t.Fatalf("openssl: %v\n%s", err, out)
		}
	}
	r.Kiln("db", "bundle", bundle, "--key", key, "npm="+osv(t, "KILN-2026-0001", advisoryOf))
	content, err := os.ReadFile(bundle)
	if err != nil {
		t.Fatal(err)
	}
	content[len(content)/3] ^= 1
	changed := filepath.Join(dir, "changed")
	if err := os.WriteFile(changed, content, 0o600); err != nil {
		t.Fatal(err)
	}
	said, _ := r.Refused("db", "import", changed, "--key", public)
	wantAll(t, "the import of a bundle that was changed", said, "refused", "what was there before still counts")
	r.Kiln("db", "import", bundle, "--key", public)
	r.Kiln("db", "import", osv(t, "GO-2026-0001", noneOf), "--ecosystem", "Go")
	var known control.Advisories
	r.JSON(&known, "db", "status")
	if len(known.Ecosystems) != 2 || known.Digest == "" || known.Ecosystems[1].From != "bundle" || known.Ecosystems[0].From != "file" || time.Since(known.Dated) < time.Hour {
		t.Errorf("the database is %+v", known)
	}
	told := r.Kiln("events", "--json")
	if n := strings.Count(told, `"kind":"database.imported"`); n != 2 || !strings.Contains(told, string(known.Digest)) || strings.Count(told, `"actor":"root (`) < 2 {
		t.Errorf("%d events tell of imports, want 2:\n%s", n, told)
	}
}

// scans looks at the image that does not pass, in the store and in files.
func scans(t *testing.T, r *rig.Rig) {
	t.Helper()
	out, err := r.Try("scan", "app")
	if code(err) != 1 {
		t.Errorf("scan: %v", err)
	}
	wantAll(t, "scan", out, "fail", "KILN-2026-0001", "upgrade left-over to 1.2.3")
	if out, err := r.Try("scan", "app", "--fail-on", "critical"); code(err) != 1 {
		t.Errorf("scan --fail-on critical: %v\n%s", err, out)
	}
	wantAll(t, "sbom", r.Kiln("sbom", "app"), "pkg:npm/left-over@1.0.0", "CycloneDX")
	wantAll(t, "sbom", r.Kiln("sbom", "app", "--format", "spdx"), "pkg:npm/left-over@1.0.0", "SPDX-2.3")

	var sarif struct {
		Runs []struct {
			Results []struct{ RuleID, Level string }
		}
	}
	out, err = r.Try("scan", "app", "--sarif")
	if jerr := json.Unmarshal([]byte(out), &sarif); jerr != nil || code(err) != 1 || len(sarif.Runs) != 1 || len(sarif.Runs[0].Results) == 0 || sarif.Runs[0].Results[0].Level != "error" {
		t.Errorf("scan --sarif: %v %v\n%s", err, jerr, out)
	}
	var baked control.ScanResult
	out, _ = r.Try("scan", "app", "--json")
	if err := json.Unmarshal([]byte(out), &baked); err != nil || len(baked.Images) != 1 {
		t.Fatalf("scan --json: %v\n%s", err, out)
	}
	if out, err := r.Try("scan", baked.Images[0].Verdict.Image.Short()); code(err) != 1 {
		t.Errorf("scan by the beginning of a digest: %v\n%s", err, out)
	}
	folder := layoutOf(t, r, baked.Images[0].Verdict.Image)
	out, err = r.Try("scan", folder)
	if code(err) != 1 {
		t.Errorf("scan of a folder: %v", err)
	}
	wantAll(t, "scan of a folder", out, folder, "KILN-2026-0001")
	blobs, err := filepath.Glob(filepath.Join(folder, "blobs", "sha256", "*"))
	if err != nil || len(blobs) < 3 {
		t.Fatal(blobs, err)
	}
	if err := os.WriteFile(blobs[0], []byte("other content"), 0o600); err != nil {
		t.Fatal(err)
	}
	if said, code := r.Refused("scan", folder); code != 3 || !strings.Contains(said, "is not a whole image") {
		t.Errorf("scan of a folder with a wrong blob exits %d: %s", code, said)
	}
}

// layoutOf is a folder with an image of the store alone.
func layoutOf(t *testing.T, r *rig.Rig, image kiln.Digest) string {
	t.Helper()
	dir := t.TempDir()
	into := filepath.Join(dir, "blobs", "sha256")
	if err := os.MkdirAll(into, 0o755); err != nil {
		t.Fatal(err)
	}
	take := func(d kiln.Digest) []byte {
		b, err := os.ReadFile(filepath.Join(r.Data, "store", "blobs", "sha256", d.Hex()))
		if err == nil {
			err = os.WriteFile(filepath.Join(into, d.Hex()), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	manifest := take(image)
	type described struct {
		MediaType string      `json:"mediaType"`
		Digest    kiln.Digest `json:"digest"`
		Size      int         `json:"size"`
	}
	var m struct {
		Config described
		Layers []described
	}
	if err := json.Unmarshal(manifest, &m); err != nil {
		t.Fatal(err)
	}
	for _, d := range append(m.Layers, m.Config) {
		take(d.Digest)
	}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": []described{{"application/vnd.oci.image.manifest.v1+json", image, len(manifest)}}})
	if err = errors.Join(err, os.WriteFile(filepath.Join(dir, "index.json"), index, 0o600), os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o600)); err != nil {
		t.Fatal(err)
	}
	return dir
}

func code(err error) int {
	var exit *rig.ExitError
	if errors.As(err, &exit) {
		return exit.Code
	}
	return 0
}
