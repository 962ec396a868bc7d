package spec

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/ext/typeexpr"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
	ctyjson "github.com/zclconf/go-cty/cty/json"

	"github.com/kilnproject/kiln/internal/hclfile"
)

// sensitive marks values that diagnostics do not show.
const sensitive = "sensitive"

// validation is a rule of a variable, checked once all values are known.
type validation struct {
	variable string
	body     *hclsyntax.Body
}

// variables gives every variable its value, and returns the values as JSON.
func (l *loader) variables(e environment) map[string]json.RawMessage {
	values := map[string]json.RawMessage{}
	for _, name := range slices.Sorted(maps.Keys(l.opt.Values)) {
		if l.doc.named("variable", name) == nil {
			l.report.Error(hcl.Range{}, "Unknown variable", "A value is given for a variable %q that the definition does not declare.%s", name, hclfile.Suggest(name, l.doc.names("variable")))
		}
	}
	for _, b := range l.doc.blocks["variable"] {
		v, ok := l.variable(b, e)
		if !ok {
			continue
		}
		raw, err := ctyjson.Marshal(v, v.Type())
		if err != nil {
			l.report.Error(b.DefRange(), "Unsuitable value", "The value of variable %q cannot be kept: %s.", b.Labels[0], err)
			continue
		}
		values[b.Labels[0]] = raw
	}
	return values
}

// variable evaluates one and puts it into the scope. The result is unmarked.
func (l *loader) variable(b *hclsyntax.Block, e environment) (cty.Value, bool) {
	name := b.Labels[0]
	d := l.scope.decode(b.Body, nil)
	for _, constant := range []string{"default", "description", "sensitive"} {
		if a := b.Body.Attributes[constant]; a != nil {
			if !l.scope.constant(a.Expr, "Variables are read first, so this must be a constant.") {
				return cty.DynamicVal, false
			}
		}
	}
	ty, defaults, ok := l.variableType(b)
	if !ok {
		return cty.DynamicVal, false
	}
	secret := d.Bool("sensitive", false)
	_, description, _ := d.Text("description")
	v, at, ok := l.given(name, ty, e, d)
	if !ok {
		return v, false
	}
	if v == cty.NilVal {
		l.missing(b, name, description)
		return v, false
	}
	if defaults != nil {
		v = defaults.Apply(v)
	}
	v, ok = l.convert(v, ty, hclfile.Value{At: at, Sensitive: secret}, name)
	if !ok {
		return v, false
	}
	l.scope.variables[name] = v
	if secret {
		l.scope.variables[name] = v.Mark(sensitive)
	}
	for _, rule := range d.Blocks("validation", 0) {
		l.scope.validations = append(l.scope.validations, validation{variable: name, body: rule.Body})
	}
	return v, true
}

// variableType reads a type, and the defaults of its optional attributes.
func (l *loader) variableType(b *hclsyntax.Block) (cty.Type, *typeexpr.Defaults, bool) {
	a := b.Body.Attributes["type"]
	if a == nil {
		return cty.DynamicPseudoType, nil, true
	}
	ty, defaults, diags := typeexpr.TypeConstraintWithDefaults(a.Expr)
	for _, d := range diags {
		if found := regexp.MustCompile(`eyword "([^"]*)" is not a valid type`).FindStringSubmatch(d.Detail); found != nil {
			d.Detail += hclfile.Suggest(found[1], []string{"string", "number", "bool", "any", "list", "set", "map", "object", "tuple"})
		}
	}
	l.report.HCL(diags)
	return ty, defaults, !diags.HasErrors()
}

