package e2e

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/server"
	"github.com/kilnproject/kiln/test/rig"
)

// openssl runs a program that knows nothing of Kiln.
func openssl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "openssl", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// newKeyPair makes a private key that is its owner's alone, and its public one.
func newKeyPair(t *testing.T, dir, name string) (private, public string) {
	t.Helper()
	private, public = filepath.Join(dir, name+".key"), filepath.Join(dir, name+".pub")
	openssl(t, "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", private)
	openssl(t, "pkey", "-in", private, "-pubout", "-out", public)
	if err := os.Chmod(private, 0o600); err != nil {
		t.Fatal(err)
	}
	return private, public
}

// signers are the keys of a control plane, the one that signs first.
func signers(r *rig.Rig) []server.SigningKey {
	var all server.Keys
	r.JSON(&all, "key", "show")
	return all.Keys
}

func origins(r *rig.Rig) (out []string) {
	for _, k := range signers(r) {
		out = append(out, k.Origin)
	}
	return out
}

// paged is an up of an image that was never baked before.
func paged(r *rig.Rig, version string) {
	r.Write("app/page", version)
	r.Write("app/Dockerfile", "FROM scratch\nCOPY --chmod=755 app /app\nCOPY page /page\nCMD [\"/app\"]\n")
	r.Write("kiln.hcl", one(version, 1, ""))
}

