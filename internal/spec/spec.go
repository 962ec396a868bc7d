// Package spec reads a definition, the *.hcl files of one folder, into a
// kiln.Spec: it parses, evaluates for one environment, and checks. It also
// holds the definition's canonical format and the lock file.
//
// It reads through an fs.FS and nothing else: no clock, no process
// environment, no network, no randomness, so that the same files and values
// give the same Spec everywhere. Definitions may come from strangers: sizes,
// nesting and the work of evaluation are bounded (see limit.go and meter.go),
// and whatever is wrong comes back as diagnostics with their places.
package spec

import (
	"encoding/json"
	"io/fs"
	"slices"
	"sort"
	"strings"

	"github.com/hashicorp/hcl/v2"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/hclfile"
)

// Options say what a definition is evaluated for.
type Options struct {
	// Environment is a declared environment, or the derived name of one of a
	// declared pattern. Empty means the only one without branches, or
	// "default" when the definition declares none.
	Environment string
	// Branch is the branch that the tree is of; empty outside of Git. It
	// selects the environment when Environment names one with branches.
	Branch string
	// Values are variables' values as JSON, by name. They win over those that
	// the environment gives. A JSON string is converted to the variable's
	// type: "3" is a number where a number is wanted.
	Values map[string]json.RawMessage
}

// Definition is a definition evaluated for one environment.
type Definition struct {
	Spec kiln.Spec
	// Values are all variables' final values as JSON, by name.
	Values map[string]json.RawMessage
	// Environment is the one that the definition was evaluated for. For one of
	// a pattern, Name is derived and Branch is Options.Branch.
	Environment kiln.Environment
	Warnings    kiln.Diagnostics
}

// Load reads the definition in the root of fsys. Files are read from fsys
// only; give it os.Root's FS, so that no symbolic link leads out.
//
// The error is a *kiln.Error: code not_found where there is no definition,
// else invalid with every diagnostic that was found.
func Load(fsys fs.FS, opt Options) (*Definition, error) {
	l := newLoader(fsys, opt)
	def := l.load()
	diags := l.report.List()
	if l.report.Failed() {
		return nil, invalid(diags)
	}
	if def == nil {
		return nil, noDefinition()
	}
	def.Warnings = diags
	return def, nil
}

func noDefinition() error {
	return kiln.Errorf(kiln.CodeNotFound, "write one with `kiln init`", "there is no definition here: no *.hcl file")
}

func invalid(diags kiln.Diagnostics) *kiln.Error { return hclfile.Invalid("the definition", diags) }

// Contexts returns the folders that a spec's images are baked from, sorted,
// without repeats and without those inside another.
func Contexts(s kiln.Spec) []string {
	var all []string
	for _, image := range s.Images {
		if image.Dockerfile != nil {
			all = append(all, image.Dockerfile.Context)
		}
	}
	sort.Strings(all)
	all = slices.Compact(all)
	if slices.Contains(all, ".") {
		return []string{"."}
	}
	var out []string
	for _, path := range all {
		inside := slices.ContainsFunc(out, func(parent string) bool { return strings.HasPrefix(path, parent+"/") })
		if !inside {
			out = append(out, path)
		}
	}
	return out
}

// loader is one run of Load.
type loader struct {
	files  *folder
	opt    Options
	report *hclfile.Report
	doc    *document
	scope  *scope
	vex    map[string]bool // OpenVEX documents that were checked, and whether they are sound
}

func newLoader(fsys fs.FS, opt Options) *loader {
	r := &hclfile.Report{}
	return &loader{files: newFolder(fsys), opt: opt, report: r, vex: map[string]bool{}}
}

// load returns nil where there is nothing to load, or when the report failed.
func (l *loader) load() (def *Definition) {
	defer recovered(l.report, hcl.Range{})
	l.doc = readDocument(l.files, l.report)
	if l.doc == nil || l.doc.broken {
		return nil
	}
	l.scope = newScope(l.doc, l.files, l.report)
	before := l.report.Errors()
	environments := l.environments()
	if l.report.Errors() > before {
		return nil
	}
	environment, ok := l.choose(environments)
	if !ok {
		return nil
	}
	l.scope.environment = &environment.Environment
	values := l.variables(environment)
	l.scope.evaluateLocals()
	def = &Definition{Values: values, Environment: environment.Environment}
	def.Spec.Images = l.images()
	def.Spec.Services = l.services()
	def.Spec.Routes = l.routes(def.Spec.Services)
	for _, e := range environments {
		def.Spec.Environments = append(def.Spec.Environments, e.Environment)
	}
	l.scope.checkValidations()
	def.Spec.Files = l.files.read()
	return def
}