// given returns a variable's value before conversion: from Options.Values, the
// environment, or the default; NilVal when there is none.
func (l *loader) given(name string, ty cty.Type, e environment, d *decoder) (cty.Value, hcl.Range, bool) {
	if raw, ok := l.opt.Values[name]; ok && string(raw) != "null" {
		v, err := parseValue(raw, ty)
		if err != nil {
			l.report.Error(d.Body.MissingItemRange(), "Unsuitable value", "The value given for variable %q cannot be read: %s.", name, err)
			return v, hcl.Range{}, false
		}
		return v, d.Body.MissingItemRange(), true
	}
	if v, at, ok := e.value(name); ok && !v.IsNull() {
		return v, at, true
	}
	if !d.Has("default") {
		return cty.NilVal, hcl.Range{}, true
	}
	a := d.Body.Attributes["default"]
	v, ok := l.scope.eval(a.Expr, nil)
	return v, a.Expr.Range(), ok
}

func (l *loader) missing(b *hclsyntax.Block, name, description string) {
	if description != "" {
		description = " (" + strings.TrimSuffix(description, ".") + ")"
	}
	l.report.Error(b.DefRange(), "Missing value",
		"Variable %q%s has no value and no default. Give one with --var %s=VALUE, with a line `%s = VALUE` in a file named by --var-file, or with KILN_VAR_%s in the process environment.",
		name, description, name, name, name)
}

func (l *loader) convert(v cty.Value, ty cty.Type, a hclfile.Value, name string) (cty.Value, bool) {
	out, err := convert.Convert(v, ty)
	if err != nil {
		detail := err.Error()
		if a.Sensitive {
			detail = "it has another type"
		}
		l.report.Error(a.At, "Unsuitable value", "The value of variable %q must be %s: %s.", name, typeexpr.TypeString(ty), detail)
		return v, false
	}
	if !out.IsWhollyKnown() {
		l.report.Error(a.At, "Unsuitable value", "The value of variable %q is not known.", name)
		return v, false
	}
	return out, true
}

// parseValue reads a value as JSON. A string is read as an expression of
// constants where the type is neither string nor any: [1, 2] or {a = "b"}.
func parseValue(raw json.RawMessage, ty cty.Type) (cty.Value, error) {
	if len(raw) > hclfile.MaxBytes {
		return cty.NilVal, fmt.Errorf("it has more than %d bytes", hclfile.MaxBytes)
	}
	implied, err := ctyjson.ImpliedType(raw)
	if err != nil {
		return cty.NilVal, fmt.Errorf("it is not JSON")
	}
	v, err := ctyjson.Unmarshal(raw, implied)
	if err != nil {
		return cty.NilVal, fmt.Errorf("it is not JSON")
	}
	if v.Type() == cty.String && !ty.IsPrimitiveType() && ty != cty.DynamicPseudoType {
		return parseConstant(v.AsString())
	}
	return v, nil
}

// parseConstant reads one expression without references or functions.
func parseConstant(src string) (cty.Value, error) {
	r := &hclfile.Report{}
	body := hclfile.Parse("value", []byte("value = "+src+"\n"), r)
	if body == nil || len(body.Attributes) != 1 || len(body.Blocks) != 0 {
		return cty.NilVal, fmt.Errorf("it is not an expression such as [\"a\", \"b\"] or { key = \"value\" }")
	}
	v, ok := newScope(&document{schema: rootSchema()}, newFolder(nil), r).literal(body.Attributes["value"])
	if !ok {
		return cty.NilVal, fmt.Errorf("it is not a constant")
	}
	return v, nil
}

// literal evaluates an argument without references and functions.
func (s *scope) literal(a *hclsyntax.Attribute) (cty.Value, bool) {
	if refs := s.references(a.Expr); len(refs) > 0 {
		s.report.Error(refs[0].SourceRange(), "No references here", "A value is a constant.")
		return cty.NilVal, false
	}
	return s.value(a.Expr, &hcl.EvalContext{})
}

// checkValidations checks the variables' own rules.
func (s *scope) checkValidations() {
	for _, v := range s.validations {
		if s.variables[v.variable] == cty.NilVal {
			continue
		}
		d := s.decode(v.body, nil)
		condition, ok := d.Typed("condition", cty.Bool, "true or false")
		_, message, valid := d.Text("error_message")
		if ok && valid && condition.False() {
			s.report.Error(condition.At, "Invalid value", "Variable %q: %s", v.variable, message)
		}
	}
}
