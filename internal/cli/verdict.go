package cli

import (
	"fmt"
	"maps"
	"slices"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/gate"
)

// printVerdicts says in two lines what a gate said of each image, and in a table
// what it found.
func (a *app) printVerdicts(verdicts map[string]kiln.Verdict) error {
	for _, name := range slices.Sorted(maps.Keys(verdicts)) {
		if err := a.printVerdict(name, verdicts[name]); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) printVerdict(name string, v kiln.Verdict) error {
	s := a.style(a.Out)
	color := map[kiln.Outcome]string{kiln.OutcomePass: green, kiln.OutcomeFail: red, kiln.OutcomeUnknown: yellow}[v.Outcome]
	if err := a.print("  %s  %s %s\n", s.paint(color, fmt.Sprintf("%-7s", v.Outcome)), s.safe(name), v.Image.Short()); err != nil {
		return err
	}
	lines := append([]string{gate.Summary(v)}, v.Reasons...)
	lines = append(lines, gate.Table(v.Findings, false)...)
	if v.Outcome != kiln.OutcomePass && v.Hint != "" {
		lines = append(lines, "hint: "+v.Hint)
	}
	for _, line := range lines {
		if err := a.print("           %s\n", s.paint(dim, s.safe(line))); err != nil {
			return err
		}
	}
	return nil
}
