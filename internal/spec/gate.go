package spec

import (
	"cmp"
	"path"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/gate"
	"github.com/kilnproject/kiln/internal/hclfile"
)

const (
	maxVEX     = 100 // documents of one gate
	maxReason  = 300 // characters
	maxSigners = 20  // of one gate
)

// gateSaid is what one gate block says: its values, and which arguments it
// writes.
type gateSaid struct {
	kiln.Gate
	says map[string]bool
}

// gate reads the gate of the definition. It may stand once in all files.
func (l *loader) gate() gateSaid {
	blocks := l.doc.blocks["gate"]
	if len(blocks) == 0 {
		return gateSaid{}
	}
	for _, b := range blocks[1:] {
		l.report.Error(b.DefRange(), "Duplicate block", "There is a gate block at %s already; one is allowed here.", hclfile.Place(blocks[0].DefRange()))
	}
	return l.gateBlock(l.scope.decode(blocks[0].Body, nil))
}

// over lays an image's gate over the definition's: argument by argument, while
// blocks add up. Of two about the same the image's holds.
func over(all, own gateSaid) kiln.Gate {
	out := kiln.DefaultGate()
	for _, g := range []gateSaid{all, own} {
		if g.says["fail_on"] {
			out.FailOn = g.FailOn
		}
		if g.says["unknown"] {
			out.Unknown = g.Unknown
		}
		if g.says["only_fixable"] {
			out.OnlyFixable = g.OnlyFixable
		}
		if g.says["max_db_age"] {
			out.MaxDBAge = g.MaxDBAge
		}
		if g.says["no_database"] {
			out.NoDatabase = g.NoDatabase
		}
		if g.says["vex"] {
			out.VEX = g.VEX
		}
		if g.says["signed_by"] {
			out.SignedBy = g.SignedBy
		}
	}
	out.Ignore = lay(all.Ignore, own.Ignore, func(a, b kiln.GateIgnore) int { return compare(a.ID, b.ID) })
	out.Allow = lay(all.Allow, own.Allow, func(a, b kiln.GateAllow) int { return cmp.Or(compare(a.Rule, b.Rule), compare(a.Path, b.Path)) })
	out.Scanners = lay(all.Scanners, own.Scanners, func(a, b kiln.GateScanner) int { return compare(a.Name, b.Name) })
	return out
}

// lay returns the sorted union of two lists; of equal ones the second's.
func lay[T any](below, above []T, order func(a, b T) int) []T {
	out := slices.Clone(above)
	for _, b := range below {
		if !slices.ContainsFunc(above, func(a T) bool { return order(a, b) == 0 }) {
			out = append(out, b)
		}
	}
	slices.SortFunc(out, order)
	return out
}

// gateBlock reads one gate block.
func (l *loader) gateBlock(d *decoder) gateSaid {
	out := gateSaid{says: map[string]bool{}}
	for name := range d.Body.Attributes {
		if a, ok := d.Value(name); ok && !a.IsNull() {
			out.says[name] = true
		}
	}
	out.FailOn = severity(d)
	out.Unknown = policy(d, "unknown", kiln.PolicyWarn, kiln.PolicyFail, kiln.PolicyWarn, kiln.PolicyIgnore)
	out.OnlyFixable = d.Bool("only_fixable", false)
	out.MaxDBAge = d.Duration("max_db_age", 0, time.Hour, 8760*time.Hour)
	out.NoDatabase = policy(d, "no_database", kiln.PolicyFail, kiln.PolicyFail, kiln.PolicyWarn)
	out.VEX = l.vexDocuments(d)
	if out.says["signed_by"] {
		out.SignedBy = signedBy(d)
	}
	hclfile.CheckUnique("ignore", d.Blocks("ignore", 1), d.report)
	hclfile.CheckUnique("scanner", d.Blocks("scanner", 1), d.report)
	for _, b := range d.Blocks("ignore", 1) {
		inner := d.decode(b.Body, d.each)
		out.Ignore = append(out.Ignore, kiln.GateIgnore{ID: b.Labels[0], Until: until(inner), Reason: reason(inner)})
	}
	for _, b := range d.Blocks("allow", 1) {
		out.Allow = append(out.Allow, allow(d, b, out.Allow))
	}
	for _, b := range d.Blocks("scanner", 1) {
		inner := d.decode(b.Body, d.each)
		s := kiln.GateScanner{Name: b.Labels[0]}
		if _, ok := inner.Value("fail_on"); ok {
			s.FailOn = severity(inner)
		}
		out.Scanners = append(out.Scanners, s)
	}
	return out
}

