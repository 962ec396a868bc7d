package spec

import (
	"crypto/sha256"
	"encoding/hex"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/hclfile"
)

// defaultEnvironment is the one of a definition that declares none.
const defaultEnvironment = "default"

// maxPatternName leaves room for the branch in the names of environments.
const maxPatternName = 12

// environment is a declared environment with the values of its variables.
type environment struct {
	kiln.Environment
	values map[string]hclfile.Value
	at     hcl.Range
}

const constantEnvironment = "Environments are read before anything else, so their arguments may use functions but refer to nothing."

// environments reads all environment blocks, sorted by name.
func (l *loader) environments() []environment {
	var out []environment
	for _, b := range l.doc.blocks["environment"] {
		d := l.scope.decode(b.Body, nil)
		plain := true
		for _, a := range hclfile.Arguments(b.Body) {
			plain = l.scope.constant(a.Expr, constantEnvironment) && plain
		}
		if !plain {
			continue
		}
		e := environment{Environment: kiln.Environment{Name: b.Labels[0]}, values: map[string]hclfile.Value{}, at: b.DefRange()}
		e.Branch = d.Checked("branch", "Invalid branch", badBranch)
		for _, i := range d.List("branches") {
			if problem := badPattern(i.Text); problem != "" {
				l.report.Error(i.At, "Invalid pattern", "%q %s", i.Text, problem)
				continue
			}
			e.Branches = append(e.Branches, i.Text)
		}
		e.TTL = d.Duration("ttl", 0, time.Minute, 8760*time.Hour)
		l.repave(d, &e)
		l.environmentRules(d, e)
		e.values = l.environmentValues(d)
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b environment) int { return compare(a.Name, b.Name) })
	return out
}

// repave reads who repaves an environment. What is the default is not said, so
// that it is in no JSON.
func (l *loader) repave(d *decoder, e *environment) {
	_, text, _ := d.Text("repave")
	switch policy := kiln.RepavePolicy(text); policy {
	case kiln.RepaveAuto:
		e.Repave = policy
		e.RepaveEvery = d.Duration("repave_every", 6*time.Hour, time.Hour, 720*time.Hour)
	case "", kiln.RepaveManual:
		if d.Has("repave_every") {
			l.report.Error(d.At("repave_every"), "Conflicting arguments", "repave_every is for repave = \"auto\"; nobody else repaves by a clock.")
		}
	default:
		l.report.Error(d.At("repave"), "Invalid policy", "repave is \"manual\" or \"auto\", not %q.", policy)
	}
}

func (l *loader) environmentRules(d *decoder, e environment) {
	if d.Has("branch") && d.Has("branches") {
		l.report.Error(d.At("branches"), "Conflicting arguments", "An environment has either branch or branches.")
	}
	if a, ok := d.Value("branches"); ok && a.CanIterateElements() && a.LengthInt() == 0 {
		l.report.Error(d.At("branches"), "Invalid pattern", "branches is empty: no branch would ever match.")
	}
	if d.Has("branches") && len(e.Name) > maxPatternName {
		l.report.Error(e.at, "Invalid name", "The name of an environment with branches has at most %d characters, because the branch becomes part of it.", maxPatternName)
	}
	if d.Has("ttl") && !d.Has("branches") {
		l.report.Error(d.At("ttl"), "Conflicting arguments", "Only environments of branches end by themselves; ttl needs branches.")
	}
}

// environmentValues reads the values argument, by variable.
func (l *loader) environmentValues(d *decoder) map[string]hclfile.Value {
	out := map[string]hclfile.Value{}
	a, ok := d.Value("values")
	if !ok {
		return out
	}
	if ty := a.Type(); !ty.IsObjectType() && !ty.IsMapType() {
		l.report.Error(a.At, "Unsuitable value", "values must be a map of variables' values: { name = value }.")
		return out
	}
	places := d.KeyPlaces("values")
	for it := a.ElementIterator(); it.Next(); {
		k, v := it.Element()
		name := k.AsString()
		at, ok := places[name]
		if !ok {
			at = a.At
		}
		if l.doc.named("variable", name) == nil {
			l.scope.unknown(at, "variable", name, l.doc.names("variable"))
			continue
		}
		out[name] = hclfile.Value{Value: v, At: at}
	}
	return out
}

func badBranch(s string) string {
	switch {
	case s == "" || len(s) > 250 || strings.HasPrefix(s, "-") || strings.HasPrefix(s, "/") || strings.HasSuffix(s, "/") ||
		strings.Contains(s, "..") || strings.Contains(s, "//") || strings.Contains(s, "@{"):
		return "is not the name of a branch."
	case strings.ContainsAny(s, " ~^:?*[\\\x7f") || strings.IndexFunc(s, func(r rune) bool { return r < ' ' }) >= 0:
		return "is not the name of a branch. For patterns, use branches = [...]."
	}
	return ""
}

func badPattern(s string) string {
	if _, err := path.Match(s, ""); err != nil || s == "" || len(s) > 250 {
		return "is not a pattern. * matches all but /, ? one character, [a-z] one of a set."
	}
	return ""
}

