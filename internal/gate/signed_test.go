package gate

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kilnproject/kiln"
)

// TestSignedBy: what is not known never lets an image pass.
func TestSignedBy(t *testing.T) {
	tests := map[string]struct {
		wants    []string
		evidence Evidence
		outcome  kiln.Outcome
		signed   []string
		says     string // in reasons
		hint     string
	}{
		"nobody is asked for":  {nil, Evidence{SignedBy: []string{"ci"}, Unasked: "it is away"}, kiln.OutcomePass, nil, "", ""},
		"signed":               {[]string{"ci"}, Evidence{SignedBy: []string{"ci"}, Trusted: []string{"ci"}}, kiln.OutcomePass, []string{"ci"}, "", ""},
		"signed by one of two": {[]string{"release", "ci"}, Evidence{SignedBy: []string{"ci"}, Trusted: []string{"ci", "release"}}, kiln.OutcomePass, []string{"ci"}, "", ""},
		"nothing is known":     {[]string{"ci"}, Evidence{}, kiln.OutcomeFail, nil, "by ci, of whom no key is known here", `trust "ci"`},
		"not signed":           {[]string{"ci", "release"}, Evidence{Trusted: []string{"ci", "release"}}, kiln.OutcomeFail, nil, "not signed by ci or release", "cosign sign"},
		"by another":           {[]string{"ci"}, Evidence{SignedBy: []string{"other"}, Trusted: []string{"ci", "other"}}, kiln.OutcomeFail, nil, "not signed by ci", "cosign sign"},
		"one name is unknown":  {[]string{"ci", "typo"}, Evidence{Trusted: []string{"ci"}}, kiln.OutcomeFail, nil, "not signed by ci or typo", "cosign sign"},
		"could not be asked":   {[]string{"ci"}, Evidence{Trusted: []string{"ci"}, Unasked: "the registry is away"}, kiln.OutcomeUnknown, nil, "signed by ci: the registry is away.", "try again"},
		"signed all the same":  {[]string{"ci"}, Evidence{SignedBy: []string{"ci"}, Trusted: []string{"ci"}, Unasked: "the registry is away"}, kiln.OutcomePass, []string{"ci"}, "", ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			g := kiln.DefaultGate()
			g.SignedBy = test.wants
			v := Judge(g, test.evidence, time.Unix(0, 0))
			if v.Outcome != test.outcome || !slices.Equal(v.SignedBy, test.signed) {
				t.Errorf("%s, signed by %q: %q", v.Outcome, v.SignedBy, v.Reasons)
			}
			if said := strings.Join(v.Reasons, "\n"); !strings.Contains(said, test.says) || (test.says == "") != (said == "") || !strings.Contains(v.Hint, test.hint) || (test.hint == "") != (v.Hint == "") {
				t.Errorf("it says %q, hint %q", said, v.Hint)
			}
		})
	}
	// A finding fails whoever signed the image.
	g := kiln.DefaultGate()
	g.SignedBy = []string{"ci"}
	v := Judge(g, Evidence{SignedBy: []string{"ci"}, Findings: []kiln.Finding{{ID: "CVE-1", Kind: kiln.FindingVulnerability, Severity: kiln.SeverityHigh}}}, time.Unix(0, 0))
	if v.Outcome != kiln.OutcomeFail {
		t.Errorf("%s: a signature lets a finding pass", v.Outcome)
	}
}
