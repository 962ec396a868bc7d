package registry

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

// login writes a file as docker login and podman login do.
func login(t *testing.T, path, key, password string) {
	t.Helper()
	auth := base64.StdEncoding.EncodeToString([]byte("user:" + password))
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, key, auth), 0o600); err != nil {
		t.Fatal(err)
	}
}

func password(t *testing.T, k authn.Keychain, repository string) string {
	t.Helper()
	target, err := name.NewRepository(repository)
	if err != nil {
		t.Fatal(err)
	}
	found, err := k.Resolve(target)
	if err != nil {
		t.Fatal(err)
	}
	c, err := found.Authorization()
	if err != nil {
		t.Fatal(err)
	}
	return c.Password
}

func TestCredentialsOfTheMachine(t *testing.T) {
	home, run, docker := t.TempDir(), t.TempDir(), t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_RUNTIME_DIR", run)
	t.Setenv("DOCKER_CONFIG", docker)
	t.Setenv("REGISTRY_AUTH_FILE", filepath.Join(run, "named.json"))
	login(t, filepath.Join(docker, "config.json"), "docker.example.com", "of docker")
	login(t, filepath.Join(run, "containers", "auth.json"), "podman.example.com/team", "of podman")
	login(t, filepath.Join(home, ".config", "containers", "auth.json"), "docker.io", "of the hub")
	login(t, filepath.Join(run, "named.json"), "named.example.com", "of the named")
	login(t, filepath.Join(home, ".docker", "config.json"), "home.example.com:5000", "of home")
	for repository, want := range map[string]string{
		"docker.example.com/aa":              "of docker",
		"podman.example.com/team/app":        "of podman",
		"podman.example.com/other/app":       "",
		"docker.io/library/debian":           "of the hub",
		"named.example.com/aa":               "of the named",
		"home.example.com:5000/a/b":          "of home",
		"docker.example.com.evil.example/aa": "",
	} {
		if got := password(t, machine(), repository); got != want {
			t.Errorf("%s: %q, want %q", repository, got, want)
		}
	}
}
