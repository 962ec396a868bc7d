// Package gate judges an image: it takes what was found out about it, applies
// what the definition's gate says, and says whether the image may run and why.
// It also reads OpenVEX documents and says what changed between two lists of
// findings.
//
// It is pure: what is known comes as arguments, now included. What could not be
// found out never lets an image pass, unless the gate says so.
package gate

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/kilnproject/kiln"
)

// Evidence is what was found out about an image.
type Evidence struct {
	Image kiln.Digest
	// Packages is how many packages have an ecosystem whose advisories can name
	// them. Where there is none, no database is needed.
	Packages int
	Database kiln.Digest // that was asked
	Dated    time.Time   // of the database
	// NoDatabase is a sentence without its stop that says why no database could
	// be asked; empty when one was.
	NoDatabase string
	// Unmatched are ecosystems that the image has packages of and the database
	// lacks.
	Unmatched []string
	// Findings are all that was found. State, Reason and Fails are of an earlier
	// judgement and not looked at.
	Findings []kiln.Finding
	// Scanners has an entry for every scanner that was asked: empty where it
	// did its work, else its failure as a sentence without its stop.
	Scanners map[string]string
	VEX      []Statement
	// SignedBy are the names of others whose keys signed the image, Trusted all
	// names whose keys are known. Unasked is a sentence without its stop that says
	// why not all signatures could be asked for.
	SignedBy, Trusted []string
	Unasked           string
}

// lintFails is the least severity of a rule of the lint that fails. The rules
// set it; a gate's fail_on is about vulnerabilities.
const lintFails = kiln.SeverityHigh

// maxNamed bounds how many findings one reason names.
const maxNamed = 5

// maxAhead is how far ahead of now a database's date may be: the difference of
// two clocks.
const maxAhead = 24 * time.Hour

const databaseHint = "kiln db update, or where there is no internet kiln db import FILE"

// Judge says whether an image may run. Whatever fails makes the outcome fail;
// otherwise, what could not be told makes it unknown.
func Judge(g kiln.Gate, e Evidence, now time.Time) kiln.Verdict {
	j := judgement{gate: filled(g), evidence: e, now: now}
	j.findings()
	j.signatures()
	j.scanners()
	j.database()
	v := kiln.Verdict{
		Image: e.Image, Outcome: kiln.OutcomePass,
		Reasons:  slices.Concat(j.failed, j.untold, j.passed),
		Database: e.Database, Dated: e.Dated,
		Gate: j.gate, SignedBy: j.signedBy, At: now, Packages: e.Packages, Findings: j.judged,
	}
	switch {
	case len(j.failed) > 0:
		v.Outcome = kiln.OutcomeFail
	case len(j.untold) > 0:
		v.Outcome = kiln.OutcomeUnknown
	}
	if len(j.hints) > 0 {
		v.Hint = j.hints[0]
	}
	return v
}

// filled replaces what is not said, or is no such word, by the strict default.
func filled(g kiln.Gate) kiln.Gate {
	if g.FailOn.Rank() <= 0 {
		g.FailOn = kiln.SeverityHigh
	}
	if g.Unknown != kiln.PolicyWarn && g.Unknown != kiln.PolicyIgnore {
		g.Unknown = kiln.PolicyFail
	}
	if g.NoDatabase != kiln.PolicyWarn {
		g.NoDatabase = kiln.PolicyFail
	}
	return g
}

// judgement is one run of Judge.
type judgement struct {
	gate     kiln.Gate
	evidence Evidence
	now      time.Time
	judged   []kiln.Finding
	failed   []string // reasons, by what they make of the outcome
	untold   []string
	passed   []string
	hints    []string // the most urgent first
	signedBy []string
}

