package scanner_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/scanner"
)

// image is where the scripts look for one.
func image() scanner.Image {
	return scanner.Image{Layout: "/images/layout", Archive: "/images/image.tar"}
}

// install puts a shell script on PATH as a scanner. The variable DATA is the
// folder testdata, and OUT a folder that the test reads.
func install(t *testing.T, name, script string) (out string) {
	t.Helper()
	bin, out := t.TempDir(), t.TempDir()
	data, err := filepath.Abs("testdata")
	if err != nil {
		t.Fatal(err)
	}
	text := "#!/bin/sh\nDATA='" + data + "'\nOUT='" + out + "'\n" + script + "\n"
	if err := os.WriteFile(filepath.Join(bin, name), []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	return out
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

const record = `printf '%s\n' "$@" >"$OUT/args"; env >"$OUT/env"; echo x >"$HOME/rubbish" || exit 9; `

func TestTrivy(t *testing.T) {
	t.Setenv("TRIVY_USERNAME", "u")
	t.Setenv("KILN_PRIVATE", "p")
	out := install(t, "trivy", record+`cat "$DATA/trivy.json"`)
	got, err := (&scanner.Scanner{Cache: "/var/cache/x"}).Scan(t.Context(), "trivy", image())
	if err != nil {
		t.Fatal(err)
	}
	find := kiln.Finding{Kind: kiln.FindingScanner, Scanner: "trivy", State: kiln.FindingOpen}
	openssl, apt, left, net := find, find, find, find
	openssl.ID, openssl.Aliases, openssl.Severity = "CVE-2024-9143", []string{"DSA-5817-1"}, kiln.SeverityLow
	openssl.Title = "openssl: Low-level invalid GF(2^m) parameters lead to OOB memory access"
	openssl.Package, openssl.Version, openssl.FixedIn = "libssl3", "3.0.14-1~deb12u2", []string{"3.0.15-1~deb12u1"}
	openssl.PURL = "pkg:deb/debian/libssl3@3.0.14-1~deb12u2?arch=amd64&distro=debian-12.8"
	openssl.Layer = kiln.Digest("sha256:" + strings.Repeat("a", 64))
	apt.ID, apt.Severity, apt.Title, apt.Package, apt.Version = "CVE-2011-3374", kiln.SeverityUnknown, "CVE-2011-3374 of apt", "apt", "2.6.1"
	left.ID, left.Severity, left.Title, left.Package, left.Version = "CVE-2023-0001", kiln.SeverityMedium, "left over", "left-over", "1.0.0"
	left.Path = "/app/node_modules/left-over/package.json"
	net.ID, net.Severity, net.Title, net.Package, net.Version = "CVE-2023-39325", kiln.SeverityHigh, "rapid reset[2J. second line", "golang.org/x/net", "v0.1.0"
	net.Path, net.FixedIn = "/usr/bin/app", []string{"0.17.0", "0.18.0"}
	openssl.Change, net.Change = "upgrade libssl3 to 3.0.15-1~deb12u1", "upgrade golang.org/x/net to 0.17.0 or 0.18.0"
	apt.Change = "no version mends it: do without apt, or ignore the finding with a reason"
	left.Change = "no version mends it: do without left-over, or ignore the finding with a reason"
	if diff := cmp.Diff([]kiln.Finding{openssl, apt, left, net}, got); diff != "" {
		t.Error(diff)
	}
	args := strings.Fields(read(t, filepath.Join(out, "args")))
	want := []string{"image", "--input", "/images/layout", "--format", "json", "--scanners", "vuln", "--exit-code", "0", "--quiet", "--cache-dir", "/var/cache/x"}
	if diff := cmp.Diff(want, args); diff != "" {
		t.Error(diff)
	}
	env := read(t, filepath.Join(out, "env"))
	if !strings.Contains(env, "TRIVY_USERNAME=u") || strings.Contains(env, "KILN_PRIVATE") {
		t.Errorf("its environment is:\n%s", env)
	}
	for line := range strings.Lines(env) {
		if home, ok := strings.CutPrefix(strings.TrimSpace(line), "HOME="); ok {
			if _, err := os.Stat(home); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("its home is left: %v", err)
			}
		}
	}
}

func TestSnyk(t *testing.T) {
	out := install(t, "snyk", record+`cat "$DATA/snyk.json"; exit 1`)
	got, err := (&scanner.Scanner{}).Scan(t.Context(), "snyk", image())
	if err != nil {
		t.Fatal(err)
	}
	find := kiln.Finding{Kind: kiln.FindingScanner, Scanner: "snyk", State: kiln.FindingOpen}
	openssl, net := find, find
	openssl.ID, openssl.Aliases, openssl.Severity, openssl.Title = "SNYK-DEBIAN12-OPENSSL-8186889", []string{"CVE-2024-9143"}, kiln.SeverityLow, "Out-of-bounds Write"
	openssl.Package, openssl.Version, openssl.FixedIn = "openssl", "3.0.14-1~deb12u2", []string{"3.0.15-1~deb12u1"}
	net.ID, net.Aliases, net.Severity, net.Title = "SNYK-GOLANG-GOLANGORGXNETHTTP2-5953327", []string{"CVE-2023-39325", "GHSA-4374-p667-p6c8"}, kiln.SeverityHigh, "Denial of Service (DoS)"
	net.Package, net.Version, net.FixedIn, net.Path = "golang.org/x/net/http2", "0.1.0", []string{"0.17.0"}, "/usr/bin/app"
	openssl.Change, net.Change = "upgrade openssl to 3.0.15-1~deb12u1", "upgrade golang.org/x/net/http2 to 0.17.0"
	if diff := cmp.Diff([]kiln.Finding{openssl, net}, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"container", "test", "oci-archive:/images/image.tar", "--json"}, strings.Fields(read(t, filepath.Join(out, "args")))); diff != "" {
		t.Error(diff)
	}
}

