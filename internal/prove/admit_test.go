package prove

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/kilnproject/kiln"
)

// signer is a Signer in memory.
type signer struct {
	signed   map[kiln.Digest]bool
	said     map[string][]json.RawMessage // by manifest and type
	verified int
}

func newSigner() *signer {
	return &signer{signed: map[kiln.Digest]bool{}, said: map[string][]json.RawMessage{}}
}

func (s *signer) Sign(_ context.Context, d kiln.Digest) error { s.signed[d] = true; return nil }

func (s *signer) Attest(_ context.Context, d kiln.Digest, kind string, predicate any) error {
	raw, err := json.Marshal(predicate)
	s.said[string(d)+kind] = append(s.said[string(d)+kind], raw)
	return err
}

func (s *signer) Verify(_ context.Context, d kiln.Digest) error {
	s.verified++
	if !s.signed[d] {
		return kiln.Errorf(kiln.CodeRefused, "", "not signed")
	}
	return nil
}

func (s *signer) Statements(_ context.Context, d kiln.Digest, kind string) ([]json.RawMessage, error) {
	return s.said[string(d)+kind], nil
}

func (s *signer) Has(_ context.Context, d kiln.Digest, kind string) (bool, error) {
	return len(s.said[string(d)+kind]) > 0, nil
}

func (s *signer) AttestOrigin(context.Context, kiln.Image, kiln.Baked, kiln.ProveRequest) error {
	return nil
}

func named(s string) kiln.Digest { return kiln.DigestOf([]byte(s)) }

// judged is a signer that knows one image, signed and with a verdict.
func judged(t *testing.T, outcome kiln.Outcome) *signer {
	t.Helper()
	s := newSigner()
	s.signed[named("image")] = true
	if err := s.Attest(t.Context(), named("image"), TypeVerdict, kiln.Verdict{Image: named("image"), Outcome: outcome, At: time.Unix(1, 0)}); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestAdmit(t *testing.T) {
	unsigned := judged(t, kiln.OutcomePass)
	delete(unsigned.signed, named("image"))
	unjudged := newSigner()
	unjudged.signed[named("image")] = true
	one := judged(t, kiln.OutcomePass)
	one.signed[named("bundle 2")] = true
	tests := map[string]struct {
		signer  *signer
		bundles []kiln.Digest
		err     error // of the question which bundles there are
		want    string
	}{
		"passed":                {judged(t, kiln.OutcomePass), nil, nil, ""},
		"failed":                {judged(t, kiln.OutcomeFail), nil, nil, "does not pass its gate"},
		"unsigned":              {unsigned, nil, nil, "not signed"},
		"not judged":            {unjudged, nil, nil, "no gate has judged it"},
		"no bundle is signed":   {judged(t, kiln.OutcomePass), []kiln.Digest{named("bundle 1"), named("bundle 2")}, nil, "the signature of bundle"},
		"one bundle is signed":  {one, []kiln.Digest{named("bundle 1"), named("bundle 2")}, nil, ""},
		"nobody knows releases": {judged(t, kiln.OutcomePass), nil, errors.New("damaged"), ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			p := New(Options{Signer: test.signer, Bundles: func(context.Context, kiln.Digest) ([]kiln.Digest, error) { return test.bundles, test.err }})
			err := p.Admit(t.Context(), named("image"))
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
		if err := p.Admit(t.Context(), named("image")); err != nil {
			t.Fatal(err)
		}
	}
	if s.verified != 1 {
		t.Errorf("it was verified %d times", s.verified)
	}
	delete(s.signed, named("image"))
	p.Forget()
	if err := p.Admit(t.Context(), named("image")); err == nil {
		t.Error("what was forgotten is not verified again")
	}
}
