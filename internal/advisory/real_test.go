package advisory

import (
	"archive/zip"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnproject/kiln"
)

// TestRealAdvisories imports real databases, and refuses one with one broken
// record.
func TestRealAdvisories(t *testing.T) {
	db := empty(t)
	if err := db.Import(t.Context(), []Source{real(t, "Go"), real(t, "PyPI")}); err != nil {
		t.Fatal(err)
	}
	before := db.Status()
	if before.Ecosystems[0].Records < 4000 || before.Ecosystems[1].Records < 2000 {
		t.Errorf("%+v", before)
	}
	r, err := db.Match(t.Context(), []kiln.Package{
		goPackage("golang.org/x/net", "v0.1.0"),
		{Name: "Django", Version: "3.2.1", PURL: "pkg:pypi/django@3.2.1", Ecosystem: "PyPI", Locations: []string{"/x"}},
	})
	if err != nil || len(r.Findings) < 20 {
		t.Fatal(len(r.Findings), err)
	}
	for _, f := range r.Findings {
		for _, v := range f.FixedIn {
			if regexp.MustCompile(`^v?[0-9a-f]{40}$`).MatchString(v) {
				t.Errorf("%s is mended by a commit: %s", f.ID, v)
			}
		}
	}

	records := unzipped(t, real(t, "Go"))
	records["GO-2022-0956.json"] = strings.Replace(records["GO-2022-0956.json"], `"id"`, `"ID"`, 1)
	isRefused(t, db.Import(t.Context(), []Source{source(t, "Go", records)}), "GO-2022-0956.json")
	if after := db.Status(); after.Digest != before.Digest || after.Version != before.Version {
		t.Errorf("%+v", after)
	}
}

func unzipped(t testing.TB, s Source) map[string]string {
	t.Helper()
	z, err := zip.NewReader(s.Zip, s.Size)
	if err != nil {
		t.Fatal(err)
	}
	records := map[string]string{}
	for _, f := range z.File {
		b, err := unpack(f, maxRecord)
		if err != nil {
			t.Fatal(err)
		}
		records[f.Name] = string(b)
	}
	return records
}

// oldProgram is a Go program that needs old modules.
const (
	oldModule = `module example.com/old

go 1.20

require (
	github.com/gorilla/websocket v1.4.0
	golang.org/x/crypto v0.1.0
	golang.org/x/net v0.1.0
	golang.org/x/text v0.3.5
	gopkg.in/yaml.v2 v2.2.2
)
`
	oldMain = `package main

import (
	"fmt"

	"github.com/gorilla/websocket"
	"golang.org/x/crypto/ssh"
	"golang.org/x/net/http2"
	"golang.org/x/text/language"
	"gopkg.in/yaml.v2"
)

func main() {
	fmt.Println(websocket.TextMessage, ssh.KeyAlgoED25519, http2.Server{}, language.English, yaml.Unmarshal([]byte("a: 1"), new(any)))
}
`
)

