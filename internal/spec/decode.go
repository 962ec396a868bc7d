package spec

import (
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
)

// decoder reads the arguments of one block for one instance. Each method
// returns the default when the argument is absent, and also when it is wrong,
// which it reports.
type decoder struct {
	*scope
	body *hclsyntax.Body
	each *instance
}

func (s *scope) decode(body *hclsyntax.Body, each *instance) *decoder {
	return &decoder{scope: s, body: body, each: each}
}

// blocks returns the nested blocks of a kind, which have so many labels; those
// that have not were reported.
func (d *decoder) blocks(kind string, labels int) []*hclsyntax.Block {
	var out []*hclsyntax.Block
	for _, b := range d.body.Blocks {
		if b.Type == kind && len(b.Labels) == labels {
			out = append(out, b)
		}
	}
	return out
}

// single returns a decoder for the nested block of a kind, or nil.
func (d *decoder) single(kind string) *decoder {
	for _, b := range d.body.Blocks {
		if b.Type == kind {
			return d.decode(b.Body, d.each)
		}
	}
	return nil
}

// has says whether an argument is written.
func (d *decoder) has(name string) bool { return d.body.Attributes[name] != nil }

// at is an argument's value's place, or the block's when it is absent.
func (d *decoder) at(name string) hcl.Range {
	if a := d.body.Attributes[name]; a != nil {
		return a.Expr.Range()
	}
	return d.body.MissingItemRange()
}

// argument is an evaluated argument.
type argument struct {
	cty.Value
	at        hcl.Range
	sensitive bool
}

// show quotes a value for a diagnostic, unless it is sensitive.
func (a argument) show(s string) string {
	if a.sensitive {
		return "(sensitive value)"
	}
	if len(s) > 100 {
		s = s[:100] + "..."
	}
	return `"` + s + `"`
}

// value evaluates an argument. ok is false when it is absent, null or wrong.
func (d *decoder) value(name string) (argument, bool) {
	a := d.body.Attributes[name]
	if a == nil {
		return argument{}, false
	}
	v, ok := d.eval(a.Expr, d.each)
	if !ok {
		return argument{}, false
	}
	v, marks := v.UnmarkDeep()
	return argument{Value: v, at: a.Expr.Range(), sensitive: len(marks) > 0}, !v.IsNull()
}

// typed evaluates an argument as a type; what says what it must be.
func (d *decoder) typed(name string, ty cty.Type, what string) (argument, bool) {
	a, ok := d.value(name)
	if !ok {
		return a, false
	}
	v, err := convert.Convert(a.Value, ty)
	if err != nil || !v.IsWhollyKnown() {
		d.report.error(a.at, "Unsuitable value", "%s must be %s, not %s.", name, what, a.Type().FriendlyName())
		return a, false
	}
	a.Value = v
	return a, true
}

func (d *decoder) text(name string) (argument, string, bool) {
	a, ok := d.typed(name, cty.String, "a string")
	if !ok {
		return a, "", false
	}
	return a, a.AsString(), true
}

// checked reads a string that a check accepts; the check says what is wrong.
func (d *decoder) checked(name, summary string, check func(string) string) string {
	a, s, ok := d.text(name)
	if !ok {
		return ""
	}
	if problem := check(s); problem != "" {
		d.report.error(a.at, summary, "%s %s", a.show(s), problem)
		return ""
	}
	return s
}

func (d *decoder) bool(name string, def bool) bool {
	a, ok := d.typed(name, cty.Bool, "true or false")
	if !ok {
		return def
	}
	return a.True()
}

// number reads a whole number within a range.
func (d *decoder) number(name string, def, low, high int64) int64 {
	a, ok := d.typed(name, cty.Number, "a number")
	if !ok {
		return def
	}
	f := a.AsBigFloat()
	n, _ := f.Int64()
	if !f.IsInt() || n < low || n > high {
		d.report.error(a.at, "Out of range", "%s must be a whole number from %d to %d.", name, low, high)
		return def
	}
	return n
}

// float reads a number within a range.
func (d *decoder) float(name string, def, low, high float64) float64 {
	a, ok := d.typed(name, cty.Number, "a number")
	if !ok {
		return def
	}
	f, _ := a.AsBigFloat().Float64()
	if f < low || f > high {
		d.report.error(a.at, "Out of range", "%s must be a number from %v to %v.", name, low, high)
		return def
	}
	return f
}

// size reads a number of bytes within a range.
func (d *decoder) size(name string, def, low, high int64) int64 {
	a, s, ok := d.text(name)
	if !ok {
		return def
	}
	n, valid := parseSize(s)
	if !valid {
		d.report.error(a.at, "Invalid size", "%s is not a size. Write a number and a unit: \"64MiB\". The units are B, KiB, MiB, GiB and TiB.", a.show(s))
		return def
	}
	if n < low || n > high {
		d.report.error(a.at, "Out of range", "%s must be from %s to %s.", name, formatSize(low), formatSize(high))
		return def
	}
	return n
}

