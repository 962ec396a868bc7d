package hclfile

import (
	"fmt"
	"slices"
	"strings"

	"github.com/agext/levenshtein"
	"github.com/hashicorp/hcl/v2"
)

// Suggest returns " Did you mean ...?" when a candidate is near, or else the
// list of candidates when it is short.
func Suggest(given string, candidates []string) string {
	candidates = slices.Clone(candidates)
	slices.Sort(candidates)
	near := max(2, len(given)/3)
	if len(given) <= 3 { // "env" is not a misspelt "int"
		near = 1
	}
	best, distance := "", near+1
	for _, c := range candidates {
		if d := levenshtein.Distance(given, c, nil); d < distance && d < len(c) {
			best, distance = c, d
		}
	}
	switch {
	case best != "":
		return fmt.Sprintf(" Did you mean %q?", best)
	case len(candidates) == 0:
		return " None is defined."
	case len(candidates) <= 20:
		return " There are: " + strings.Join(candidates, ", ") + "."
	}
	return ""
}

// Place names a range for a sentence.
func Place(r hcl.Range) string { return fmt.Sprintf("%s:%d", r.Filename, r.Start.Line) }