// choose returns the environment that the definition is evaluated for.
func (l *loader) choose(all []environment) (environment, bool) {
	name := l.opt.Environment
	if name == "" {
		return l.only(all)
	}
	for _, e := range all {
		if e.Name == name && len(e.Branches) == 0 {
			return e, true
		}
	}
	for _, e := range all {
		if len(e.Branches) == 0 || e.Name != name && Derived(e.Name, l.opt.Branch) != name {
			continue
		}
		return l.derive(e, all)
	}
	if len(all) > 0 {
		l.report.Error(hcl.Range{}, "Unknown environment", "The definition has no environment %q.%s", name, hclfile.Suggest(name, environmentNames(all)))
		return environment{}, false
	}
	if problem := badName("environment", name); problem != "" {
		l.report.Error(hcl.Range{}, "Invalid name", "%s", problem)
		return environment{}, false
	}
	return environment{Environment: kiln.Environment{Name: name}}, true
}

// only chooses where none is named.
func (l *loader) only(all []environment) (environment, bool) {
	if len(all) == 0 {
		return environment{Environment: kiln.Environment{Name: defaultEnvironment}}, true
	}
	var single []environment
	for _, e := range all {
		if len(e.Branches) == 0 {
			single = append(single, e)
		}
	}
	if len(single) == 1 {
		return single[0], true
	}
	l.report.Error(hcl.Range{}, "Which environment?", "The definition declares several environments: %s. Name one of them.", strings.Join(environmentNames(all), ", "))
	return environment{}, false
}

// derive makes the environment of the present branch from one with patterns.
func (l *loader) derive(e environment, all []environment) (environment, bool) {
	branch := l.opt.Branch
	if branch == "" {
		l.report.Error(e.at, "No branch", "Environment %q is one of many, one per branch, and the branch is not known: the folder is not a Git checkout, or its HEAD is detached.", e.Name)
		return environment{}, false
	}
	if !MatchesBranch(e.Environment, branch) {
		l.report.Error(e.at, "Branch does not match", "Environment %q is for branches that match %s; %q does not.", e.Name, strings.Join(e.Branches, ", "), branch)
		return environment{}, false
	}
	name := Derived(e.Name, branch)
	if i := slices.IndexFunc(all, func(o environment) bool { return o.Name == name }); i >= 0 {
		l.report.Error(all[i].at, "Ambiguous environment", "Branch %q of environment %q makes the name %q, which is declared here too. Rename one.", branch, e.Name, name)
		return environment{}, false
	}
	e.Name, e.Branch = name, branch
	return e, true
}

func environmentNames(all []environment) []string {
	var out []string
	for _, e := range all {
		out = append(out, e.Name)
	}
	return out
}

// MatchesBranch says whether an environment is for a branch: bound to it, or
// by one of its patterns.
func MatchesBranch(e kiln.Environment, branch string) bool {
	if branch == "" {
		return false
	}
	if len(e.Branches) == 0 {
		return e.Branch == branch
	}
	return slices.ContainsFunc(e.Branches, func(pattern string) bool {
		ok, err := path.Match(pattern, branch)
		return ok && err == nil
	})
}

// Following reads which environments of the definition in the root of fsys a
// branch is brought up in: all that are bound to it; where there is none, the
// first by name with a pattern that matches, with its name derived and bound to
// the branch. One that names no branch follows none. Errors are those of Load.
func Following(fsys fs.FS, branch string) ([]kiln.Environment, error) {
	l := newLoader(fsys, Options{Branch: branch})
	declared, there := l.declared()
	if l.report.Failed() {
		return nil, invalid(l.report.List())
	}
	if !there {
		return nil, noDefinition()
	}
	return following(declared, branch), nil
}

// declared reads the environments alone.
func (l *loader) declared() (out []kiln.Environment, there bool) {
	defer recovered(l.report, hcl.Range{})
	l.doc = readDocument(l.files, l.report)
	if l.doc == nil || l.doc.broken {
		return nil, l.doc != nil
	}
	l.scope = newScope(l.doc, l.files, l.report)
	for _, e := range l.environments() {
		out = append(out, e.Environment)
	}
	return out, true
}

func following(declared []kiln.Environment, branch string) []kiln.Environment {
	var out []kiln.Environment
	for _, e := range declared {
		if len(e.Branches) == 0 && MatchesBranch(e, branch) {
			out = append(out, e)
		}
	}
	for _, e := range declared {
		if len(out) == 0 && len(e.Branches) > 0 && MatchesBranch(e, branch) {
			e.Name, e.Branch = Derived(e.Name, branch), branch
			out = append(out, e)
		}
	}
	return out
}

// Derived is the name of the environment of one branch: "preview-feature-x"
// for "preview" and "feature/x". A branch that is not plain words between
// slashes, or is too long, gets six digits of its hash at the end, so that two
// branches never share a name.
func Derived(name, branch string) string {
	joined := name + "-" + strings.ReplaceAll(branch, "/", "-")
	if matches(`[a-z0-9]+(/[a-z0-9]+)*`, branch) && len(joined) <= maxName {
		return joined
	}
	hash := sha256.Sum256([]byte(branch))
	suffix := "-" + hex.EncodeToString(hash[:3])
	slug := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.ToLower(joined))
	for strings.Contains(slug, "--") {
		slug = strings.ReplaceAll(slug, "--", "-")
	}
	return strings.TrimRight(slug[:min(len(slug), maxName-len(suffix))], "-") + suffix
}

// environmentValue is never sensitive; variables mark it when they are.
func (e environment) value(name string) (cty.Value, hcl.Range, bool) {
	a, ok := e.values[name]
	return a.Value, a.At, ok
}
