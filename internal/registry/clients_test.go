package registry_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
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
	if err := os.WriteFile(filepath.Join(config, "auth.json"), []byte("{}"), 0o600); err != nil { // podman wants one
		t.Fatal(err)
	}
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

// TestSkopeoCopiesAllPlatforms copies an index with its images to another
// repository and, by way of a folder, to a third, byte by byte the same; what is
// there already it does not send again.
func TestSkopeoCopiesAllPlatforms(t *testing.T) {
	skopeo := client(t, "skopeo")
	b := serve(t, nil)
	host := strings.TrimPrefix(b.url, "http://")
	index, err := random.Index(1000, 2, 2)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.NewTag(host + "/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(ref, index); err != nil {
		t.Fatal(err)
	}
	want, err := index.Digest()
	if err != nil {
		t.Fatal(err)
	}
	dir := "dir:" + t.TempDir()
	for _, c := range []struct{ from, to string }{
		{"docker://" + host + "/app:v1", "docker://" + host + "/team/copy:v2"},
		{"docker://" + host + "/app:v1", "docker://" + host + "/team/copy:v3"},
		{"docker://" + host + "/team/copy:v2", dir},
		{dir, "docker://" + host + "/third:v4"},
	} {
		skopeo("copy", "--insecure-policy", "--all", "--preserve-digests", "--src-tls-verify=false", "--dest-tls-verify=false", c.from, c.to)
	}
	skopeo("sync", "--insecure-policy", "--all", "--src", "docker", "--dest", "docker", "--src-tls-verify=false", "--dest-tls-verify=false", host+"/third", host+"/synced")
	for _, at := range []string{"team/copy:v2", "team/copy:v3", "third:v4", "synced/third:v4"} {
		ref, err := name.ParseReference(host + "/" + at)
		if err != nil {
			t.Fatal(err)
		}
		got, err := remote.Index(ref)
		if err != nil {
			t.Errorf("%s: %v", at, err)
			continue
		}
		if d, err := got.Digest(); err != nil || d != want {
			t.Errorf("%s is %s, %v, want %s", at, d, err, want)
		}
		if err := validate.Index(got); err != nil {
			t.Errorf("%s: %v", at, err)
		}
	}
}

// TestPodman pulls an image into a storage of its own and pushes it elsewhere.
func TestPodman(t *testing.T) {
	if os.Geteuid() != 0 || os.Getenv("KILN_TEST_ROOT") != "1" {
		t.Skip("needs root and KILN_TEST_ROOT=1: `make test` as root sets it")
	}
	podman := client(t, "podman")
	b := serve(t, nil)
	host := strings.TrimPrefix(b.url, "http://")
	image, err := random.Image(1000, 2)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.NewTag(host + "/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, image); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	own := func(arguments ...string) {
		t.Helper()
		podman(append([]string{"--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"), "--storage-driver", "vfs"}, arguments...)...)
	}
	own("pull", "--tls-verify=false", host+"/app:v1")
	own("push", "--tls-verify=false", host+"/app:v1", host+"/team/app:v2")
	own("push", "--tls-verify=false", host+"/app:v1", host+"/team/app:v2")
	own("rmi", "--all", "--force")
	own("pull", "--tls-verify=false", host+"/team/app:v2")
	pushed, err := name.NewTag(host + "/team/app:v2")
	if err != nil {
		t.Fatal(err)
	}
	got, err := remote.Image(pushed)
	if err != nil {
		t.Fatal(err)
	}
	want, err := image.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	if id, err := got.ConfigName(); err != nil || id != want {
		t.Errorf("it came back as %s, %v, want %s", id, err, want)
	}
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
