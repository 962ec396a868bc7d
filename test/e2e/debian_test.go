package e2e

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/advisory"
	"github.com/kilnproject/kiln/internal/control"
	"github.com/kilnproject/kiln/test/rig"
)

// archive is a signed Debian archive with a system that is just enough for dpkg to
// install packages in it, and a library.
type archive struct {
	t    *testing.T
	arch string
	key  *openpgp.Entity
	dir  string
	url  string

	mu    sync.Mutex
	files map[string][]byte // by path below the archive
}

func newArchive(t *testing.T) *archive {
	t.Helper()
	for _, program := range []string{"mmdebstrap", "apt-get", "dpkg-deb", "ldd"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(program + " is not installed")
		}
	}
	key, err := openpgp.NewEntity("archive", "", "archive@example.com", &packet.Config{Algorithm: packet.PubKeyAlgoRSA, RSABits: 2048, DefaultHash: crypto.SHA256})
	if err != nil {
		t.Fatal(err)
	}
	a := &archive{t: t, key: key, dir: t.TempDir(), arch: strings.TrimSpace(run(t, "dpkg", "--print-architecture"))}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.mu.Lock()
		content, ok := a.files[strings.TrimPrefix(r.URL.Path, "/debian/")]
		a.mu.Unlock()
		if !ok {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(content)
	}))
	t.Cleanup(server.Close)
	a.url = server.URL + "/debian"
	return a
}

// run runs a program and returns what it printed.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1") // the same files give the same package
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, &said)
	}
	return string(out)
}

// keyring writes the key that the archive is signed with.
func (a *archive) keyring() string {
	a.t.Helper()
	var b bytes.Buffer
	w, err := armor.Encode(&b, openpgp.PublicKeyType, nil)
	if err == nil {
		err = a.key.Serialize(w)
	}
	if err == nil {
		err = w.Close()
	}
	path := filepath.Join(a.dir, "keyring.asc")
	if err == nil {
		err = os.WriteFile(path, b.Bytes(), 0o644)
	}
	if err != nil {
		a.t.Fatal(err)
	}
	return path
}

// pack makes a package of files; what is not text is copied from this machine.
func (a *archive) pack(control string, files map[string]string, scripts map[string]string) []byte {
	a.t.Helper()
	root, err := os.MkdirTemp(a.dir, "package-")
	if err != nil {
		a.t.Fatal(err)
	}
	put := func(path, content string, mode os.FileMode) {
		path = filepath.Join(root, path)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if err == nil {
			err = os.WriteFile(path, []byte(content), mode)
		}
		if err == nil {
			err = os.Chmod(path, mode)
		}
		if err != nil {
			a.t.Fatal(err)
		}
	}
	put("DEBIAN/control", control+"Maintainer: Nobody <nobody@example.com>\nDescription: a test\n", 0o644)
	for name, script := range scripts {
		put("DEBIAN/"+name, script, 0o755)
	}
	for path, content := range files {
		put(path, content, 0o644)
	}
	if strings.Contains(control, "Essential: yes") {
		a.system(root)
	}
	file := root + ".deb"
	run(a.t, "dpkg-deb", "--build", "--root-owner-group", "-Znone", root, file)
	content, err := os.ReadFile(file)
	if err != nil {
		a.t.Fatal(err)
	}
	return content
}

// system copies what dpkg and the scripts of packages need from this machine.
func (a *archive) system(root string) {
	a.t.Helper()
	library := regexp.MustCompile(`/[^ ]+`)
	for _, name := range []string{
		"dpkg", "dpkg-deb", "dpkg-split", "dpkg-query", "dpkg-divert", "dpkg-trigger", "sh", "rm", "tar", "diff", "env", "cat", "true", "mktemp", "mkdir", "cp", "mv", "ln", "ls", "chmod", "chown",
		"/usr/sbin/ldconfig", "/usr/sbin/start-stop-daemon",
	} {
		at, err := exec.LookPath(name)
		if err != nil {
			a.t.Fatal(err)
		}
		real := a.copy(root, at)
		out, err := exec.CommandContext(a.t.Context(), "ldd", real).Output() // none for what is static
		if err != nil {
			continue
		}
		for _, lib := range library.FindAllString(string(out), -1) {
			a.copy(root, lib)
		}
	}
	for _, dir := range []string{"proc", "sys", "dev", "run", "root", "tmp", "var/tmp"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			a.t.Fatal(err)
		}
	}
}

// copy copies a file, under the name that it has and the one that it resolves to.
func (a *archive) copy(root, path string) (real string) {
	a.t.Helper()
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		a.t.Fatal(err)
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		a.t.Fatal(err)
	}
	content, err := os.ReadFile(real)
	if err != nil {
		a.t.Fatal(err)
	}
	for _, at := range []string{real, filepath.Join(dir, filepath.Base(path))} {
		at = filepath.Join(root, at)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			a.t.Fatal(err)
		}
		if err := os.WriteFile(at, content, 0o755); err != nil {
			a.t.Fatal(err)
		}
	}
	return real
}

