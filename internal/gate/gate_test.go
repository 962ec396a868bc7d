package gate_test

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/gate"
)

var now = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

const (
	image    = kiln.Digest("sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")
	database = kiln.Digest("sha256:dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd")
)

func november(day int) time.Time { return time.Date(2026, 11, day, 0, 0, 0, 0, time.UTC) }

func net(severity kiln.Severity) kiln.Finding {
	return kiln.Finding{
		ID: "GO-2023-2102", Kind: kiln.FindingVulnerability, Aliases: []string{"CVE-2023-39325", "GHSA-4374-p667-p6c8"},
		Severity: severity, State: kiln.FindingOpen, Title: "HTTP/2 rapid reset", Package: "golang.org/x/net", Version: "v0.1.0",
		PURL: "pkg:golang/golang.org/x/net@v0.1.0", Path: "/app", FixedIn: []string{"0.17.0"},
	}
}

func evidence(findings ...kiln.Finding) gate.Evidence {
	return gate.Evidence{Image: image, Packages: 7, Database: database, Dated: now.Add(-time.Hour), Findings: findings}
}

func reasons(v kiln.Verdict) string { return strings.Join(v.Reasons, "\n") }

func want(t *testing.T, v kiln.Verdict, outcome kiln.Outcome, words ...string) {
	t.Helper()
	if v.Outcome != outcome {
		t.Errorf("outcome %s, want %s: %s", v.Outcome, outcome, reasons(v))
	}
	for _, w := range words {
		if !strings.Contains(reasons(v), w) {
			t.Errorf("the reasons lack %q:\n%s", w, reasons(v))
		}
	}
}

func TestSeverity(t *testing.T) {
	for _, c := range []struct {
		name     string
		gate     func(*kiln.Gate)
		finding  func(*kiln.Finding)
		outcome  kiln.Outcome
		state    kiln.FindingState
		reasoned string
	}{
		{name: "high fails by default", outcome: kiln.OutcomeFail},
		{name: "medium does not", finding: func(f *kiln.Finding) { f.Severity = kiln.SeverityMedium }, outcome: kiln.OutcomePass},
		{name: "unless said", gate: func(g *kiln.Gate) { g.FailOn = kiln.SeverityLow }, finding: func(f *kiln.Finding) { f.Severity = kiln.SeverityMedium }, outcome: kiln.OutcomeFail},
		{name: "critical is above", outcome: kiln.OutcomeFail, finding: func(f *kiln.Finding) { f.Severity = kiln.SeverityCritical }},
		{name: "high below critical", gate: func(g *kiln.Gate) { g.FailOn = kiln.SeverityCritical }, outcome: kiln.OutcomePass},
		{name: "unknown warns", finding: func(f *kiln.Finding) { f.Severity = kiln.SeverityUnknown }, outcome: kiln.OutcomePass},
		{name: "unknown fails", gate: func(g *kiln.Gate) { g.Unknown = kiln.PolicyFail }, finding: func(f *kiln.Finding) { f.Severity = kiln.SeverityUnknown }, outcome: kiln.OutcomeFail},
		{name: "a word that is none is unknown", gate: func(g *kiln.Gate) { g.Unknown = kiln.PolicyFail }, finding: func(f *kiln.Finding) { f.Severity = "grave" }, outcome: kiln.OutcomeFail},
		{name: "unknown is ignored", gate: func(g *kiln.Gate) { g.Unknown = kiln.PolicyIgnore }, finding: func(f *kiln.Finding) { f.Severity = kiln.SeverityUnknown }, outcome: kiln.OutcomePass, state: kiln.FindingIgnored},
		{name: "fixable", gate: func(g *kiln.Gate) { g.OnlyFixable = true }, outcome: kiln.OutcomeFail},
		{name: "not fixable", gate: func(g *kiln.Gate) { g.OnlyFixable = true }, finding: func(f *kiln.Finding) { f.FixedIn = nil }, outcome: kiln.OutcomePass, reasoned: "no version mends it"},
		{name: "an empty gate is strict", gate: func(g *kiln.Gate) { *g = kiln.Gate{} }, outcome: kiln.OutcomeFail},
	} {
		t.Run(c.name, func(t *testing.T) {
			g, f := kiln.DefaultGate(), net(kiln.SeverityHigh)
			if c.gate != nil {
				c.gate(&g)
			}
			if c.finding != nil {
				c.finding(&f)
			}
			v := gate.Judge(g, evidence(f), now)
			want(t, v, c.outcome)
			if got := v.Findings[0]; got.State != firstState(c.state) || got.Fails != (c.outcome == kiln.OutcomeFail) || !strings.Contains(got.Reason, c.reasoned) {
				t.Errorf("got %+v", got)
			}
		})
	}
}