// TestTheSameAsGovulncheck compares with Go's own tool, with the same database
// and a program that needs old modules.
func TestTheSameAsGovulncheck(t *testing.T) {
	zipped := real(t, "Go")
	dir := t.TempDir()
	run := func(in string, command ...string) string {
		cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
		cmd.Dir, cmd.Env = in, append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=mod", "GOOS=linux", "GOARCH=amd64")
		var out, words bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &words
		if err := cmd.Run(); err != nil {
			t.Skipf("%s: %v: %.300s", strings.Join(command, " "), err, words.String())
		}
		return out.String()
	}
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "go.mod"), []byte(oldModule), 0o600), os.WriteFile(filepath.Join(dir, "main.go"), []byte(oldMain), 0o600)); err != nil {
		t.Fatal(err)
	}
	run(dir, "go", "build", "-o", "old", ".")
	run(dir, "go", "build", "-o", dir, "golang.org/x/vuln/cmd/govulncheck")

	out := run(dir, filepath.Join(dir, "govulncheck"), "-mode=binary", "-scan=module", "-format=json", "-db=file://"+vulndb(t, zipped), "old")
	want := map[string]bool{}
	var packages []kiln.Package
	for d := json.NewDecoder(strings.NewReader(out)); ; {
		var m struct {
			Finding *struct {
				OSV string `json:"osv"`
			} `json:"finding"`
			SBOM *struct {
				Modules []struct{ Path, Version string } `json:"modules"`
			} `json:"SBOM"`
		}
		if err := d.Decode(&m); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if m.Finding != nil {
			want[m.Finding.OSV] = true
		}
		if m.SBOM != nil {
			for _, p := range m.SBOM.Modules {
				packages = append(packages, goPackage(p.Path, p.Version))
			}
		}
	}
	if len(packages) < 6 || len(want) < 20 {
		t.Fatalf("govulncheck finds %d in %d modules", len(want), len(packages))
	}

	db := empty(t)
	if err := db.Import(t.Context(), []Source{zipped}); err != nil {
		t.Fatal(err)
	}
	r, err := db.Match(t.Context(), packages)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, f := range r.Findings {
		got[f.ID] = true
		for _, id := range f.Aliases { // which the tool has as findings of their own
			delete(want, id)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	t.Logf("%d identifiers in %d modules", len(got), len(packages))
}

// vulndb is a Go vulnerability database as govulncheck wants it
// (https://go.dev/doc/security/vuln/database).
func vulndb(t *testing.T, s Source) string {
	t.Helper()
	dir := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "ID"), 0o700), os.Mkdir(filepath.Join(dir, "index"), 0o700)); err != nil {
		t.Fatal(err)
	}
	type vuln struct {
		ID       string `json:"id"`
		Modified string `json:"modified"`
		Fixed    string `json:"fixed,omitempty"`
	}
	type entry struct {
		Path  string `json:"path"`
		Vulns []vuln `json:"vulns"`
	}
	byPath := map[string]*entry{}
	for name, content := range unzipped(t, s) {
		if err := os.WriteFile(filepath.Join(dir, "ID", name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		var r struct {
			ID       string
			Modified string
			Affected []struct{ Package struct{ Name string } }
		}
		if err := json.Unmarshal([]byte(content), &r); err != nil {
			t.Fatal(err)
		}
		for _, a := range r.Affected {
			e := byPath[a.Package.Name]
			if e == nil {
				e = &entry{Path: a.Package.Name}
				byPath[e.Path] = e
			}
			if !slices.ContainsFunc(e.Vulns, func(v vuln) bool { return v.ID == r.ID }) {
				e.Vulns = append(e.Vulns, vuln{ID: r.ID, Modified: r.Modified})
			}
		}
	}
	var modules []*entry
	for _, e := range byPath {
		modules = append(modules, e)
	}
	b, err := json.Marshal(modules)
	if err = errors.Join(err, os.WriteFile(filepath.Join(dir, "index", "modules.json"), b, 0o600), os.WriteFile(filepath.Join(dir, "index", "db.json"), []byte(`{"modified":"2026-08-01T00:00:00Z"}`), 0o600)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// BenchmarkImportGo imports all of the Go database.
func BenchmarkImportGo(b *testing.B) {
	s := real(b, "Go")
	for b.Loop() {
		if err := empty(b).Import(b.Context(), []Source{s}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRematch matches 1,000 inventories of 100 packages each after a
// change of the database. No two inventories have the same version of a package.
func BenchmarkRematch(b *testing.B) {
	s := real(b, "Go")
	names := map[string]bool{}
	for _, content := range unzipped(b, s) {
		p, err := parseRecord("Go", []byte(content))
		if err != nil {
			b.Fatal(err)
		}
		for _, r := range p.rows {
			names[r.name] = true
		}
	}
	var sorted []string
	for n := range names {
		sorted = append(sorted, n)
	}
	slices.Sort(sorted)
	inventories := make([][]kiln.Package, 1000)
	for i := range inventories {
		for n := range 100 {
			p := goPackage(sorted[(i*37+n*11)%len(sorted)], fmt.Sprintf("v0.%d.%d", n, i))
			if n%2 == 0 {
				p.Name = fmt.Sprint(p.Name, "/unknown", i) // most packages have no advisories
			}
			inventories[i] = append(inventories[i], p)
		}
	}
	var findings atomic.Int64
	for b.Loop() {
		b.StopTimer()
		db := empty(b) // with nothing read yet
		if err := db.Import(b.Context(), []Source{s}); err != nil {
			b.Fatal(err)
		}
		findings.Store(0)
		b.StartTimer()
		var wait sync.WaitGroup
		for half := range 2 { // on two cores
			wait.Go(func() {
				for i := half; i < len(inventories); i += 2 {
					r, err := db.Match(b.Context(), inventories[i])
					if err != nil {
						b.Error(err)
						return
					}
					findings.Add(int64(len(r.Findings)))
				}
			})
		}
		wait.Wait()
	}
	b.ReportMetric(float64(findings.Load()), "findings")
}
