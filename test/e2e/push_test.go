package e2e

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/kilnproject/kiln/internal/server"
	"github.com/kilnproject/kiln/test/rig"
)

// shelves is the rig's registry, and skopeo as its client.
type shelves struct {
	*rig.Rig
	address string
	certs   string // a folder with the authority, as containers/image has it
	skopeo  string
}

func openShelves(t *testing.T, r *rig.Rig, blocks string) shelves {
	t.Helper()
	skopeo, err := exec.LookPath("skopeo")
	if err != nil {
		t.Skip("needs skopeo")
	}
	g := shelves{r, free(t), t.TempDir(), skopeo}
	configure(t, r, fmt.Sprintf("api {\n  listen = [%q]\n}\n", g.address)+blocks)
	r.Kiln("reload")
	authority, err := os.ReadFile(filepath.Join(r.Data, "api", "authority.pem"))
	if err == nil {
		err = os.WriteFile(filepath.Join(g.certs, "ca.crt"), authority, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// push pushes an image of a layout.
func (g shelves) push(t *testing.T, token, from, to string) error {
	t.Helper()
	args := []string{"copy", "--insecure-policy", "--dest-cert-dir", g.certs, "--dest-creds", "ci:" + token, "oci:" + from, "docker://" + g.address + "/" + to}
	out, err := exec.CommandContext(t.Context(), g.skopeo, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// built is a layout with the test's application and one file more, as another
// tool than Kiln builds it.
func built(t *testing.T, r *rig.Rig, path, content string) string {
	t.Helper()
	app, err := os.ReadFile(r.Bin("app"))
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range []struct {
		path string
		mode int64
		body []byte
	}{{"app", 0o755, app}, {path, 0o644, []byte(content)}} {
		err = errors.Join(err, w.WriteHeader(&tar.Header{Name: f.path, Mode: f.mode, Size: int64(len(f.body)), Typeflag: tar.TypeReg}))
		_, failed := w.Write(f.body)
		err = errors.Join(err, failed)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	image, err := mutate.AppendLayers(mutate.MediaType(empty.Image, "application/vnd.oci.image.manifest.v1+json"), layer)
	if err != nil {
		t.Fatal(err)
	}
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Config.Cmd = "linux", "amd64", []string{"/app"}
	if image, err = mutate.ConfigFile(image, config); err != nil {
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

// TestWhatCIPushedGoesThroughTheGate pushes as a CI system does and names the
// image in a definition. The control plane neither is logged in to its own
// registry nor trusts the authority of its certificate.
func TestWhatCIPushedGoesThroughTheGate(t *testing.T) {
	r := newRig(t)
	ci, deploy := token(t, r, "ci", "--role", "deploy")
	eyes, read := token(t, r, "eyes", "--role", "read")
	bound, some := token(t, r, "bound", "--role", "deploy", "--environment", "default")
	g := openShelves(t, r, deploy+read+some)
	good := built(t, r, "etc/motd", "hello")
	bad := built(t, r, "root/.ssh/id_ed25519", "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZW\n-----END OPENSSH PRIVATE KEY-----\n")
	for name, token := range map[string]string{"a reader": eyes, "one of some environments": bound, "a stranger": "kiln_x", "a typing error": ci + "x"} {
		if err := g.push(t, token, good, "team/api:v1"); err == nil {
			t.Errorf("%s pushed", name)
		}
	}
	define := func(image string) {
		r.Write("kiln.hcl", strings.Replace(one("v1", 1, ""), `dockerfile { context = "app" }`, fmt.Sprintf("reference = %q", g.address+"/"+image), 1))
	}
	define("team/api:v1")
	said, code := r.Refused("up")
	if code == 0 {
		t.Error("up of what nobody pushed")
	}
	wantAll(t, "up of what nobody pushed", said, g.address+"/team/api:v1 is not in the registry")

	for _, one := range []struct{ from, to string }{{good, "team/api:v1"}, {bad, "team/api:v2"}, {good, "team/api:v1"}} {
		if err := g.push(t, ci, one.from, one.to); err != nil {
			t.Fatal(err)
		}
	}
	if got := actors(r, "image.pushed"); len(got) != 3 || got[0] != "token:ci" {
		t.Errorf("pushed by %q", got)
	}
	if _, code := r.Refused("scan", "--no-database", "team/api:v2"); code != 1 {
		t.Errorf("a scan of what has a secret exits %d", code)
	}
	r.Kiln("scan", "--no-database", "team/api:v1")

	define("team/api:v2")
	if said, code = r.Refused("up"); code != 6 {
		t.Errorf("up of what has a secret exits %d", code)
	}
	wantAll(t, "up of what has a secret", said, "lint/secret", "/root/.ssh/id_ed25519")
	if got := instances(r); len(got) > 0 {
		t.Errorf("what does not pass runs: %v", ids(got))
	}

	define("team/api:v1")
	var settings server.Settings
	r.JSON(&settings, "config", "show")
	by := away{r: r, server: "https://" + g.address, token: bound, fingerprint: settings.API.Fingerprint}
	if _, said, code := by.run("up"); code != 6 || !strings.Contains(said, "the registry has the images of all") {
		t.Errorf("up by one who may not pull: exit %d: %s", code, said)
	}
	up(r)
	if status, _, body := r.Get("web.test", "/"); status != 200 || body != "v1" {
		t.Errorf("GET: %d %q", status, body)
	}
}