func severity(d *decoder) kiln.Severity {
	s := d.Checked("fail_on", "Invalid severity", func(s string) string {
		if kiln.Severity(s).Rank() <= 0 {
			return "is not a severity that a gate can fail on. There are: low, medium, high, critical. For those that nobody rated, write unknown = \"fail\"."
		}
		return ""
	})
	return kiln.Severity(cmp.Or(s, string(kiln.SeverityHigh)))
}

func policy(d *decoder, name string, otherwise kiln.GatePolicy, known ...kiln.GatePolicy) kiln.GatePolicy {
	s := d.Checked(name, "Invalid policy", func(s string) string {
		if slices.Contains(known, kiln.GatePolicy(s)) {
			return ""
		}
		var words []string
		for _, p := range known {
			words = append(words, string(p))
		}
		return "is not what " + name + " can be. There are: " + strings.Join(words, ", ") + "."
	})
	return kiln.GatePolicy(cmp.Or(s, string(otherwise)))
}

func allow(d *decoder, b *hclsyntax.Block, before []kiln.GateAllow) kiln.GateAllow {
	inner := d.decode(b.Body, d.each)
	out := kiln.GateAllow{Rule: b.Labels[0], Path: inner.Checked("path", "Invalid path", badAllowPath), Reason: reason(inner)}
	if slices.ContainsFunc(before, func(a kiln.GateAllow) bool { return a.Rule == out.Rule && a.Path == out.Path }) {
		d.report.Error(b.DefRange(), "Duplicate allow", "%s is allowed there already by another block.", out.Rule)
	}
	return out
}

func badAllowPath(s string) string {
	if _, err := path.Match(s, ""); err != nil || !path.IsAbs(s) || path.Clean(s) != s || hasNUL(s) {
		return "is not an absolute path of the image. Write it as the finding shows it; * matches all but /."
	}
	return ""
}

// until reads the day from which an ignore counts no longer.
func until(d *decoder) time.Time {
	var out time.Time
	d.Checked("until", "Invalid date", func(s string) string {
		t, err := time.Parse(time.DateOnly, s)
		if err != nil {
			return "is not a day. Write year, month and day: \"2027-01-31\"."
		}
		out = t
		return ""
	})
	return out
}

func reason(d *decoder) string {
	before := d.report.Errors()
	a, s, ok := d.Text("reason")
	switch {
	case !ok && (!d.Has("reason") || d.report.Errors() > before):
		return "" // reported

	case a.Sensitive:
		d.report.Error(a.At, "Sensitive reason", "The reason is made from a sensitive variable, and every verdict shows it.")
		return ""
	case strings.TrimSpace(s) == "" || utf8.RuneCountInString(s) > maxReason || strings.IndexFunc(s, unicode.IsControl) >= 0:
		d.report.Error(d.At("reason"), "Invalid reason", "Say in one line of at most %d characters why the gate may let it pass.", maxReason)
		return ""
	}
	return strings.TrimSpace(s)
}

// signedBy reads whose signature an image must have. An empty list would be read
// as nobody's by one and as anybody's by another.
func signedBy(d *decoder) []string {
	var out []string
	items := d.List("signed_by")
	if len(items) == 0 || len(items) > maxSigners {
		d.report.Error(d.At("signed_by"), "Unsuitable list", "Name 1 to %d of those whom a trust block of kilnd.hcl names. Without the argument nobody's signature is asked for.", maxSigners)
		return nil
	}
	for _, i := range items {
		if problem := badName("trust", i.Text); problem != "" {
			d.report.Error(i.At, "Invalid name", "%s", problem)
			continue
		}
		out = append(out, i.Text)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// vexDocuments reads the vex argument and checks the documents, which become
// part of the definition.
func (l *loader) vexDocuments(d *decoder) []string {
	var out []string
	items := d.List("vex")
	if len(items) > maxVEX {
		d.report.Error(d.At("vex"), "Too many documents", "A gate names at most %d OpenVEX documents.", maxVEX)
		return nil
	}
	for _, i := range items {
		if problem := badTreePath(i.Text); problem != "" {
			d.report.Error(i.At, "Invalid path", "%s %s", i.Whole.Show(i.Text), problem)
			continue
		}
		if name := path.Clean(i.Text); l.soundVEX(name, i.At) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// soundVEX reads a document once, whatever names it, and says whether it is
// one.
func (l *loader) soundVEX(name string, at hcl.Range) bool {
	if sound, ok := l.vex[name]; ok {
		return sound
	}
	l.vex[name] = false
	content, err := l.files.file(name)
	if err != nil {
		l.report.Error(at, "Cannot read the OpenVEX document", "%s: %s.", name, err)
		return false
	}
	if _, err := gate.ParseVEX(name, content); err != nil {
		l.report.Error(at, "Not an OpenVEX document", "%s. Write it with vexctl, or as openvex.dev says.", err)
		return false
	}
	l.vex[name] = true
	return true
}
