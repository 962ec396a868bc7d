package registry

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strings"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/configfile"
	"github.com/docker/cli/cli/config/types"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

// machine gives the credentials that docker login and podman login left for the
// user that this process runs as.
func machine() authn.Keychain {
	return authn.NewMultiKeychain(authn.DefaultKeychain, files(places()))
}

// places are the files that the default keychain does not look into: a service
// has no HOME, and podman has places of its own (containers-auth.json(5)).
func places() []string {
	home := os.Getenv("HOME")
	if u, err := user.Current(); home == "" && err == nil {
		home = u.HomeDir
	}
	out := []string{filepath.Join(home, ".docker", "config.json")}
	if file := os.Getenv("REGISTRY_AUTH_FILE"); file != "" {
		out = append(out, file)
	}
	run := os.Getenv("XDG_RUNTIME_DIR")
	if run == "" {
		run = fmt.Sprintf("/run/containers/%d", os.Geteuid())
	} else {
		run = filepath.Join(run, "containers")
	}
	return append(out, filepath.Join(run, "auth.json"), filepath.Join(home, ".config", "containers", "auth.json"))
}

// files are files in Docker's form, the first that knows a registry wins.
type files []string

// Resolve implements authn.Keychain. The files are read at each use.
func (f files) Resolve(target authn.Resource) (authn.Authenticator, error) {
	for _, path := range f {
		found, err := credentials(path, target)
		if err != nil {
			return nil, fmt.Errorf("read the credentials in %s: %w", path, err)
		}
		if found != (types.AuthConfig{}) {
			return authn.FromConfig(authn.AuthConfig{
				Username: found.Username, Password: found.Password, Auth: found.Auth, IdentityToken: found.IdentityToken, RegistryToken: found.RegistryToken,
			}), nil
		}
	}
	return authn.Anonymous, nil
}

// credentials looks for a repository, and then for what it is below.
func credentials(path string, target authn.Resource) (types.AuthConfig, error) {
	none := types.AuthConfig{}
	r, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return none, nil
	}
	if err != nil {
		return none, err
	}
	defer func() { _ = r.Close() }()
	known, err := config.LoadFromReader(r)
	if err != nil {
		return none, err
	}
	for key := target.String(); key != ""; key = above(key) {
		names := []string{key}
		if key == name.DefaultRegistry {
			names = []string{authn.DefaultAuthKey, "docker.io"}
		}
		for _, one := range names {
			found, err := exactly(known, one)
			if err != nil || found != none {
				return found, err
			}
		}
	}
	return none, nil
}

// exactly looks for one name. The library takes a name with a path for its host
// when it is asked for a host: what is for one team is not for another.
func exactly(known *configfile.ConfigFile, key string) (types.AuthConfig, error) {
	found := known.AuthConfigs[key]
	if known.CredentialHelpers[key] != "" || known.CredentialsStore != "" && (key == authn.DefaultAuthKey || !strings.Contains(key, "/")) {
		var err error
		if found, err = known.GetAuthConfig(key); err != nil {
			return types.AuthConfig{}, err
		}
	}
	found.ServerAddress = ""
	return found, nil
}

// above is what a name is below; empty for a host.
func above(name string) string {
	at := strings.LastIndexByte(name, '/')
	return name[:max(at, 0)]
}
