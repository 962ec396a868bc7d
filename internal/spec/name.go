package spec

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/agext/levenshtein"
	"github.com/hashicorp/hcl/v2"
)

const maxName = 24

// badName returns what is wrong with a label, or nothing. Titles are words for
// people, variables are identifiers; everything else becomes part of host names and paths.
func badName(kind, name string) string {
	if kind == "title" {
		if name == "" || utf8.RuneCountInString(name) > 60 || strings.IndexFunc(name, unicode.IsControl) >= 0 {
			return fmt.Sprintf("%q is not a title: up to 60 characters of one line.", name)
		}
		return ""
	}
	if kind == "variable" {
		if len(name) > 64 || !matches(`[a-z_][a-z0-9_]*`, name) {
			return fmt.Sprintf("%q is not a variable's name: up to 64 lower-case letters, digits and underscores, not beginning with a digit.", name)
		}
		return ""
	}
	if len(name) > maxName || !matches(`[a-z][a-z0-9-]*`, name) {
		return fmt.Sprintf("%q is not a name: up to %d lower-case letters, digits and dashes, beginning with a letter and not ending with a dash.", name, maxName)
	}
	return ""
}

// matches says whether all of s matches a pattern.
func matches(pattern, s string) bool {
	return regexp.MustCompile(`\A(?:` + pattern + `)\z`).MatchString(s)
}

// suggest returns " Did you mean ...?" when a candidate is near, or else the
// list of candidates when it is short.
func suggest(given string, candidates []string) string {
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

// place names a range for a sentence.
func place(r hcl.Range) string { return fmt.Sprintf("%s:%d", r.Filename, r.Start.Line) }