// TestEmptyGate says that what is not said is judged strictly, and that the
// verdict tells how.
func TestEmptyGate(t *testing.T) {
	v := gate.Judge(kiln.Gate{}, evidence(net(kiln.SeverityMedium)), now)
	want(t, v, kiln.OutcomePass)
	if diff := cmp.Diff(kiln.Gate{FailOn: kiln.SeverityHigh, Unknown: kiln.PolicyFail, NoDatabase: kiln.PolicyFail}, v.Gate); diff != "" {
		t.Error(diff)
	}
}

func firstState(s kiln.FindingState) kiln.FindingState {
	if s == "" {
		return kiln.FindingOpen
	}
	return s
}

func TestIgnore(t *testing.T) {
	g := kiln.DefaultGate()
	g.Ignore = []kiln.GateIgnore{{ID: "cve-2023-39325", Until: november(21), Reason: "not reachable"}}
	v := gate.Judge(g, evidence(net(kiln.SeverityHigh)), now)
	want(t, v, kiln.OutcomePass, "1 finding is ignored: GO-2023-2102 (golang.org/x/net: not reachable, until 2026-11-21)")

	v = gate.Judge(g, evidence(net(kiln.SeverityHigh)), november(21))
	want(t, v, kiln.OutcomeFail, "GO-2023-2102: its ignore expired on 2026-11-21 (not reachable).")
	if v.Findings[0].State != kiln.FindingOpen {
		t.Errorf("got %+v", v.Findings[0])
	}

	g.Ignore = append(g.Ignore, kiln.GateIgnore{ID: "GO-2023-2102", Reason: "for ever"})
	want(t, gate.Judge(g, evidence(net(kiln.SeverityHigh)), november(21)), kiln.OutcomePass, "for ever")
	g.Ignore = []kiln.GateIgnore{{ID: "GO-2023-21", Reason: "another"}}
	want(t, gate.Judge(g, evidence(net(kiln.SeverityHigh)), now), kiln.OutcomeFail)
}

func TestLint(t *testing.T) {
	setuid := kiln.Finding{ID: "lint/setuid", Kind: kiln.FindingLint, Severity: kiln.SeverityMedium, Path: "/usr/bin/su"}
	sshd := kiln.Finding{ID: "lint/sshd", Kind: kiln.FindingLint, Severity: kiln.SeverityHigh, Path: "/usr/sbin/sshd", Change: "remove the SSH daemon"}
	g := kiln.DefaultGate()
	g.FailOn, g.OnlyFixable = kiln.SeverityLow, true
	warned := gate.Judge(g, evidence(setuid), now)
	want(t, warned, kiln.OutcomePass)
	if len(warned.Findings) != 1 || len(warned.Reasons) > 0 {
		t.Errorf("a rule that warns is a finding and no reason: %+v", warned)
	}
	g.FailOn = kiln.SeverityCritical
	v := gate.Judge(g, evidence(sshd, setuid), now)
	want(t, v, kiln.OutcomeFail, "1 finding fails: lint/sshd (/usr/sbin/sshd)")
	if wantHint := `remove the SSH daemon; or to accept it, write into the gate: allow "lint/sshd" { path = "/usr/sbin/sshd"  reason = "..." }`; v.Hint != wantHint {
		t.Errorf("hint %q", v.Hint)
	}
	for pattern, passes := range map[string]bool{"": true, "/usr/sbin/sshd": true, "/usr/sbin/*": true, "/usr/*": false, "/usr/sbin/ssh": false} {
		g.Allow = []kiln.GateAllow{{Rule: "lint/sshd", Path: pattern, Reason: "bastion"}}
		outcome := kiln.OutcomeFail
		if passes {
			outcome = kiln.OutcomePass
		}
		want(t, gate.Judge(g, evidence(sshd), now), outcome)
	}
	g.Allow = []kiln.GateAllow{{Rule: "lint/setuid", Reason: "another rule"}}
	want(t, gate.Judge(g, evidence(sshd), now), kiln.OutcomeFail)
	g.Ignore = []kiln.GateIgnore{{ID: "lint/sshd", Reason: "an ignore is for advisories"}}
	want(t, gate.Judge(g, evidence(sshd), now), kiln.OutcomeFail)
}

