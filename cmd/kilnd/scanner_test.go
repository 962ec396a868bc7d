package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/kilnproject/kiln"
)

// TestAScannerHasNoPrivileges has one asked that says who it is and what it may
// read and write, and reports nothing.
func TestAScannerHasNoPrivileges(t *testing.T) {
	if os.Geteuid() != 0 || os.Getenv("KILN_TEST_ROOT") != "1" {
		t.Skip("needs root and KILN_TEST_ROOT=1: `make test` as root sets it")
	}
	setpriv, err := exec.LookPath("setpriv") // what kiln launch does, as another program does it
	if err != nil {
		t.Skip("setpriv is not installed")
	}
	i := newInherited(t)
	_, image := i.release("web")
	secret := filepath.Join(i.data, "secret")
	if err := os.WriteFile(secret, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{filepath.Dir(i.data), i.data} {
		if err := os.Chmod(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	bin := t.TempDir()
	script := `#!/bin/sh
set -e
test "$(id -u):$(id -g):$(id -G)" = 64741:64741:64741
while [ $# -gt 0 ]; do case $1 in --input) in=$2 ;; --cache-dir) cache=$2 ;; esac; shift; done
grep -q "` + image.Hex() + `" "$in/index.json"
cat "$in/blobs/sha256/` + image.Hex() + `" "$in/oci-layout" >"$HOME/copy"
! cat ` + secret + ` 2>/dev/null
! echo x 2>/dev/null >"$in/blobs/sha256/` + image.Hex() + `"
echo x >"$cache/kept"
echo '{"SchemaVersion": 2, "Results": []}'
`
	if err := os.WriteFile(filepath.Join(bin, "trivy"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{filepath.Dir(bin), bin} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	s, err := i.openScanners()
	if err != nil {
		t.Fatal(err)
	}
	s.scanner.UID, s.scanner.GID = scannerID, scannerID
	s.scanner.Launch = []string{setpriv, fmt.Sprintf("--reuid=%d", scannerID), fmt.Sprintf("--regid=%d", scannerID), "--clear-groups", "--no-new-privs"}
	for range 2 { // the second time with the cache of the first
		if _, err := s.scan(t.Context(), kiln.GateScanner{Name: "trivy"}, image); err != nil {
			var shown *kiln.Error
			if errors.As(err, &shown) {
				t.Log(strings.Join(shown.Evidence, "\n"))
			}
			t.Fatal(err)
		}
	}
	// A blob that only root may read, as after a restore, is copied for the scanner
	// and stays the store's.
	blob := i.dir("store", "blobs", "sha256", image.Hex())
	if err := os.Chmod(blob, 0o400); err != nil {
		t.Fatal(err)
	}
	if _, err := s.scan(t.Context(), kiln.GateScanner{Name: "trivy"}, image); err != nil {
		t.Errorf("an image of a restored store: %v", err)
	}
	if info, err := os.Stat(blob); err != nil || info.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("the store's blob is another's now: %v", err)
	}
	left, err := os.ReadDir(s.dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	// What a killed control plane left goes at the next start.
	if err := os.MkdirAll(filepath.Join(s.dir, "scan-1", "layout"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := i.openScanners(); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(s.dir); err != nil || len(left) > 0 {
		t.Errorf("left by a killed one: %v, %v", left, err)
	}
}

// TestScannersAreLaunched holds that no scanner is started as kilnd's own user.
func TestScannersAreLaunched(t *testing.T) {
	i := newInherited(t)
	i.program = "/usr/bin/kiln"
	s, err := i.openScanners()
	if err != nil {
		t.Fatal(err)
	}
	if l := s.scanner.Launch; len(l) != 4 || l[0] != i.program || l[1] != "launch" || s.scanner.UID <= 0 || l[2] != fmt.Sprint(s.scanner.UID) {
		t.Errorf("launched by %q as %d", l, s.scanner.UID)
	}
}