// signedBy has openssl verify the signature in the older form of what is live.
func signedBy(t *testing.T, r *rig.Rig, public string) {
	t.Helper()
	live, err := r.Live()
	if err != nil {
		t.Fatal(err)
	}
	blob := func(d kiln.Digest) string { return filepath.Join(r.Data, "store", "blobs", "sha256", d.Hex()) }
	entries, err := os.ReadDir(filepath.Join(r.Data, "store", "referrers", live.Services[0].Template.Image.Hex()))
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, e := range entries {
		var m ocispec.Manifest
		raw, err := os.ReadFile(blob(kiln.Digest("sha256:" + e.Name())))
		if err == nil {
			err = json.Unmarshal(raw, &m)
		}
		if err != nil {
			t.Fatal(err)
		}
		if m.ArtifactType != "application/vnd.dev.cosign.artifact.sig.v1+json" {
			continue
		}
		signature, err := base64.StdEncoding.DecodeString(m.Layers[0].Annotations["dev.cosignproject.cosign/signature"])
		path := filepath.Join(t.TempDir(), "signature")
		if err == nil {
			err = os.WriteFile(path, signature, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		found++
		openssl(t, "dgst", "-sha256", "-verify", public, "-signature", path, blob(kiln.Digest(m.Layers[0].Digest)))
	}
	if found != 1 {
		t.Errorf("the live image has %d signatures in the older form", found)
	}
}

// TestImagesAreSignedByAKeyOfTheOperators: from Kiln's own key to a file, to a
// command, to another command, and back; what was signed before stays so.
func TestImagesAreSignedByAKeyOfTheOperators(t *testing.T) {
	r := newRig(t)
	paged(r, "v1")
	up(r)
	dir := t.TempDir()
	file, filePublic := newKeyPair(t, dir, "file")
	signing := fmt.Sprintf("signing {\n  key = %q\n}\n", file)
	configure(t, r, signing)
	if said, code := r.Refused("reload"); code != 6 || !strings.Contains(said, "takes a restart") {
		t.Errorf("a reload with another key: exit %d, %s", code, said)
	}
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if said, _ := r.Refused("config", "check"); !strings.Contains(said, "others than its owner") {
		t.Errorf("a key that others can read: %s", said)
	}
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	restart(r)
	paged(r, "v2")
	up(r)
	signedBy(t, r, filePublic)
	if got := r.Kiln("key", "show", "--pem"); got != openssl(t, "pkey", "-in", file, "-pubout") {
		t.Errorf("the key that signs is\n%s", got)
	}
	if said, code := r.Refused("key", "rotate", "--yes"); code != 6 || !strings.Contains(said, "a key of yours") {
		t.Errorf("a rotation of the operator's key: exit %d, %s", code, said)
	}

	s := newSigningCommand(t, dir)
	configure(t, r, s.block(false))
	restart(r)
	paged(r, "v3")
	up(r)
	signedBy(t, r, s.public)
	s.failures(t, r)

	// Another command, which gets a digest, and then Kiln's own key again.
	s = newSigningCommand(t, t.TempDir())
	configure(t, r, s.block(true))
	restart(r)
	paged(r, "v5")
	up(r)
	signedBy(t, r, s.public)
	configure(t, r, "")
	restart(r)
	paged(r, "v6")
	up(r)
	if got := origins(r); !slices.Equal(got, []string{"own", "command", "command", "file", "own"}) {
		t.Errorf("keys: %q", got)
	}
	before := signers(r)[0].ID
	r.Kiln("key", "rotate", "--yes")
	if now := signers(r); now[0].ID == before || now[1].ID != before || now[1].Until.IsZero() {
		t.Errorf("after a rotation: %+v", now)
	}
	for release := 1; release <= 6; release++ {
		if got := doubts(t, r, fmt.Sprintf("default/%d", release)); len(got) > 0 {
			t.Errorf("release %d: %v", release, got)
		}
	}
	distrusted(t, r)
}

// distrusted takes the trust from the key of a file: what it alone signed does not
// hold any more, the rest does.
func distrusted(t *testing.T, r *rig.Rig) {
	t.Helper()
	all := signers(r)
	at := slices.IndexFunc(all, func(k server.SigningKey) bool { return k.Origin == "file" })
	if said, code := r.Refused("key", "distrust", all[0].ID, "--yes"); code != 5 || !strings.Contains(said, "rotate it first") {
		t.Errorf("distrust of the key that signs: exit %d, %s", code, said)
	}
	r.Kiln("key", "distrust", all[at].ID[:12], "--yes")
	for release, doubtful := range map[int]bool{1: false, 2: true, 3: false, 6: false} {
		if got := doubts(t, r, fmt.Sprintf("default/%d", release)); slices.Contains(got, "signature of bundle") != doubtful {
			t.Errorf("release %d: %v", release, got)
		}
	}
	if _, _, body := r.Get("web.test", "/"); body != "v6" {
		t.Errorf("GET: %q", body)
	}
}

// signingCommand is a program that signs, or does what a file beside it says.
type signingCommand struct{ program, public, how, started string }

func newSigningCommand(t *testing.T, dir string) signingCommand {
	t.Helper()
	private, public := newKeyPair(t, dir, "command")
	another, _ := newKeyPair(t, dir, "another")
	s := signingCommand{filepath.Join(dir, "sign"), public, filepath.Join(dir, "how"), filepath.Join(dir, "started")}
	script := strings.NewReplacer("HOW", s.how, "STARTED", s.started, "KEY", private, "ANOTHER", another).Replace(`#!/bin/sh
key=KEY
case $(cat HOW) in
fails) echo "the vault is sealed" >&2; exit 3 ;;
hangs) echo $$ >STARTED; sleep 1000000 & echo $! >>STARTED; wait ;;
babbles) echo "certainly!"; exit ;;
flatters) key=ANOTHER ;;
esac
if [ "$1" = digest ]; then
	cat >STARTED.digest
	openssl pkeyutl -sign -inkey $key -in STARTED.digest | base64 -w0
else
	openssl dgst -sha256 -sign $key | base64 -w0
fi
`)
	if err := os.WriteFile(s.program, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	s.does(t, "signs")
	return s
}

func (s signingCommand) does(t *testing.T, how string) {
	t.Helper()
	if err := os.WriteFile(s.how, []byte(how), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (s signingCommand) block(digest bool) string {
	what := "content"
	if digest {
		what = "digest"
	}
	return fmt.Sprintf("signing {\n  command    = [%q, %q]\n  public_key = %q\n  digest     = %t\n}\n", s.program, what, s.public, digest)
}

// failures has the command fail in every way: nothing that it did not sign runs,
// what runs goes on, and the next signature needs no restart.
func (s signingCommand) failures(t *testing.T, r *rig.Rig) {
	t.Helper()
	for how, want := range map[string]string{
		"fails": "the vault is sealed", "hangs": "it took longer than 30s", "babbles": "answered what is not base64", "flatters": "that its public key does not verify",
	} {
		s.does(t, how)
		paged(r, how)
		said, _ := r.Refused("up")
		wantAll(t, "up with a command that "+how, said, "the signing command", want, "hint:")
	}
	if status, _, body := r.Get("web.test", "/"); status != 200 || body != "v3" {
		t.Errorf("GET after commands that did not sign: %d %q", status, body)
	}
	raw, err := os.ReadFile(s.started)
	if err != nil {
		t.Fatal(err)
	}
	for field := range strings.FieldsSeq(string(raw)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		r.Eventually(rig.Longest, "a command that hung has ended", func() error {
			if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("process %d is still there", pid)
			}
			return nil
		})
	}
	// Instances of what is signed are replaced without the command.
	before := instances(r)
	if err := syscall.Kill(before[0].PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r.Eventually(rig.Longest, "an instance is replaced", func() error {
		for _, i := range instances(r) {
			if !slices.Contains(ids(before), i.ID) && i.State == kiln.InstanceReady {
				return nil
			}
		}
		return fmt.Errorf("there are %v", ids(instances(r)))
	})
	s.does(t, "signs")
	paged(r, "v4")
	if got := up(r); got.Release.Number != 4 {
		t.Errorf("release %d after failures", got.Release.Number)
	}
	signedBy(t, r, s.public)
}
