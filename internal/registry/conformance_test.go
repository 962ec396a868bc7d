package registry_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestConformance runs the suite of the distribution specification, all of its
// workflows. It is built from a module of its own, of a pinned version.
func TestConformance(t *testing.T) {
	if testing.Short() {
		t.Skip("builds another program")
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "conformance")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, "github.com/opencontainers/distribution-spec/conformance")
	build.Dir = filepath.Join("testdata", "conformance")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=-mod=readonly")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the suite: %v\n%s", err, out)
	}
	b := serve(t, nil)
	run := exec.CommandContext(t.Context(), program)
	run.Dir = dir
	run.Env = append(os.Environ(),
		"OCI_REGISTRY="+strings.TrimPrefix(b.url, "http://"), "OCI_TLS=disabled", "OCI_RESULTS_DIR="+dir,
		// What comes after 1.1 as well: cancelled uploads, headers with digests, tags in the query.
		"OCI_VERSION=dev",
		"OCI_TEST_PULL=1", "OCI_TEST_PUSH=1", "OCI_TEST_CONTENT_DISCOVERY=1", "OCI_TEST_CONTENT_MANAGEMENT=1",
		// A registry must know SHA-256 and may know others: this one does not.
		"OCI_DATA_SHA512=false",
	)
	out, err := run.CombinedOutput()
	if err != nil {
		t.Errorf("the suite: %v\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		name, result, _ := strings.Cut(line, "...")
		switch strings.Trim(result, ". :\n") {
		case "FAIL", "Error", "Skip":
			// To look for a blob in repositories that the caller did not name is left
			// to registries, and would tell what is in them.
			if name = strings.Trim(name, " ."); name != "Blob anonymous mount" {
				t.Errorf("%s: %s", name, result)
			}
		}
	}
	if !strings.Contains(string(out), "OCI Conformance Result: Pass") || t.Failed() {
		t.Errorf("%s", out)
	}
}