func TestDatabase(t *testing.T) {
	for _, c := range []struct {
		name     string
		gate     func(*kiln.Gate)
		evidence func(*gate.Evidence)
		outcome  kiln.Outcome // with no_database = "fail"
		reason   string
	}{
		{name: "young enough", gate: func(g *kiln.Gate) { g.MaxDBAge = time.Hour }, outcome: kiln.OutcomePass},
		{name: "too old", gate: func(g *kiln.Gate) { g.MaxDBAge = time.Hour - 1 }, outcome: kiln.OutcomeUnknown, reason: "is of 2026-11-20 and 1h old"},
		{name: "without a date", gate: func(g *kiln.Gate) { g.MaxDBAge = time.Hour }, evidence: func(e *gate.Evidence) { e.Dated = time.Time{} }, outcome: kiln.OutcomeUnknown, reason: "has no date"},
		{name: "of tomorrow", gate: func(g *kiln.Gate) { g.MaxDBAge = time.Hour }, evidence: func(e *gate.Evidence) { e.Dated = now.Add(25 * time.Hour) }, outcome: kiln.OutcomeUnknown, reason: "ahead of this machine's clock"},
		{name: "missing", evidence: func(e *gate.Evidence) { e.NoDatabase, e.Database = "there is none here", "" }, outcome: kiln.OutcomeUnknown, reason: "Vulnerabilities are not known: there is none here"},
		{name: "not named", evidence: func(e *gate.Evidence) { e.Database = "" }, outcome: kiln.OutcomeUnknown, reason: "no database was asked"},
		{name: "without the ecosystem", evidence: func(e *gate.Evidence) { e.Unmatched = []string{"npm", "Alpine:v3.20"} }, outcome: kiln.OutcomeUnknown, reason: "nothing of Alpine:v3.20, npm"},
		{name: "not needed", evidence: func(e *gate.Evidence) { e.NoDatabase, e.Database, e.Packages = "there is none here", "", 0 }, outcome: kiln.OutcomePass},
	} {
		t.Run(c.name, func(t *testing.T) {
			g, e := kiln.DefaultGate(), evidence()
			if c.gate != nil {
				c.gate(&g)
			}
			if c.evidence != nil {
				c.evidence(&e)
			}
			v := gate.Judge(g, e, now)
			want(t, v, c.outcome, c.reason)
			if hinted := strings.Contains(v.Hint, "kiln db update") && strings.Contains(v.Hint, "kiln db import FILE"); hinted != (c.outcome == kiln.OutcomeUnknown) {
				t.Errorf("hint %q", v.Hint)
			}
			g.NoDatabase = kiln.PolicyWarn
			v = gate.Judge(g, e, now)
			want(t, v, kiln.OutcomePass, c.reason)
			if c.reason != "" && !strings.Contains(reasons(v), `no_database = "warn"`) {
				t.Errorf("it passes without saying why: %s", reasons(v))
			}
			e.Findings = []kiln.Finding{net(kiln.SeverityHigh)}
			want(t, gate.Judge(g, e, now), kiln.OutcomeFail)
		})
	}
}

func TestScanners(t *testing.T) {
	g, e := kiln.DefaultGate(), evidence()
	g.Scanners = []kiln.GateScanner{{Name: "snyk"}, {Name: "trivy", FailOn: kiln.SeverityCritical}}
	want(t, gate.Judge(g, e, now), kiln.OutcomeFail, "The scanner snyk did not judge the image: it was not asked.", "The scanner trivy did not")
	e.Scanners = map[string]string{"snyk": "", "trivy": "it ended with status 1"}
	want(t, gate.Judge(g, e, now), kiln.OutcomeFail, "The scanner trivy did not judge the image: it ended with status 1.")
	e.Scanners["trivy"] = ""
	want(t, gate.Judge(g, e, now), kiln.OutcomePass)
	by := func(scanner string) kiln.Finding {
		f := net(kiln.SeverityHigh)
		f.Kind, f.Scanner = kiln.FindingScanner, scanner
		return f
	}
	e.Findings = []kiln.Finding{by("trivy")}
	want(t, gate.Judge(g, e, now), kiln.OutcomePass)
	e.Findings = []kiln.Finding{by("snyk")}
	want(t, gate.Judge(g, e, now), kiln.OutcomeFail)
	g.Scanners, e.Scanners, e.Findings = nil, map[string]string{"trivy": "broken"}, nil
	want(t, gate.Judge(g, e, now), kiln.OutcomeFail)
}

