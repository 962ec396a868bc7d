package bake

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/bake/buildkit"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

// recipe is a parsed Dockerfile: what it needs from outside.
type recipe struct {
	source []byte
	stages []instructions.Stage
	args   []instructions.ArgCommand // before the first FROM
	escape rune
}

// readRecipe parses the Dockerfile of an image.
func readRecipe(image kiln.Image, context *folder) (*recipe, error) {
	file := path.Clean(image.Dockerfile.File)
	source, err := context.read(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, kiln.Errorf(kiln.CodeNotFound, "Set file to the Dockerfile's path below the context.",
			"image %q: there is no %s in the context %q", image.Name, file, image.Dockerfile.Context)
	}
	if err != nil {
		return nil, err
	}
	ast, err := parser.Parse(bytes.NewReader(source))
	if err != nil {
		return nil, syntaxError(image, source, err)
	}
	stages, args, err := instructions.Parse(ast.AST, &linter.Linter{})
	if err != nil {
		return nil, syntaxError(image, source, err)
	}
	if len(stages) == 0 {
		return nil, syntaxError(image, source, errors.New("there is no FROM in it"))
	}
	return &recipe{source: source, stages: stages, args: args, escape: ast.EscapeToken}, nil
}

// syntaxError shows the line of the Dockerfile.
func syntaxError(image kiln.Image, source []byte, err error) error {
	file := path.Join(image.Dockerfile.Context, image.Dockerfile.File)
	e := kiln.Errorf(kiln.CodeInvalid, "Correct "+file+".", "image %q: %w", image.Name, err)
	d := kiln.Diagnostic{Severity: "error", Summary: "Dockerfile cannot be read", Detail: err.Error(), File: file}
	var at *parser.LocationError
	if errors.As(err, &at) && len(at.Locations) > 0 {
		d = onLine(d, source, at.Locations[0])
	}
	e.Diagnostics = []kiln.Diagnostic{d}
	return e
}

// onLine adds the line of the Dockerfile that a diagnostic is about.
func onLine(d kiln.Diagnostic, source []byte, at []parser.Range) kiln.Diagnostic {
	if len(at) == 0 {
		return d
	}
	d.Line = at[0].Start.Line
	if lines := strings.Split(string(source), "\n"); d.Line >= 1 && d.Line <= len(lines) {
		d.Snippet = lines[d.Line-1]
	}
	return d
}

// references returns the images of registries that the target needs, as they
// are written, sorted: FROM, COPY --from and RUN --mount=from that name
// neither a stage nor a context of the definition.
func (r *recipe) references(image kiln.Image) ([]string, error) {
	target, err := r.target(image)
	if err != nil {
		return nil, err
	}
	found := map[string]bool{}
	seen := map[int]bool{}
	todo := []int{target}
	for len(todo) > 0 {
		i := todo[0]
		todo = todo[1:]
		if seen[i] {
			continue
		}
		seen[i] = true
		names, stages, err := r.needs(image, i)
		if err != nil {
			return nil, err
		}
		todo = append(todo, stages...)
		for _, name := range names {
			if isContext(image, name) { // in the place of a stage of that name, too
				continue
			}
			if n, ok := r.stage(name, i); ok {
				todo = append(todo, n)
			} else if name != "scratch" {
				found[name] = true
			}
		}
	}
	out := make([]string, 0, len(found))
	for name := range found {
		out = append(out, name)
	}
	slices.Sort(out)
	return out, nil
}

// isContext says whether BuildKit finds what FROM or --from names among the
// image's contexts: "base" is also "base:latest".
func isContext(image kiln.Image, name string) bool {
	want, err := buildkit.ContextName(name)
	if err != nil {
		return false // no name of an image, so a stage's
	}
	for context := range image.Dockerfile.Contexts {
		if have, err := buildkit.ContextName(context); err == nil && have == want {
			return true
		}
	}
	return false
}

// target returns the index of the stage that is baked.
func (r *recipe) target(image kiln.Image) (int, error) {
	name := image.Dockerfile.Target
	if name == "" {
		return len(r.stages) - 1, nil
	}
	if i, ok := r.stage(name, len(r.stages)); ok {
		return i, nil
	}
	return 0, kiln.Errorf(kiln.CodeInvalid, "Name one of the Dockerfile's stages.", "image %q: the Dockerfile has no stage %q", image.Name, name)
}

// stage finds the stage of a name among those before the given one.
func (r *recipe) stage(name string, before int) (int, bool) {
	for i := min(before, len(r.stages)) - 1; i >= 0; i-- {
		if r.stages[i].Name != "" && strings.EqualFold(r.stages[i].Name, name) {
			return i, true
		}
	}
	return 0, false
}

// needs returns what stage i is made from: its base and what it copies or
// mounts from, by name, and the stages that it gives by number.
func (r *recipe) needs(image kiln.Image, i int) (names []string, stages []int, err error) {
	base, err := r.expand(image, r.stages[i].BaseName)
	if err != nil {
		return nil, nil, syntaxError(image, r.source, fmt.Errorf("FROM %s: %w", r.stages[i].BaseName, err))
	}
	all := []string{base}
	for _, c := range r.stages[i].Commands {
		switch c := c.(type) {
		case *instructions.CopyCommand:
			all = append(all, c.From)
		case *instructions.RunCommand:
			if err := r.allowed(image, c); err != nil {
				return nil, nil, err
			}
			for _, m := range instructions.GetMounts(c) { // from= has no variables
				all = append(all, m.From)
			}
		}
	}
	for _, name := range all {
		n, err := strconv.Atoi(name)
		switch {
		case name == "":
		case err != nil:
			names = append(names, name)
		case n < 0 || n >= i:
			return nil, nil, kiln.Errorf(kiln.CodeInvalid, "Name a stage before it.", "image %q: --from=%d is not an earlier stage", image.Name, n)
		default:
			stages = append(stages, n)
		}
	}
	return names, stages, nil
}

// expand substitutes the arguments that are known before the first stage.
func (r *recipe) expand(image kiln.Image, word string) (string, error) {
	lex := shell.NewLex(r.escape)
	env := platformArgs(image.Platform)
	for _, cmd := range r.args {
		for _, a := range cmd.Args {
			value, given := image.Dockerfile.Args[a.Key]
			if !given && a.Value != nil {
				v, _, err := lex.ProcessWord(*a.Value, shell.EnvsFromSlice(env))
				if err != nil {
					return "", err
				}
				value, given = v, true
			}
			if given {
				env = append(env, a.Key+"="+value)
			}
		}
	}
	out, _, err := lex.ProcessWord(word, shell.EnvsFromSlice(env))
	return out, err
}

// platformArgs are the arguments that BuildKit sets by itself.
func platformArgs(platform string) []string {
	os, rest, _ := strings.Cut(platform, "/")
	arch, variant, _ := strings.Cut(rest, "/")
	var env []string
	for _, side := range []string{"TARGET", "BUILD"} {
		env = append(env, side+"PLATFORM="+platform, side+"OS="+os, side+"ARCH="+arch, side+"VARIANT="+variant)
	}
	return env
}