func (j *judgement) findings() {
	for _, f := range j.evidence.Findings {
		j.judged = append(j.judged, j.finding(f))
	}
	slices.SortFunc(j.judged, compare)
	j.judged = slices.CompactFunc(j.judged, func(a, b kiln.Finding) bool { return compare(a, b) == 0 })
	failing := j.which(func(f kiln.Finding) bool { return f.Fails })
	if len(failing) > 0 {
		j.failed = append(j.failed, counted(len(failing), "finding fails", "findings fail")+": "+named(failing)+".")
		j.hints = append(j.hints, findingHint(failing[0]))
	}
	for _, f := range failing {
		if f.Reason != "" && !slices.Contains(j.failed, sentence(f.ID+": "+f.Reason)) {
			j.failed = append(j.failed, sentence(f.ID+": "+f.Reason))
		}
	}
	j.let("is open and does not fail", "are open and do not fail", func(f kiln.Finding) bool {
		return f.State == kiln.FindingOpen && !f.Fails && f.Kind != kiln.FindingLint // whose rules say that they warn
	})
	j.let("is ignored", "are ignored", func(f kiln.Finding) bool { return f.State == kiln.FindingIgnored })
	j.let("does not affect it, say its VEX documents", "do not affect it, say its VEX documents", func(f kiln.Finding) bool { return f.State == kiln.FindingNotAffected })
}

func (j *judgement) which(is func(kiln.Finding) bool) []kiln.Finding {
	var out []kiln.Finding
	for _, f := range j.judged {
		if is(f) {
			out = append(out, f)
		}
	}
	return out
}

// let adds the reason that says what the gate lets pass.
func (j *judgement) let(one, many string, is func(kiln.Finding) bool) {
	if found := j.which(is); len(found) > 0 {
		j.passed = append(j.passed, counted(len(found), "finding "+one, "findings "+many)+": "+named(found)+".")
	}
}