func statement(status, products string) string {
	return fmt.Sprintf(`{"@context": "https://openvex.dev/ns/v0.2.0", "timestamp": "2026-01-01T00:00:00Z", "statements": [
	{"vulnerability": {"@id": "https://nvd.nist.gov/vuln/detail/CVE-2023-39325"}, "products": [%s], %s}]}`, products, status)
}

const clears = `"status": "not_affected", "justification": "vulnerable_code_not_in_execute_path", "impact_statement": "HTTP/2 is off"`

func TestVEX(t *testing.T) {
	for _, c := range []struct {
		name, document string
		passes         bool
	}{
		{"the package", statement(clears, `{"@id": "pkg:golang/golang.org/x/net"}`), true},
		{"its version", statement(clears, `{"@id": "pkg:golang/golang.org/x/net@v0.1.0"}`), true},
		{"another version", statement(clears, `{"@id": "pkg:golang/golang.org/x/net@v0.2.0"}`), false},
		{"another package", statement(clears, `{"@id": "pkg:golang/golang.org/x/ne"}`), false},
		{"another ecosystem", statement(clears, `{"@id": "pkg:npm/golang.org/x/net"}`), false},
		{"a qualifier that it lacks", statement(clears, `{"@id": "pkg:golang/golang.org/x/net?os=linux"}`), false},
		{"an escaped name", statement(clears, `{"identifiers": {"purl": "pkg:golang/golang.org%2Fx%2Fnet@v0.1.0"}}`), true},
		{"the image", statement(clears, `{"@id": "pkg:oci/web@sha256%3A`+string(image[7:])+`?repository_url=r.example"}`), true},
		{"the image by its hash", statement(clears, `{"@id": "https://example.com/web", "hashes": {"sha-256": "`+string(image[7:])+`"}}`), true},
		{"another image", statement(clears, `{"@id": "pkg:oci/web@sha256%3A`+string(database[7:])+`"}`), false},
		{"an image without a digest", statement(clears, `{"@id": "pkg:oci/web"}`), false},
		{"the package in the image", statement(clears, `{"@id": "`+string(image)+`", "subcomponents": [{"@id": "pkg:golang/golang.org/x/net"}]}`), true},
		{"another package in the image", statement(clears, `{"@id": "`+string(image)+`", "subcomponents": [{"@id": "pkg:golang/stdlib"}]}`), false},
		{"the package in another image", statement(clears, `{"@id": "`+string(database)+`", "subcomponents": [{"@id": "pkg:golang/golang.org/x/net"}]}`), false},
		{"fixed", statement(`"status": "fixed"`, `{"@id": "`+string(image)+`"}`), true},
		{"affected", statement(`"status": "affected"`, `{"@id": "`+string(image)+`"}`), false},
		{"looked into", statement(`"status": "under_investigation"`, `{"@id": "`+string(image)+`"}`), false},
		{"as 0.0.1 has it", `{"@context": "https://openvex.dev/ns", "statements": [{"vulnerability": "CVE-2023-39325", "products": ["` + string(image) + `"], "subcomponents": ["pkg:golang/golang.org/x/net"], ` + clears + `}]}`, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := gate.ParseVEX("vex.json", []byte(c.document))
			if err != nil {
				t.Fatal(err)
			}
			e := evidence(net(kiln.SeverityHigh))
			e.VEX = s
			v := gate.Judge(kiln.DefaultGate(), e, now)
			if !c.passes {
				want(t, v, kiln.OutcomeFail)
				return
			}
			want(t, v, kiln.OutcomePass, "1 finding does not affect it, say its VEX documents: GO-2023-2102")
			if f := v.Findings[0]; f.State != kiln.FindingNotAffected || !strings.Contains(f.Reason, "vex.json") {
				t.Errorf("got %+v", f)
			}
		})
	}
}