// duration reads a duration within a range.
func (d *decoder) duration(name string, def, low, high time.Duration) time.Duration {
	a, s, ok := d.text(name)
	if !ok {
		return def
	}
	v, err := time.ParseDuration(s)
	if err != nil {
		d.report.error(a.at, "Invalid duration", "%s is not a duration. Write numbers and units: \"30s\", \"1h30m\". The units are ms, s, m and h.", a.show(s))
		return def
	}
	if v < low || v > high {
		d.report.error(a.at, "Out of range", "%s must be from %s to %s.", name, formatDuration(low), formatDuration(high))
		return def
	}
	return v
}

// item is one element of a list or map, with its place where it is written as
// such.
type item struct {
	key   string
	value string
	at    hcl.Range
	argument
}

// list reads a list of strings.
func (d *decoder) list(name string) []item {
	a, ok := d.typed(name, cty.List(cty.String), "a list of strings")
	if !ok {
		return nil
	}
	var places []hcl.Range
	if tuple, ok := d.body.Attributes[name].Expr.(*hclsyntax.TupleConsExpr); ok {
		for _, e := range tuple.Exprs {
			places = append(places, e.Range())
		}
	}
	var out []item
	for it := a.ElementIterator(); it.Next(); {
		_, v := it.Element()
		at := a.at
		if i := len(out); i < len(places) {
			at = places[i]
		}
		if v.IsNull() {
			d.report.error(at, "Unsuitable value", "%s has an element that is null.", name)
			return nil
		}
		out = append(out, item{value: v.AsString(), at: at, argument: a})
	}
	return out
}

// strings reads a list of strings for a command: without NUL.
func (d *decoder) strings(name string) []string {
	var out []string
	for _, i := range d.list(name) {
		if hasNUL(i.value) {
			d.report.error(i.at, "Unsuitable value", "%s holds a NUL byte.", name)
			return nil
		}
		out = append(out, i.value)
	}
	return out
}

// table reads a map of strings, sorted by key. Null values are left out.
func (d *decoder) table(name, what string) []item {
	a, ok := d.value(name)
	if !ok {
		return nil
	}
	if ty := a.Type(); !ty.IsObjectType() && !ty.IsMapType() {
		d.report.error(a.at, "Unsuitable value", "%s must be %s, not %s.", name, what, ty.FriendlyName())
		return nil
	}
	places := d.keyPlaces(name)
	var out []item
	for it := a.ElementIterator(); it.Next(); {
		k, v := it.Element()
		at, ok := places[k.AsString()]
		if !ok {
			at = a.at
		}
		s, err := convert.Convert(v, cty.String)
		if err != nil {
			d.report.error(at, "Unsuitable value", "%s must be %s; %q is %s.", name, what, k.AsString(), v.Type().FriendlyName())
			continue
		}
		if !s.IsNull() {
			out = append(out, item{key: k.AsString(), value: s.AsString(), at: at, argument: a})
		}
	}
	slices.SortFunc(out, func(a, b item) int { return compare(a.key, b.key) })
	return out
}

// keyPlaces maps the keys of a written object to their places.
func (d *decoder) keyPlaces(name string) map[string]hcl.Range {
	out := map[string]hcl.Range{}
	object, ok := d.body.Attributes[name].Expr.(*hclsyntax.ObjectConsExpr)
	if !ok {
		return out
	}
	for _, i := range object.Items {
		if k, diags := i.KeyExpr.Value(nil); !diags.HasErrors() && k.Type() == cty.String && k.IsKnown() && !k.IsNull() {
			unmarked, _ := k.Unmark()
			out[unmarked.AsString()] = hcl.RangeBetween(i.KeyExpr.Range(), i.ValueExpr.Range())
		}
	}
	return out
}

// block reads a reference to an image or a service and returns its name.
func (d *decoder) block(name, kind string) string {
	a, ok := d.value(name)
	if !ok {
		return ""
	}
	return d.blockName(a, name, kind, a.Value)
}

func (d *decoder) blockName(a argument, name, kind string, v cty.Value) string {
	if got, found := reference(v); got == kind {
		return found
	}
	hint := ""
	switch {
	case v.Type().IsObjectType():
		hint = fmt.Sprintf(" One with for_each needs a key: %s.NAME[\"KEY\"].", kind)
	case v.Type() == cty.String && !v.IsNull() && d.doc.named(kind, v.AsString()) != nil:
		hint = fmt.Sprintf(" Did you mean %s.%s?", kind, v.AsString())
	case v.Type() == cty.String && kind == "image":
		hint = " For one of a registry, write a block: image \"NAME\" { reference = \"HOST/NAME:TAG\" }."
	}
	d.report.error(a.at, "Unsuitable value", "%s must be %s %s, written %s.NAME.%s", name, article(kind), kind, kind, hint)
	return ""
}

// reference returns the kind and name of the block that a value stands for.
func reference(v cty.Value) (kind, name string) {
	ty := v.Type()
	if v.IsNull() || !ty.IsObjectType() || !ty.HasAttribute("kind") || !ty.HasAttribute("name") {
		return "", ""
	}
	k, n := v.GetAttr("kind"), v.GetAttr("name")
	if k.IsNull() || n.IsNull() || k.Type() != cty.String || n.Type() != cty.String {
		return "", ""
	}
	return k.AsString(), n.AsString()
}

func article(kind string) string {
	if kind == "image" {
		return "an"
	}
	return "a"
}
