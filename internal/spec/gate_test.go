package spec_test

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/lint"
	"github.com/kilnproject/kiln/internal/scanner"
	"github.com/kilnproject/kiln/internal/spec"
)

const soundVEX = `{"@context": "https://openvex.dev/ns/v0.2.0", "statements": [
  {"vulnerability": {"name": "CVE-1"}, "products": [{"@id": "pkg:golang/a"}], "status": "not_affected", "justification": "component_not_present"}]}`

func gateOf(t *testing.T, definition string, more map[string]string) (kiln.Gate, kiln.Spec) {
	t.Helper()
	files := map[string]string{"kiln.hcl": definition}
	maps.Copy(files, more)
	def, err := spec.Load(folder(files), spec.Options{})
	if err != nil {
		t.Fatalf("%v", err)
	}
	return def.Spec.Images[0].Gate, def.Spec
}

func TestGateDefault(t *testing.T) {
	got, _ := gateOf(t, `image "a" { reference = "docker.io/library/nginx:1" }`, nil)
	want := kiln.Gate{FailOn: kiln.SeverityHigh, Unknown: kiln.PolicyWarn, NoDatabase: kiln.PolicyFail}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestGateOver lays an image's gate over the definition's.
func TestGateOver(t *testing.T) {
	got, s := gateOf(t, `
gate {
  fail_on      = "low"
  unknown      = "fail"
  only_fixable = true
  max_db_age   = "48h"
  no_database  = "warn"
  vex          = ["all.json"]
  ignore "GO-1" { reason = "all" }
  ignore "GO-2" { reason = "all" }
  allow "lint/setuid" {
    path   = "/usr/bin/su"
    reason = "all"
  }
  scanner "trivy" { }
}
image "a" {
  reference = "docker.io/library/nginx:1"
  gate {
    fail_on      = "critical"
    only_fixable = false
    vex          = ["./own.json"]
    ignore "GO-2" {
      until  = "2027-01-31"
      reason = "own"
    }
    allow "lint/setuid" { reason = "own" }
    scanner "snyk" { }
    scanner "trivy" { fail_on = "medium" }
  }
}
`, map[string]string{"all.json": soundVEX, "own.json": soundVEX})
	want := kiln.Gate{
		FailOn: kiln.SeverityCritical, Unknown: kiln.PolicyFail, MaxDBAge: 48 * time.Hour, NoDatabase: kiln.PolicyWarn,
		Ignore: []kiln.GateIgnore{
			{ID: "GO-1", Reason: "all"},
			{ID: "GO-2", Until: time.Date(2027, 1, 31, 0, 0, 0, 0, time.UTC), Reason: "own"},
		},
		Allow: []kiln.GateAllow{
			{Rule: "lint/setuid", Reason: "own"},
			{Rule: "lint/setuid", Path: "/usr/bin/su", Reason: "all"},
		},
		Scanners: []kiln.GateScanner{{Name: "snyk"}, {Name: "trivy", FailOn: kiln.SeverityMedium}},
		VEX:      []string{"own.json"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if want := []string{"all.json", "kiln.hcl", "own.json"}; !slices.Equal(s.Files, want) {
		t.Errorf("the bundle carries %v, want %v", s.Files, want)
	}
}

// TestGateNull says that an argument that is null was not written, and that a
// reason must be.
func TestGateNull(t *testing.T) {
	got, _ := gateOf(t, `
gate { fail_on = "low" }
image "a" {
  reference = "docker.io/library/nginx:1"
  gate {
    fail_on = null
    scanner "trivy" { fail_on = null }
  }
}
`, nil)
	if got.FailOn != kiln.SeverityLow || got.Scanners[0].FailOn != "" {
		t.Errorf("got %+v", got)
	}
	_, err := spec.Load(folder(map[string]string{"kiln.hcl": "gate {\n  ignore \"GO-1\" { reason = null }\n}\n"}), spec.Options{})
	var e *kiln.Error
	if !errors.As(err, &e) || e.Diagnostics[0].Summary != "Invalid reason" {
		t.Errorf("got %v", err)
	}
}

func TestGateForEach(t *testing.T) {
	_, s := gateOf(t, `
image "a" {
  for_each  = { x = "low", y = "critical" }
  reference = "docker.io/library/nginx:1"
  gate {
    fail_on = each.value
    ignore "GO-1" { reason = "for ${each.key}" }
  }
}
`, nil)
	for i, want := range []string{"low for x", "critical for y"} {
		g := s.Images[i].Gate
		if got := string(g.FailOn) + " " + g.Ignore[0].Reason; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// TestVEXTooLong refuses a document that no reader would take.
func TestVEXTooLong(t *testing.T) {
	_, err := spec.Load(folder(map[string]string{
		"kiln.hcl": `gate { vex = ["v.json"] }`,
		"v.json":   soundVEX + strings.Repeat(" ", 1<<20),
	}), spec.Options{})
	var e *kiln.Error
	if !errors.As(err, &e) || !strings.Contains(e.Diagnostics[0].Detail, "more than 1048576 bytes") {
		t.Errorf("got %v", err)
	}
}

// TestRulesAreKnown keeps the rules that allow may name equal to the lint's, and
// knows all scanners.
func TestRulesAreKnown(t *testing.T) {
	for _, r := range lint.Rules() {
		gateOf(t, `
gate {
  allow "`+r.ID+`" { reason = "x" }
}
image "a" { reference = "docker.io/library/nginx:1" }
`, nil)
	}
	for _, name := range scanner.Names() {
		gateOf(t, `
gate {
  scanner "`+name+`" { }
}
image "a" { reference = "docker.io/library/nginx:1" }
`, nil)
	}
	_, err := spec.Load(folder(map[string]string{"kiln.hcl": `
gate {
  allow "x" { reason = "x" }
}
`}), spec.Options{})
	var e *kiln.Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v", err)
	}
	for id := range strings.SplitSeq(strings.TrimSuffix(strings.SplitN(e.Diagnostics[0].Detail, "There are: ", 2)[1], "."), ", ") {
		if !slices.ContainsFunc(lint.Rules(), func(r lint.Rule) bool { return r.ID == id }) {
			t.Errorf("the definition knows %q, the lint does not", id)
		}
	}
}

func TestSignedByIsAboutImagesOfRegistries(t *testing.T) {
	_, s := gateOf(t, `
gate { signed_by = ["ci", "release", "ci"] }
image "all" { reference = "docker.io/library/nginx:1" }
image "baked" {
  debian { suite = "bookworm" }
}
image "own" {
  reference = "docker.io/library/nginx:2"
  gate { signed_by = ["team"] }
}
`, nil)
	want := map[string][]string{"all": {"ci", "release"}, "baked": nil, "own": {"team"}}
	for _, image := range s.Images {
		if !slices.Equal(image.Gate.SignedBy, want[image.Name]) {
			t.Errorf("%s is signed by %q, want %q", image.Name, image.Gate.SignedBy, want[image.Name])
		}
	}
	for name, bad := range map[string]struct{ definition, want string }{
		"baked":   {`image "a" {` + "\n  debian { suite = \"bookworm\" }\n  gate { signed_by = [\"ci\"] }\n}", "Not an image of a registry"},
		"nobody":  {`gate { signed_by = [] }`, "Unsuitable list"},
		"no name": {`gate { signed_by = ["C I"] }`, "Invalid name"},
	} {
		_, err := spec.Load(folder(map[string]string{"kiln.hcl": bad.definition}), spec.Options{})
		var known *kiln.Error
		if !errors.As(err, &known) || !slices.ContainsFunc(known.Diagnostics, func(d kiln.Diagnostic) bool { return d.Summary == bad.want }) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
