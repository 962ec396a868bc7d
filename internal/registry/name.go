package registry

import (
	"net/http"
	"regexp"

	"github.com/kilnproject/kiln"
)

// The grammars of the distribution-spec (pulling manifests). All of a name is
// what follows it is checked, too: repositories become folders nowhere.
var (
	repositoryName = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagName        = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
)

// maxRepository is the longest name that clients reckon with.
const maxRepository = 255

func checkRepository(name string) error {
	if len(name) > maxRepository || !repositoryName.MatchString(name) {
		return &failure{status: http.StatusBadRequest, code: "NAME_INVALID", message: "a repository's name has lower-case letters, digits, and single separators ._-/"}
	}
	return nil
}

// digestOf reads a digest. Kiln's store knows SHA-256 alone.
func digestOf(text string) (kiln.Digest, error) {
	d, err := kiln.ParseDigest(text)
	if err != nil {
		return "", &failure{status: http.StatusBadRequest, code: "DIGEST_INVALID", message: "a digest is sha256: and 64 lower-case hex digits"}
	}
	return d, nil
}
