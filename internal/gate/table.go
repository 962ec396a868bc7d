package gate

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/kilnproject/kiln"
)

// Table is the findings as lines that people read: what, how bad, where, and
// what to do. Those that do not count are left out, unless all is set.
func Table(findings []kiln.Finding, all bool) []string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	rows := 0
	_, _ = fmt.Fprintln(w, "SEVERITY\tFINDING\tWHERE\tFIXED IN\tWHAT TO DO")
	for _, f := range findings {
		if f.State != kiln.FindingOpen && !all {
			continue
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", severity(f), f.ID, Where(f), fixed(f), advice(f))
		rows++
	}
	if rows == 0 {
		return nil
	}
	_ = w.Flush() // into memory
	lines := strings.Split(strings.TrimRight(b.String(), "\n"), "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	return lines
}

// Notable are the findings that a verdict should be read with: all where it does
// not pass, and otherwise those that count and are more than a remark.
func Notable(v kiln.Verdict) []kiln.Finding {
	if v.Outcome != kiln.OutcomePass {
		return v.Findings
	}
	return slices.DeleteFunc(slices.Clone(v.Findings), func(f kiln.Finding) bool {
		return f.State != kiln.FindingOpen || f.Severity == kiln.SeverityLow
	})
}

// severity has a mark where the gate fails because of the finding.
func severity(f kiln.Finding) string {
	if f.Fails {
		return string(f.Severity) + "!"
	}
	return string(f.Severity)
}

// Where says which package and which path of the image a finding is about.
func Where(f kiln.Finding) string {
	var parts []string
	if f.Package != "" {
		parts = append(parts, strings.TrimSpace(f.Package+" "+f.Version))
	}
	if f.Path != "" {
		parts = append(parts, f.Path)
	}
	if f.Layer != "" {
		parts = append(parts, "layer "+f.Layer.Short())
	}
	return strings.Join(parts, ", ")
}

func fixed(f kiln.Finding) string {
	if len(f.FixedIn) == 0 {
		return "-"
	}
	return f.FixedIn[0]
}

func advice(f kiln.Finding) string {
	if f.State != kiln.FindingOpen {
		return string(f.State) + ": " + f.Reason
	}
	return cmp.Or(f.Change, f.Title)
}

// Summary says in one line what a verdict says.
func Summary(v kiln.Verdict) string {
	open := map[kiln.Severity]int{}
	passed := 0
	for _, f := range v.Findings {
		if f.State == kiln.FindingOpen {
			open[f.Severity]++
		} else {
			passed++
		}
	}
	var parts []string
	for _, s := range slices.Backward(kiln.Severities()) {
		if n := open[s]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, s))
		}
	}
	text := fmt.Sprintf("%d packages, no finding", v.Packages)
	if len(parts) > 0 {
		text = fmt.Sprintf("%d packages, findings: %s", v.Packages, strings.Join(parts, ", "))
	}
	if passed > 0 {
		text += fmt.Sprintf(" (%d let pass)", passed)
	}
	switch {
	case v.Database == "":
		return text + "; no database"
	case v.Dated.IsZero(): // there was nothing to ask it
		return fmt.Sprintf("%s; database %s", text, v.Database.Short())
	}
	return fmt.Sprintf("%s; database %s of %s", text, v.Database.Short(), v.Dated.UTC().Format("2006-01-02"))
}
