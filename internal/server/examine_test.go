package server

import (
	"errors"
	"testing"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/control"
)

func TestReleasesAreVerifiedAndCompared(t *testing.T) {
	f := serve(t, nil)
	told := 0
	proof, err := f.client.Verify(t.Context(), control.ProofRequest{Environment: "production", Release: 4}, func(kiln.Progress) { told++ })
	if err != nil || proof.Environment != "production" || proof.Release != 4 || told != 1 || f.control.actor == "" {
		t.Errorf("%+v, %v, told %d times, by %q", proof, err, told, f.control.actor)
	}
	diff, err := f.client.Diff(t.Context(), "staging/2", "production")
	if err != nil || diff.From.Environment != "staging" || diff.From.Release != 2 || diff.To.Environment != "production" || diff.To.Release != 0 {
		t.Errorf("%+v, %v", diff, err)
	}
	if diff, err = f.client.Diff(t.Context(), "", "production/3"); err != nil || diff.From.Environment != "" || diff.To.Release != 3 {
		t.Errorf("%+v, %v", diff, err)
	}
	for _, bad := range []string{"", "/3", "production/", "production/0", "production/x", "production/1/2"} {
		if _, err := f.client.Diff(t.Context(), "", bad); !errors.Is(err, kiln.ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
