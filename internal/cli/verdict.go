package cli

import (
	"fmt"
	"maps"
	"slices"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/gate"
)

// printVerdicts says in two lines what a gate said of each image, and in a table
// what is to be read. What gates say of several images is said once.
func (a *app) printVerdicts(verdicts map[string]kiln.Verdict) error {
	said := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(verdicts)) {
		if err := a.printVerdict(name, verdicts[name], said); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) printVerdict(name string, v kiln.Verdict, said map[string]bool) error {
	s := a.style(a.Out)
	color := map[kiln.Outcome]string{kiln.OutcomePass: green, kiln.OutcomeFail: red, kiln.OutcomeUnknown: yellow}[v.Outcome]
	if err := a.print("  %s  %s %s\n", s.paint(color, fmt.Sprintf("%-7s", v.Outcome)), s.safe(name), v.Image.Short()); err != nil {
		return err
	}
	lines := []string{gate.Summary(v)}
	for _, reason := range v.Reasons {
		if !said[reason] {
			lines = append(lines, reason)
		}
		said[reason] = true
	}
	lines = append(lines, gate.Table(gate.Notable(v), false)...)
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