// publish makes the archive have these packages and no others, signed.
func (a *archive) publish(packages map[string][]byte) {
	a.t.Helper()
	files := map[string][]byte{}
	var index bytes.Buffer
	for name, deb := range packages {
		at := "pool/main/" + name + ".deb"
		files[at] = deb
		path := filepath.Join(a.dir, "published.deb")
		if err := os.WriteFile(path, deb, 0o600); err != nil {
			a.t.Fatal(err)
		}
		fmt.Fprintf(&index, "%sFilename: %s\nSize: %d\nSHA256: %x\n\n", run(a.t, "dpkg-deb", "--field", path), at, len(deb), sha256.Sum256(deb))
	}
	list := "main/binary-" + a.arch + "/Packages"
	files["dists/bookworm/"+list] = index.Bytes()
	release := fmt.Sprintf("Origin: Debian\nSuite: oldstable\nCodename: bookworm\nDate: %s\nArchitectures: %s\nComponents: main\nSHA256:\n %x %d %s\n",
		time.Now().UTC().Format("Mon, 02 Jan 2006 15:04:05 UTC"), a.arch, sha256.Sum256(index.Bytes()), index.Len(), list)
	var signed bytes.Buffer
	w, err := clearsign.Encode(&signed, a.key.PrivateKey, &packet.Config{DefaultHash: crypto.SHA256})
	if err == nil {
		_, err = io.WriteString(w, release)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		a.t.Fatal(err)
	}
	files["dists/bookworm/InRelease"] = signed.Bytes()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.files = files
}

// library is a version of the one package that changes.
func (a *archive) library(version, script string) []byte {
	scripts := map[string]string{}
	if script != "" {
		scripts["postinst"] = "#!/bin/sh\nset -e\n" + script + "\n"
	}
	return a.pack("Package: kilnlib\nVersion: "+version+"\nArchitecture: all\n", map[string]string{"usr/share/kilnlib/version": version + "\n"}, scripts)
}

// release is the archive with a version of the library.
func (a *archive) release(base map[string][]byte, version, script string) {
	all := map[string][]byte{"kilnlib_" + version + "_all": a.library(version, script)}
	maps.Copy(all, base)
	a.publish(all)
}

// learnLibrary puts an advisory about the library into the database of a rig whose
// control plane is away.
func learnLibrary(t *testing.T, r *rig.Rig, fixed string) {
	t.Helper()
	db, err := advisory.Open(filepath.Join(r.Data, "advisories"), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	record := fmt.Sprintf(`{"schema_version":"1.6.0","id":"DEBIAN-CVE-2099-7","modified":"2026-01-01T00:00:00Z","summary":"a hole",
  "severity":[{"type":"CVSS_V3","score":"CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H"}],
  "affected":[{"package":{"ecosystem":"Debian:12","name":"kilnlib"},"ranges":[{"type":"ECOSYSTEM","events":[{"introduced":"0"},{"fixed":%q}]}]}]}`, fixed)
	err = db.Import(t.Context(), []advisory.Source{zipped(t, "Debian", "DEBIAN-CVE-2099-7", record), zipped(t, "Go", "GO-2026-0001", noneOf)})
	if err != nil {
		t.Fatal(err)
	}
}

// debOf is the file of a package in the store.
func debOf(r *rig.Rig, deb []byte) string {
	return filepath.Join(r.Data, "store", "blobs", "sha256", kiln.DigestOf(deb).Hex())
}

// locked is the version of the library in kiln.lock.
func locked(t *testing.T, r *rig.Rig) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(r.Work, "kiln.lock"))
	if err != nil {
		t.Fatal(err)
	}
	return regexp.MustCompile(`kilnlib[^}]*?(1\.0-\d)`).FindString(string(b))
}

func wantLocked(t *testing.T, r *rig.Rig, version string) {
	t.Helper()
	if got := locked(t, r); !strings.HasSuffix(got, version) {
		t.Errorf("kiln.lock has %q, want %s", got, version)
	}
}