// TestVEXLater says that of two statements the later holds, and of two of the
// same moment the one that warns, in either order.
func TestVEXLater(t *testing.T) {
	parse := func(status, at string) gate.Statement {
		s, err := gate.ParseVEX("v", []byte(strings.Replace(statement(status, `{"@id": "`+string(image)+`"}`), "2026-01-01", at, 1)))
		if err != nil {
			t.Fatal(err)
		}
		return s[0]
	}
	for _, c := range []struct {
		a, b   gate.Statement
		passes bool
	}{
		{parse(clears, "2026-01-01"), parse(`"status": "affected"`, "2026-01-02"), false},
		{parse(clears, "2026-01-03"), parse(`"status": "affected"`, "2026-01-02"), true},
		{parse(clears, "2026-01-02"), parse(`"status": "affected"`, "2026-01-02"), false},
	} {
		for _, order := range [][]gate.Statement{{c.a, c.b}, {c.b, c.a}} {
			e := evidence(net(kiln.SeverityHigh))
			e.VEX = order
			outcome := kiln.OutcomeFail
			if c.passes {
				outcome = kiln.OutcomePass
			}
			want(t, gate.Judge(kiln.DefaultGate(), e, now), outcome)
		}
	}
}

func TestBadVEX(t *testing.T) {
	product := `{"@id": "` + string(image) + `"}`
	for document, reason := range map[string]string{
		`[`:                            "not JSON",
		`{"statements": []}`:           "@context",
		statement(`"status": "x"`, ``): "status is \"x\"",
		statement(`"status": "not_affected"`, product):                                                    "needs a justification",
		statement(`"status": "not_affected", "justification": "trust me"`, product):                       "justification is \"trust me\"",
		statement(`"status": "fixed"`, ``):                                                                "names no product",
		statement(`"status": "fixed", "timestamp": "yesterday"`, product):                                 "RFC 3339",
		`{"@context": "https://openvex.dev/ns", "statements": [{"status": "fixed"}]}`:                     "names no vulnerability",
		statement(`"status": "fixed"`, strings.Repeat(`"a",`, 10_000)+`"a"`):                              "more than 10000 products",
		`{"@context": "https://openvex.dev/ns"` + strings.Repeat(" ", gate.MaxVEXBytes) + `}`:             "more than 1048576 bytes",
		`{"@context": "https://openvex.dev/ns", "statements": [` + strings.Repeat(`{},`, 10_000) + `{}]}`: "more than 10000 statements",
	} {
		if _, err := gate.ParseVEX("v.json", []byte(document)); err == nil || !strings.Contains(err.Error(), reason) || !strings.HasPrefix(err.Error(), "v.json") {
			t.Errorf("%.80s: %v, want %q", document, err, reason)
		}
	}
}

func FuzzVEX(f *testing.F) {
	f.Add([]byte(statement(clears, `{"@id": "pkg:golang/a@v1?x=y#z"}`)))
	f.Add([]byte(`{"@context": "https://openvex.dev/ns", "statements": [{"vulnerability": "CVE-1", "products": ["a"], "status": "fixed"}]}`))
	f.Fuzz(func(t *testing.T, document []byte) {
		s, err := gate.ParseVEX("v", document)
		if err != nil {
			return
		}
		e := evidence(net(kiln.SeverityHigh))
		e.VEX = s
		v := gate.Judge(kiln.DefaultGate(), e, now)
		if v.Outcome == kiln.OutcomePass && !slices.ContainsFunc(s, func(one gate.Statement) bool { return one.Status == "fixed" || one.Status == "not_affected" }) {
			t.Errorf("it passes for a document that clears nothing: %s", document)
		}
	})
}

