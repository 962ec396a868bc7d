package prove

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/kilnproject/kiln"
)

// judged is a world that knows one image, signed and with a verdict.
func judged(t *testing.T, outcome kiln.Outcome) *world {
	t.Helper()
	s := newWorld()
	s.signed[digest("image")] = true
	if err := s.Attest(t.Context(), digest("image"), TypeVerdict, kiln.Verdict{Image: digest("image"), Outcome: outcome, At: time.Unix(1, 0)}); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestAdmit(t *testing.T) {
	unsigned := judged(t, kiln.OutcomePass)
	delete(unsigned.signed, digest("image"))
	unjudged := newWorld()
	unjudged.signed[digest("image")] = true
	one := judged(t, kiln.OutcomePass)
	one.signed[digest("bundle 2")] = true
	tests := map[string]struct {
		signer  *world
		bundles []kiln.Digest
		err     error // of the question which bundles there are
		want    string
	}{
		"passed":                {judged(t, kiln.OutcomePass), nil, nil, ""},
		"failed":                {judged(t, kiln.OutcomeFail), nil, nil, "does not pass its gate"},
		"unsigned":              {unsigned, nil, nil, "not signed"},
		"not judged":            {unjudged, nil, nil, "no gate has judged it"},
		"no bundle is signed":   {judged(t, kiln.OutcomePass), []kiln.Digest{digest("bundle 1"), digest("bundle 2")}, nil, "the signature of bundle"},
		"one bundle is signed":  {one, []kiln.Digest{digest("bundle 1"), digest("bundle 2")}, nil, ""},
		"nobody knows releases": {judged(t, kiln.OutcomePass), nil, errors.New("damaged"), ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			p := New(Options{Signer: test.signer, Bundles: func(context.Context, kiln.Digest) ([]kiln.Digest, error) { return test.bundles, test.err }})
			err := p.Admit(t.Context(), digest("image"))
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
}

func TestWhatWasVerifiedIsVerifiedOnce(t *testing.T) {
	s := judged(t, kiln.OutcomePass)
	p := New(Options{Signer: s})
	for range 3 {
		if err := p.Admit(t.Context(), digest("image")); err != nil {
			t.Fatal(err)
		}
	}
	if s.verified != 1 {
		t.Errorf("it was verified %d times", s.verified)
	}
	delete(s.signed, digest("image"))
	p.Forget()
	if err := p.Admit(t.Context(), digest("image")); err == nil {
		t.Error("what was forgotten is not verified again")
	}
}
