package gate

import (
	"cmp"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/kilnproject/kiln"
)

// finding judges one finding.
func (j *judgement) finding(f kiln.Finding) kiln.Finding {
	f.State, f.Reason, f.Fails = kiln.FindingOpen, "", false
	if f.Kind == kiln.FindingLint {
		return j.lint(f)
	}
	if reason, ok := notAffected(j.evidence.VEX, f, j.evidence.Image); ok {
		f.State, f.Reason = kiln.FindingNotAffected, reason
		return f
	}
	reason, state := j.ignored(f)
	f.Reason, f.State = reason, state
	if state == kiln.FindingOpen {
		f = j.severity(f, j.failOn(f))
	}
	return f
}

// lint judges what a rule of the lint found: it is allowed, or the rule's own
// severity decides.
func (j *judgement) lint(f kiln.Finding) kiln.Finding {
	for _, a := range j.gate.Allow {
		if a.Rule == f.ID && allows(a.Path, f.Path) {
			f.State, f.Reason = kiln.FindingIgnored, "allowed: "+a.Reason
			return f
		}
	}
	return j.severity(f, lintFails)
}

// allows says whether a pattern is for a path. A pattern that is the path
// itself holds, whatever characters it has.
func allows(pattern, at string) bool {
	if pattern == "" || pattern == at {
		return true
	}
	ok, err := path.Match(pattern, at)
	return ok && err == nil
}

// failOn is the least severity at which a vulnerability fails.
func (j *judgement) failOn(f kiln.Finding) kiln.Severity {
	if f.Kind == kiln.FindingScanner {
		for _, s := range j.gate.Scanners {
			if s.Name == f.Scanner && s.FailOn.Rank() > 0 {
				return s.FailOn
			}
		}
	}
	return j.gate.FailOn
}

// severity says whether an open finding fails.
func (j *judgement) severity(f kiln.Finding, failOn kiln.Severity) kiln.Finding {
	vulnerability := f.Kind != kiln.FindingLint
	switch {
	case vulnerability && j.gate.OnlyFixable && len(f.FixedIn) == 0:
		if f.Reason == "" {
			f.Reason = "no version mends it, and the gate fails on those that one does"
		}
	case f.Severity.Rank() > 0:
		f.Fails = f.Severity.Rank() >= failOn.Rank()
	case j.gate.Unknown == kiln.PolicyIgnore:
		f.State, f.Reason = kiln.FindingIgnored, "its severity is unknown, which the gate ignores"
	default:
		f.Fails = j.gate.Unknown == kiln.PolicyFail
	}
	return f
}

// ignored says what the gate's ignores make of a finding. One whose time has
// passed leaves it open, and the reason says since when.
func (j *judgement) ignored(f kiln.Finding) (string, kiln.FindingState) {
	expired := ""
	for _, i := range j.gate.Ignore {
		if !is(f, i.ID) {
			continue
		}
		if i.Until.IsZero() {
			return i.Reason, kiln.FindingIgnored
		}
		if j.now.Before(i.Until) {
			return i.Reason + ", until " + day(i.Until), kiln.FindingIgnored
		}
		expired = expiry(i.Until, i.Reason)
	}
	return expired, kiln.FindingOpen
}

func expiry(until time.Time, reason string) string {
	return "its ignore expired on " + day(until) + " (" + reason + ")"
}

// is says whether an advisory is the finding's, by any of its names.
func is(f kiln.Finding, id string) bool {
	return strings.EqualFold(f.ID, id) || slices.ContainsFunc(f.Aliases, func(a string) bool { return strings.EqualFold(a, id) })
}

// compare orders findings, the worst first: what fails, what is open, the
// higher severity, then by every field, so that the order of what came in does
// not show.
func compare(a, b kiln.Finding) int {
	return cmp.Or(
		-cmp.Compare(truth(a.Fails), truth(b.Fails)),
		-cmp.Compare(truth(a.State == kiln.FindingOpen), truth(b.State == kiln.FindingOpen)),
		-cmp.Compare(a.Severity.Rank(), b.Severity.Rank()),
		cmp.Compare(a.Kind, b.Kind),
		cmp.Compare(a.ID, b.ID),
		cmp.Compare(a.Package, b.Package),
		cmp.Compare(a.Version, b.Version),
		cmp.Compare(a.Path, b.Path),
		cmp.Compare(a.Layer, b.Layer),
		cmp.Compare(a.Scanner, b.Scanner),
		cmp.Compare(a.PURL, b.PURL),
		cmp.Compare(a.Title, b.Title),
		cmp.Compare(a.Change, b.Change),
		cmp.Compare(a.State, b.State),
		cmp.Compare(a.Reason, b.Reason),
		cmp.Compare(a.Severity, b.Severity),
		slices.Compare(a.Aliases, b.Aliases),
		slices.Compare(a.FixedIn, b.FixedIn),
	)
}

func truth(b bool) int {
	if b {
		return 1
	}
	return 0
}

// Change says which findings of after are not in before, and which of before
// are not in after, in the order that they have there. A finding stays the same
// when its package is updated and when its advisory goes by another of its
// names.
func Change(before, after []kiln.Finding) (introduced, fixed []kiln.Finding) {
	return without(after, before), without(before, after)
}

// without returns those of a that b has not.
func without(a, b []kiln.Finding) []kiln.Finding {
	there := map[place]bool{}
	for _, f := range b {
		for _, p := range places(f) {
			there[p] = true
		}
	}
	var out []kiln.Finding
	for _, f := range a {
		if !slices.ContainsFunc(places(f), func(p place) bool { return there[p] }) {
			out = append(out, f)
		}
	}
	return out
}

// place is what makes two findings the same.
type place struct {
	kind                  kiln.FindingKind
	id, subject, by, path string
}

// places are a finding's, by each of its names.
func places(f kiln.Finding) []place {
	p := place{kind: f.Kind, subject: f.Package, by: f.Scanner}
	if f.Package == "" {
		p.path = f.Path
	}
	var out []place
	for _, id := range append([]string{f.ID}, f.Aliases...) {
		p.id = id
		out = append(out, p)
	}
	return out
}