func TestNothingFound(t *testing.T) {
	install(t, "trivy", `echo '{"SchemaVersion": 2, "Results": null}'`)
	install(t, "snyk", `echo '[{"ok": true, "vulnerabilities": []}]'`)
	for _, name := range scanner.Names() {
		if got, err := (&scanner.Scanner{}).Scan(t.Context(), name, image()); err != nil || len(got) > 0 {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// TestFailures says that whatever goes wrong is an error, never no findings.
func TestFailures(t *testing.T) {
	for _, c := range []struct{ name, tool, script, want string }{
		{"status", "trivy", `cat "$DATA/trivy.json"; echo "FATAL: no database" >&2; exit 1`, "it ended with status 1"},
		{"nothing", "trivy", ``, "what it printed is not its report"},
		{"garbage", "trivy", `echo "<html>"`, "what it printed is not its report"},
		{"an older report", "trivy", `echo '[]'`, "what it printed is not its report"},
		{"another schema", "trivy", `echo '{"SchemaVersion": 3}'`, "its schema is 3, not 2"},
		{"cut off", "trivy", `head -c 700 "$DATA/trivy.json"`, "what it printed is not its report"},
		{"two reports", "trivy", `cat "$DATA/trivy.json" "$DATA/trivy.json"`, "what it printed is not its report"},
		{"no identifier", "trivy", `echo '{"SchemaVersion": 2, "Results": [{"Vulnerabilities": [{"PkgName": "a"}]}]}'`, "no identifier"},
		{"a signal", "trivy", `kill -9 $$`, "signal: killed"},
		{"status 2", "snyk", `echo '{"ok": false, "error": "offline"}'; exit 2`, "it ended with status 2: it failed, and may succeed when tried again"},
		{"status 3", "snyk", `exit 3`, "it ended with status 3: it found nothing in the image that it supports"},
		{"an error as a report", "snyk", `echo '{"ok": false, "error": "authentication failed"}'; exit 1`, "authentication failed"},
		{"not ok for nothing", "snyk", `echo '{"ok": false, "vulnerabilities": []}'; exit 1`, "nothing says why"},
		{"an object of another kind", "snyk", `echo '{}'`, "does not say whether it is ok"},
		{"null", "snyk", `echo '[null]'`, "a project is null"},
		{"empty", "snyk", `echo '[]'`, "it is empty"},
		{"an application's error", "snyk", `echo '{"ok": true, "applications": [{"error": "cannot parse"}]}'`, "cannot parse"},
	} {
		t.Run(c.name, func(t *testing.T) {
			install(t, c.tool, c.script)
			got, err := (&scanner.Scanner{}).Scan(t.Context(), c.tool, image())
			var e *kiln.Error
			if !errors.As(err, &e) || e.Code != kiln.CodeFailed || e.Hint == "" || !strings.Contains(e.Message, c.want) || got != nil {
				t.Errorf("got %v, %v; want %q", got, err, c.want)
			}
		})
	}
}

func TestEvidence(t *testing.T) {
	install(t, "trivy", `i=0; while [ $i -lt 20 ]; do i=$((i+1)); printf 'line \033[2J %d\n' $i >&2; done; exit 1`)
	_, err := (&scanner.Scanner{}).Scan(t.Context(), "trivy", image())
	var e *kiln.Error
	if !errors.As(err, &e) || len(e.Evidence) != 10 || e.Evidence[9] != "line [2J 20" {
		t.Errorf("got %v", err)
	}
	// Without the time, so that the same failure is the same each time.
	install(t, "trivy", `printf '2026-11-26T21:11:46Z\tFATAL\tFatal error\tDB error: 1 error occurred:\n\t* no such host\n\n\n' >&2; exit 1`)
	_, err = (&scanner.Scanner{}).Scan(t.Context(), "trivy", image())
	if !errors.As(err, &e) || !slices.Equal(e.Evidence, []string{"FATAL Fatal error DB error: 1 error occurred:", "* no such host"}) {
		t.Errorf("got %q", e.Evidence)
	}
	// Snyk says it in the report.
	install(t, "snyk", `echo '{"ok": false, "error": "Authentication failed", "path": "x"}'; exit 2`)
	_, err = (&scanner.Scanner{}).Scan(t.Context(), "snyk", image())
	if !errors.As(err, &e) || !slices.Equal(e.Evidence, []string{"Authentication failed"}) {
		t.Errorf("got %q", e.Evidence)
	}
}

func TestMissing(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	for _, name := range scanner.Names() {
		_, err := (&scanner.Scanner{}).Scan(t.Context(), name, image())
		var e *kiln.Error
		if !errors.As(err, &e) || e.Code != kiln.CodeNotFound || !strings.Contains(e.Hint, "install") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := (&scanner.Scanner{}).Scan(t.Context(), "grype", image()); !errors.Is(err, kiln.ErrInvalid) {
		t.Errorf("got %v", err)
	}
	if _, err := (&scanner.Scanner{}).Scan(t.Context(), "snyk", scanner.Image{Layout: "/x"}); err == nil {
		t.Error("it is asked without an image")
	}
}

// TestTooLong ends a scanner with all that it started: the fifo that its child
// holds open for writing gets its end of file.
func TestTooLong(t *testing.T) {
	out := install(t, "trivy", `sh -c 'exec 7>"$1/held"; exec sleep infinity' x "$OUT" & wait`)
	fifo := filepath.Join(out, "held")
	if err := mkfifo(fifo); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := os.ReadFile(fifo) // to the end of its last writer
		ended <- err
	}()
	_, err := (&scanner.Scanner{Timeout: 500 * time.Millisecond}).Scan(t.Context(), "trivy", image())
	if err == nil || !strings.Contains(err.Error(), "it took longer than 500ms") {
		t.Errorf("got %v", err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestTrivyHasItsCacheForItself: images are judged several at once, and Trivy
// gives up when another one has its cache.
func TestTrivyHasItsCacheForItself(t *testing.T) {
	out := install(t, "trivy", `mkdir "$OUT/taken" || exit 9
i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done
rmdir "$OUT/taken"; echo '{"SchemaVersion": 2, "Results": null}'`)
	s := &scanner.Scanner{}
	ended := make(chan error)
	for range 8 {
		go func() {
			_, err := s.Scan(t.Context(), "trivy", image())
			ended <- err
		}()
	}
	for range 8 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	// Who waits can be stopped.
	if err := mkfifo(filepath.Join(out, "go")); err != nil {
		t.Fatal(err)
	}
	install(t, "trivy", `read line <"`+out+`/go"; echo '{"SchemaVersion": 2, "Results": null}'`)
	go func() {
		_, err := s.Scan(t.Context(), "trivy", image())
		ended <- err
	}()
	let, err := os.OpenFile(filepath.Join(out, "go"), os.O_WRONLY, 0) // once it reads
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Scan(ctx, "trivy", image()); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if err := let.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestTooMuch stops one that prints without end.
func TestTooMuch(t *testing.T) {
	install(t, "snyk", `exec cat /dev/zero`)
	_, err := (&scanner.Scanner{}).Scan(t.Context(), "snyk", image())
	if err == nil || !strings.Contains(err.Error(), "it printed more than") {
		t.Errorf("got %v", err)
	}
}

func TestCancelled(t *testing.T) {
	install(t, "trivy", `exec tail -f /dev/null`)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (&scanner.Scanner{}).Scan(ctx, "trivy", image()); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
