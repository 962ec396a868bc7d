package registry

import (
	"errors"
	"io"
	"log"
	"net/http/httptest"
	"strings"
	"testing"

	theirs "github.com/google/go-containerregistry/pkg/registry"

	"github.com/kilnproject/kiln"
)

// TestAnAuthorityThatNobodyTrusts says what to do about it: trying again is of no
// use.
func TestAnAuthorityThatNobodyTrusts(t *testing.T) {
	server := httptest.NewUnstartedServer(theirs.New())
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	defer server.Close()
	c := New(Options{Store: &shelf{blobs: map[kiln.Digest][]byte{}}})
	_, err := c.Resolve(t.Context(), strings.TrimPrefix(server.URL, "https://")+"/team/app:v1")
	var known *kiln.Error
	if !errors.As(err, &known) || known.Code != kiln.CodeUnavailable || !strings.Contains(known.Hint, "update-ca-certificates") {
		t.Errorf("%v, hint %q", err, known.Hint)
	}
}