func TestChange(t *testing.T) {
	updated, renamed, elsewhere := net(kiln.SeverityHigh), net(kiln.SeverityHigh), net(kiln.SeverityHigh)
	updated.Version, updated.PURL = "v0.2.0", "pkg:golang/golang.org/x/net@v0.2.0"
	renamed.ID, renamed.Aliases = "CVE-2023-39325", []string{"GHSA-4374-p667-p6c8"}
	elsewhere.Package = "stdlib"
	a := kiln.Finding{ID: "lint/setuid", Kind: kiln.FindingLint, Path: "/a"}
	b := kiln.Finding{ID: "lint/setuid", Kind: kiln.FindingLint, Path: "/b"}
	introduced, fixed := gate.Change([]kiln.Finding{net(kiln.SeverityHigh), a}, []kiln.Finding{updated, renamed, elsewhere, b})
	if diff := cmp.Diff([]kiln.Finding{elsewhere, b}, introduced); diff != "" {
		t.Errorf("introduced: %s", diff)
	}
	if diff := cmp.Diff([]kiln.Finding{a}, fixed); diff != "" {
		t.Errorf("fixed: %s", diff)
	}
}

// TestGolden keeps a verdict of everything readable.
func TestGolden(t *testing.T) {
	g := kiln.DefaultGate()
	g.Scanners = []kiln.GateScanner{{Name: "trivy"}}
	g.Ignore = []kiln.GateIgnore{{ID: "CVE-2", Until: november(1), Reason: "soon"}, {ID: "CVE-3", Reason: "not reachable"}}
	findings := []kiln.Finding{net(kiln.SeverityMedium), net(kiln.SeverityCritical)}
	for i := range 8 {
		f := net(kiln.SeverityHigh)
		f.ID, f.Aliases = fmt.Sprintf("CVE-%d", i), nil
		findings = append(findings, f)
	}
	e := evidence(findings...)
	e.Scanners = map[string]string{"trivy": "it is not installed"}
	e.NoDatabase = "the database of 2026-11-19 cannot be read"
	v := gate.Judge(g, e, now)
	got := strings.Join(append(v.Reasons, "hint: "+v.Hint), "\n") + "\n"
	golden, err := os.ReadFile("testdata/verdict.txt")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(golden), got); diff != "" {
		t.Errorf("%s\n%s", diff, got)
	}
}

// Properties.

func someFinding(t *rapid.T) kiln.Finding {
	kinds := []kiln.FindingKind{kiln.FindingVulnerability, kiln.FindingLint, kiln.FindingScanner}
	f := kiln.Finding{
		ID:       rapid.SampledFrom([]string{"CVE-1", "CVE-2", "GO-1", "lint/setuid", "lint/sshd"}).Draw(t, "id"),
		Kind:     rapid.SampledFrom(kinds).Draw(t, "kind"),
		Severity: rapid.SampledFrom(kiln.Severities()).Draw(t, "severity"),
		Package:  rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "package"),
		Path:     rapid.SampledFrom([]string{"", "/a", "/b"}).Draw(t, "path"),
		Scanner:  rapid.SampledFrom([]string{"", "trivy"}).Draw(t, "scanner"),
	}
	if rapid.Bool().Draw(t, "alias") {
		f.Aliases = []string{"CVE-9"}
	}
	if rapid.Bool().Draw(t, "fixed") {
		f.FixedIn = []string{"1"}
	}
	return f
}

func someGate(t *rapid.T) kiln.Gate {
	g := kiln.Gate{
		FailOn:      rapid.SampledFrom(kiln.Severities()).Draw(t, "fail_on"),
		Unknown:     rapid.SampledFrom([]kiln.GatePolicy{"", kiln.PolicyFail, kiln.PolicyWarn, kiln.PolicyIgnore}).Draw(t, "unknown"),
		NoDatabase:  rapid.SampledFrom([]kiln.GatePolicy{"", kiln.PolicyFail, kiln.PolicyWarn}).Draw(t, "no_database"),
		OnlyFixable: rapid.Bool().Draw(t, "only_fixable"),
		MaxDBAge:    time.Duration(rapid.IntRange(0, 3).Draw(t, "hours")) * time.Hour,
		Ignore:      rapid.SliceOfN(rapid.Custom(someIgnore), 0, 3).Draw(t, "ignore"),
	}
	if rapid.Bool().Draw(t, "scans") {
		g.Scanners = []kiln.GateScanner{{Name: "trivy", FailOn: rapid.SampledFrom([]kiln.Severity{"", kiln.SeverityLow, kiln.SeverityCritical}).Draw(t, "scanner_fail_on")}}
	}
	return g
}