// TestRepaveOfADebianBase: an archive that moves on, and a hole that this mends;
// what was baked of it is baked again from what is kept.
func TestRepaveOfADebianBase(t *testing.T) {
	r := newRig(t)
	a := newArchive(t)
	base := map[string][]byte{
		"kilntest-base_1_" + a.arch: a.pack("Package: kilntest-base\nVersion: 1\nArchitecture: "+a.arch+"\nEssential: yes\nPriority: required\nPre-Depends: usr-is-merged\n", map[string]string{
			"etc/os-release": "ID=debian\nVERSION_ID=\"12\"\nVERSION_CODENAME=bookworm\nNAME=\"Debian GNU/Linux\"\n",
			"etc/passwd":     "root:x:0:0:root:/root:/bin/sh\n", "etc/group": "root:x:0:\n",
		}, nil),
		"usr-is-merged_35_all": a.pack("Package: usr-is-merged\nSource: usrmerge\nVersion: 35\nArchitecture: all\n", nil, nil),
	}
	a.release(base, "1.0-1", "")
	r.Write("app/Dockerfile", "FROM base\nCOPY --chmod=755 app /app\nCMD [\"/app\"]\n")
	definition := func(version string) string {
		return strings.Replace(one(version, 2, ""), `dockerfile { context = "app" }`, `dockerfile {
    context  = "app"
    contexts = { base = image.base }
  }`, 1) + fmt.Sprintf("\nimage \"base\" {\n  debian {\n    suite    = \"bookworm\"\n    packages = [\"kilnlib\"]\n    mirror   = %q\n  }\n}\n", a.url)
	}
	r.Write("kiln.hcl", definition("v1"))
	said, _ := r.Refused("up")
	wantAll(t, "up from an archive that Debian did not sign", said, "has no signed Debian suite", "not signed by Debian")
	configure(t, r, fmt.Sprintf("debian {\n  keyring = %q\n}\n", a.keyring()))
	r.Kiln("reload")
	if got := up(r); got.Release.Number != 1 {
		t.Fatalf("first up: %+v", got)
	}
	wantLocked(t, r, "1.0-1")
	if said := r.Kiln("repave"); !strings.Contains(said, "nothing to repave") {
		t.Errorf("an archive that did not move: %s", said)
	}

	// The archive moves on, and has the old version no more; then the hole is known.
	a.release(base, "1.0-2", "")
	r.StopDaemon()
	learnLibrary(t, r, "1.0-2")
	r.Start()
	r.Eventually(rig.Longest, "the status tells of the finding", func() error {
		if said := r.Kiln("status"); !strings.Contains(said, "is in service web, by kilnlib 1.0-1, fixed in 1.0-2: kiln repave default") {
			return fmt.Errorf("it says %s", said)
		}
		return nil
	})
	if said, code := r.Refused("repave", "--plan"); code != 2 {
		t.Fatalf("plan: exit %d, %s", code, said)
	}
	var result control.RepaveResult
	report := underLoad(t, r, 100, func() { r.JSON(&result, "repave") })
	if report.Failed > 0 {
		t.Errorf("repave under load: %s", report)
	}
	if got := result.Environments[0]; got.Outcome != control.RepaveDone || got.Release != 2 || got.Before.Failing != 1 || got.After.Failing != 0 {
		t.Fatalf("repave: %+v", got)
	}
	r.Eventually(rig.Longest, "the problem is gone", func() error {
		if said := r.Kiln("status"); strings.Contains(said, "kilnlib") {
			return fmt.Errorf("it says %s", said)
		}
		return nil
	})
	wantLocked(t, r, "1.0-1")
	if got := up(r); !got.Nothing || len(got.Overlay) != 1 {
		t.Errorf("up with the old lock: %+v", got)
	}
	wantLocked(t, r, "1.0-2")
	rebuilds(t, r, a)

	// What is not the same each time is named by its file.
	a.release(base, "1.0-3", "cat /proc/sys/kernel/random/uuid >/usr/share/kilnlib/stamp")
	r.JSON(&result, "repave")
	if got := result.Environments[0]; got.Release != 3 {
		t.Fatalf("repave: %+v", got)
	}
	out, err := r.Try("verify", "default", "--rebuild")
	if code(err) != 1 {
		t.Errorf("verify of what is not the same each time: %v", err)
	}
	wantAll(t, "verify --rebuild of a stamp", out, "/usr/share/kilnlib/stamp")
}

// rebuilds bakes both releases again, also of what the archive has no more. A
// package's file of which a byte was changed is named, and nothing is baked of it.
func rebuilds(t *testing.T, r *rig.Rig, a *archive) {
	t.Helper()
	wantAll(t, "verify --rebuild", r.Kiln("verify", "default/2", "--rebuild"), "all holds", "it has the same digest")
	a.mu.Lock()
	packages := make([]string, 0, len(a.files))
	for name := range a.files {
		packages = append(packages, name)
	}
	a.mu.Unlock()
	if slices.ContainsFunc(packages, func(name string) bool { return strings.Contains(name, "1.0-1") }) {
		t.Fatalf("the archive has %q", packages)
	}
	old := a.library("1.0-1", "")
	flip(t, debOf(r, old))
	out, err := r.Try("verify", "default/1", "--rebuild")
	if err == nil {
		t.Error("a damaged package was installed")
	}
	wantAll(t, "verify --rebuild of a damaged package", fmt.Sprint(out, err), "the file of package kilnlib 1.0-1, "+string(kiln.DigestOf(old))+", is not in the store any more, or was damaged")
	if err := os.WriteFile(debOf(r, old), old, 0o444); err != nil {
		t.Fatal(err)
	}
	wantAll(t, "verify --rebuild of what was restored", r.Kiln("verify", "default/1", "--rebuild"), "it has the same digest")
}
