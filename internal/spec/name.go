package spec

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

const maxName = 24

// badName returns what is wrong with a label, or nothing. Titles are words for
// people, variables are identifiers, advisories have their publisher's; everything else becomes part of host names and paths.
func badName(kind, name string) string {
	if kind == "title" {
		if name == "" || utf8.RuneCountInString(name) > 60 || strings.IndexFunc(name, unicode.IsControl) >= 0 {
			return fmt.Sprintf("%q is not a title: up to 60 characters of one line.", name)
		}
		return ""
	}
	if kind == "advisory" {
		return badAdvisory(name)
	}
	if kind == "trust" { // as kilnd.hcl has it
		if len(name) > 40 || !matches(`[a-z0-9]([a-z0-9._-]*[a-z0-9])?`, name) {
			return fmt.Sprintf("%q is not the name of a trust block: up to 40 lower-case letters, digits, dots, dashes and underscores.", name)
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

func badAdvisory(name string) string {
	switch {
	case strings.HasPrefix(name, "lint/"):
		return fmt.Sprintf("%q is a rule of the lint: write allow %q { reason = \"...\" }.", name, name)
	case len(name) > 100 || !matches(`[A-Za-z0-9][A-Za-z0-9._:-]*`, name):
		return fmt.Sprintf("%q is not the identifier of an advisory. Write it as the finding shows it: \"CVE-2024-3094\", \"GO-2023-2102\".", name)
	}
	return ""
}

// matches says whether all of s matches a pattern.
func matches(pattern, s string) bool {
	return regexp.MustCompile(`\A(?:` + pattern + `)\z`).MatchString(s)
}

func hasNUL(s string) bool { return strings.ContainsRune(s, 0) }

func compare(a, b string) int { return strings.Compare(a, b) }

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