func someIgnore(t *rapid.T) kiln.GateIgnore {
	return kiln.GateIgnore{
		ID:     rapid.SampledFrom([]string{"CVE-1", "CVE-9", "GO-1", "lint/sshd"}).Draw(t, "ignored"),
		Until:  rapid.SampledFrom([]time.Time{{}, now, now.Add(-time.Hour), now.Add(time.Hour)}).Draw(t, "until"),
		Reason: "r",
	}
}

func someEvidence(t *rapid.T) gate.Evidence {
	e := evidence(rapid.SliceOfN(rapid.Custom(someFinding), 0, 8).Draw(t, "findings")...)
	e.Packages = rapid.IntRange(0, 2).Draw(t, "packages")
	e.Dated = now.Add(-time.Duration(rapid.IntRange(0, 3).Draw(t, "age")) * time.Hour)
	e.NoDatabase = rapid.SampledFrom([]string{"", "none"}).Draw(t, "no_db")
	e.Scanners = rapid.SampledFrom([]map[string]string{nil, {"trivy": ""}, {"trivy": "broken"}}).Draw(t, "scanners")
	return e
}

func fails(v kiln.Verdict) int {
	n := 0
	for _, f := range v.Findings {
		if f.Fails {
			n++
		}
	}
	return n
}

func TestIgnoreNeverFailsMore(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g, e := someGate(t), someEvidence(t)
		before := gate.Judge(g, e, now)
		g.Ignore = append(slices.Clone(g.Ignore), someIgnore(t))
		after := gate.Judge(g, e, now)
		if fails(after) > fails(before) || before.Outcome == kiln.OutcomePass && after.Outcome != kiln.OutcomePass {
			t.Fatalf("%v\n%v", before, after)
		}
	})
}

func TestOrderDoesNotShow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g, e := someGate(t), someEvidence(t)
		before, err := json.Marshal(gate.Judge(g, e, now))
		if err != nil {
			t.Fatal(err)
		}
		e.Findings = rapid.Permutation(e.Findings).Draw(t, "order")
		after, err := json.Marshal(gate.Judge(g, e, now))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(before), string(after)); diff != "" {
			t.Fatal(diff)
		}
	})
}

// TestJudgedAgain says that a verdict's findings, judged again, give the same.
func TestJudgedAgain(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g, e := someGate(t), someEvidence(t)
		v := gate.Judge(g, e, now)
		e.Findings = v.Findings
		if diff := cmp.Diff(v, gate.Judge(g, e, now)); diff != "" {
			t.Fatal(diff)
		}
	})
}

// TestPassesOnlyIf says what a pass means, whatever came in.
func TestPassesOnlyIf(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g, e := someGate(t), someEvidence(t)
		v := gate.Judge(g, e, now)
		if (v.Outcome == kiln.OutcomeFail) != (fails(v) > 0 || e.Scanners["trivy"] != "" || len(g.Scanners) > 0 && e.Scanners == nil) {
			t.Fatalf("outcome %s: %v", v.Outcome, v)
		}
		if v.Outcome == kiln.OutcomePass && e.Packages > 0 && g.NoDatabase != kiln.PolicyWarn && (e.NoDatabase != "" || g.MaxDBAge > 0 && now.Sub(e.Dated) > g.MaxDBAge) {
			t.Fatalf("it passes without a database: %v", v)
		}
		if v.Outcome != kiln.OutcomePass && (len(v.Reasons) == 0 || v.Hint == "") {
			if len(g.Scanners) > 0 || e.Scanners["trivy"] == "" {
				t.Fatalf("no reason or no hint: %v", v)
			}
		}
		for i := 1; i < len(v.Findings); i++ {
			if v.Findings[i].Fails && !v.Findings[i-1].Fails {
				t.Fatalf("not the worst first: %v", v.Findings)
			}
		}
	})
}

func TestStricterNeverFailsLess(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g, e := someGate(t), someEvidence(t)
		g.FailOn = kiln.SeverityHigh
		before := gate.Judge(g, e, now)
		g.FailOn = kiln.SeverityLow
		if after := gate.Judge(g, e, now); fails(after) < fails(before) {
			t.Fatalf("%v\n%v", before, after)
		}
	})
}