func (j *judgement) scanners() {
	for _, s := range j.gate.Scanners {
		failure, asked := j.evidence.Scanners[s.Name]
		if !asked {
			failure = "it was not asked"
		}
		if failure != "" {
			j.failed = append(j.failed, sentence("The scanner "+s.Name+" did not judge the image: "+failure))
			j.hints = append(j.hints, "install "+s.Name+" where the control plane runs and mend what it says, or take scanner \""+s.Name+"\" out of the gate")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(j.evidence.Scanners)) {
		known := slices.ContainsFunc(j.gate.Scanners, func(s kiln.GateScanner) bool { return s.Name == name })
		if failure := j.evidence.Scanners[name]; failure != "" && !known {
			j.failed = append(j.failed, sentence("The scanner "+name+" did not judge the image: "+failure))
		}
	}
}

// signatures says whether one of those whom the gate names signed the image.
func (j *judgement) signatures() {
	e, names := j.evidence, sorted(j.gate.SignedBy)
	for _, name := range names {
		if slices.Contains(e.SignedBy, name) {
			j.signedBy = append(j.signedBy, name)
		}
	}
	if len(names) == 0 || len(j.signedBy) > 0 {
		return
	}
	unknown := slices.DeleteFunc(slices.Clone(names), func(name string) bool { return slices.Contains(e.Trusted, name) })
	switch {
	case len(unknown) == len(names):
		j.failed = append(j.failed, "The gate wants a signature by "+strings.Join(names, " or ")+", of whom no key is known here.")
	case e.Unasked != "":
		j.untold = append(j.untold, sentence("It could not be told whether the image is signed by "+strings.Join(names, " or ")+": "+e.Unasked))
		j.hints = append(j.hints, "try again when the registry answers: its signatures are asked for anew")
	default:
		j.failed = append(j.failed, "The image is not signed by "+strings.Join(names, " or ")+".")
		j.hints = append(j.hints, "sign it where it is built, by its digest: cosign sign --key KEY IMAGE@"+string(e.Image)+"; or name in signed_by who did")
	}
	for _, name := range unknown {
		j.hints = append(j.hints, "write into kilnd.hcl: signing { trust \""+name+"\" { key = \"/etc/kiln/"+name+".pub\" } }, and run kiln reload")
	}
}

// database says whether the database could judge the image's packages.
func (j *judgement) database() {
	problem := j.databaseProblem()
	switch {
	case problem == "":
	case j.gate.NoDatabase == kiln.PolicyWarn:
		j.passed = append(j.passed, sentence(problem+", which the gate lets pass: no_database = \"warn\""))
	default:
		j.untold = append(j.untold, sentence(problem))
		j.hints = append(j.hints, databaseHint)
	}
}

// databaseProblem is a sentence without its stop; empty for none.
func (j *judgement) databaseProblem() string {
	e := j.evidence
	age := j.now.Sub(e.Dated)
	switch {
	case e.Packages == 0 && len(e.Unmatched) == 0:
		return ""
	case e.NoDatabase != "":
		return "Vulnerabilities are not known: " + strings.TrimSuffix(e.NoDatabase, ".")
	case e.Database == "":
		return "Vulnerabilities are not known: no database was asked"
	case len(e.Unmatched) > 0:
		return "The vulnerability database has nothing of " + strings.Join(sorted(e.Unmatched), ", ") + ", of which the image has packages"
	case j.gate.MaxDBAge <= 0:
		return ""
	case e.Dated.IsZero():
		return "The vulnerability database has no date, and the gate wants one that is at most " + short(j.gate.MaxDBAge) + " old"
	case age < -maxAhead:
		return "The vulnerability database is dated " + day(e.Dated) + ", which is ahead of this machine's clock"
	case age > j.gate.MaxDBAge:
		return fmt.Sprintf("The vulnerability database is of %s and %s old; the gate allows %s", day(e.Dated), short(age.Truncate(time.Hour)), short(j.gate.MaxDBAge))
	}
	return ""
}

func sorted(s []string) []string {
	s = slices.Clone(s)
	slices.Sort(s)
	return slices.Compact(s)
}

func day(t time.Time) string { return t.UTC().Format(time.DateOnly) }

// short writes a duration without units that are zero.
func short(d time.Duration) string {
	s := d.String()
	if d%time.Minute == 0 {
		s = strings.TrimSuffix(s, "0s")
	}
	if d%time.Hour == 0 {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// sentence begins with a capital, unless it begins with an identifier, and ends
// with a stop.
func sentence(s string) string { return strings.TrimSuffix(s, ".") + "." }

func counted(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// named lists findings by what they are called.
func named(findings []kiln.Finding) string {
	var names []string
	for _, f := range findings {
		name := f.ID
		switch where := firstOf(f.Package, f.Path); {
		case where != "" && f.State == kiln.FindingIgnored:
			name += " (" + where + ": " + f.Reason + ")"
		case where != "":
			name += " (" + where + ")"
		case f.State == kiln.FindingIgnored:
			name += " (" + f.Reason + ")"
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if more := len(names) - maxNamed; more > 0 {
		names = append(names[:maxNamed], fmt.Sprintf("and %d more", more))
	}
	return strings.Join(names, ", ")
}

func firstOf(words ...string) string {
	for _, w := range words {
		if w != "" {
			return w
		}
	}
	return ""
}

// findingHint says what to do about the worst finding.
func findingHint(f kiln.Finding) string {
	change := f.Change
	if change == "" && len(f.FixedIn) > 0 {
		change = "update " + firstOf(f.Package, f.PURL, "the package") + " to " + f.FixedIn[0]
	}
	way := "ignore \"" + f.ID + "\" { until = \"YEAR-MONTH-DAY\"  reason = \"...\" }"
	if f.Kind == kiln.FindingLint {
		way = "allow \"" + f.ID + "\" { reason = \"...\" }"
		if f.Path != "" {
			way = "allow \"" + f.ID + "\" { path = \"" + f.Path + "\"  reason = \"...\" }"
		}
	}
	if change == "" {
		return "no version mends it yet; to accept it, write into the gate: " + way
	}
	return change + "; or to accept it, write into the gate: " + way
}
