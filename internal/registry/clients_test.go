package registry_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/store"
)

// client finds a program, which not every machine has.
func client(t *testing.T, name string) func(arguments ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skip(name + " is not installed")
	}
	config := t.TempDir()
	return func(arguments ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), path, arguments...)
		cmd.Env = append(os.Environ(), "DOCKER_CONFIG="+config, "REGISTRY_AUTH_FILE="+filepath.Join(config, "auth.json"))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %s: %v\n%s", name, strings.Join(arguments, " "), err, out)
		}
		return string(out)
	}
}

// pushed is a registry with an image "app:v1" and an inventory of it.
func pushed(t *testing.T) (bed, string) {
	t.Helper()
	b := serve(t, nil)
	raw := b.image(t, "app", "layer", nil)
	b.putManifest(t, "app", "v1", raw).want(t, "push", 201, "")
	_, err := b.store.PutReferrer(t.Context(), kiln.DigestOf([]byte(raw)), store.Referrer{ArtifactType: "application/x"})
	if err != nil {
		t.Fatal(err)
	}
	return b, raw
}

func TestSkopeo(t *testing.T) {
	skopeo := client(t, "skopeo")
	b, raw := pushed(t)
	host := strings.TrimPrefix(b.url, "http://")
	if out := skopeo("inspect", "--raw", "--tls-verify=false", "docker://"+host+"/app:v1"); out != raw {
		t.Errorf("inspect: %s", out)
	}
	skopeo("copy", "--insecure-policy", "--src-tls-verify=false", "--dest-tls-verify=false", "docker://"+host+"/app:v1", "docker://"+host+"/team/copy:v2")
	if a := b.do(t, "GET", "/v2/team/copy/manifests/v2", ""); a.body != raw {
		t.Errorf("the copy: %d %s", a.status, a.body)
	}
	if out := skopeo("list-tags", "--tls-verify=false", "docker://"+host+"/team/copy"); !strings.Contains(out, `"v2"`) {
		t.Errorf("tags: %s", out)
	}
	skopeo("delete", "--tls-verify=false", "docker://"+host+"/team/copy:v2")
	b.do(t, "GET", "/v2/team/copy/manifests/"+string(digest.FromString(raw)), "").want(t, "after it was deleted", 404, "MANIFEST_UNKNOWN")
}

func TestCrane(t *testing.T) {
	crane := client(t, "crane")
	b, raw := pushed(t)
	host := strings.TrimPrefix(b.url, "http://")
	crane("copy", host+"/app:v1", host+"/team/copy:v2")
	if out := crane("manifest", host+"/team/copy:v2"); strings.TrimSpace(out) != raw {
		t.Errorf("manifest: %s", out)
	}
	if out := crane("ls", host+"/app"); strings.TrimSpace(out) != "v1" {
		t.Errorf("tags: %s", out)
	}
	if out := crane("catalog", host); out != "app\nteam/copy\n" {
		t.Errorf("catalog: %s", out)
	}
	crane("delete", host+"/team/copy:v2")
}
