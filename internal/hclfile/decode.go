package hclfile

import (
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
)

// Decoder reads the arguments of one block. Each method returns the default
// when the argument is absent, and also when it is wrong, which it reports.
type Decoder struct {
	Body   *hclsyntax.Body
	Report *Report
	// Eval evaluates an expression. It returns false when there was an error,
	// which it reported. Marked values are sensitive.
	Eval func(hclsyntax.Expression) (cty.Value, bool)
}

// Blocks returns the nested blocks of a kind, which have so many labels; those
// that have not were reported.
func (d *Decoder) Blocks(kind string, labels int) []*hclsyntax.Block {
	var out []*hclsyntax.Block
	for _, b := range d.Body.Blocks {
		if b.Type == kind && len(b.Labels) == labels {
			out = append(out, b)
		}
	}
	return out
}

// Has says whether an argument is written.
func (d *Decoder) Has(name string) bool { return d.Body.Attributes[name] != nil }

// At is an argument's value's place, or the block's when it is absent.
func (d *Decoder) At(name string) hcl.Range {
	if a := d.Body.Attributes[name]; a != nil {
		return a.Expr.Range()
	}
	return d.Body.MissingItemRange()
}

// Value is an evaluated argument with its place.
type Value struct {
	cty.Value
	At        hcl.Range
	Sensitive bool
}

// Show quotes a text of the value for a diagnostic, unless it is sensitive.
func (a Value) Show(s string) string {
	if a.Sensitive {
		return "(sensitive value)"
	}
	if len(s) > 100 {
		s = s[:100] + "..."
	}
	return `"` + s + `"`
}

// Value evaluates an argument. ok is false when it is absent, null or wrong.
func (d *Decoder) Value(name string) (Value, bool) {
	a := d.Body.Attributes[name]
	if a == nil {
		return Value{}, false
	}
	v, ok := d.Eval(a.Expr)
	if !ok {
		return Value{}, false
	}
	v, marks := v.UnmarkDeep()
	return Value{Value: v, At: a.Expr.Range(), Sensitive: len(marks) > 0}, !v.IsNull()
}

// Typed evaluates an argument as a type; what says what it must be.
func (d *Decoder) Typed(name string, ty cty.Type, what string) (Value, bool) {
	a, ok := d.Value(name)
	if !ok {
		return a, false
	}
	v, err := convert.Convert(a.Value, ty)
	if err != nil || !v.IsWhollyKnown() {
		d.Report.Error(a.At, "Unsuitable value", "%s must be %s, not %s.", name, what, a.Type().FriendlyName())
		return a, false
	}
	a.Value = v
	return a, true
}

// Text reads a string.
func (d *Decoder) Text(name string) (Value, string, bool) {
	a, ok := d.Typed(name, cty.String, "a string")
	if !ok {
		return a, "", false
	}
	return a, a.AsString(), true
}

// Checked reads a string that a check accepts; the check says what is wrong.
func (d *Decoder) Checked(name, summary string, check func(string) string) string {
	a, s, ok := d.Text(name)
	if !ok {
		return ""
	}
	if problem := check(s); problem != "" {
		d.Report.Error(a.At, summary, "%s %s", a.Show(s), problem)
		return ""
	}
	return s
}

// Bool reads true or false.
func (d *Decoder) Bool(name string, def bool) bool {
	a, ok := d.Typed(name, cty.Bool, "true or false")
	if !ok {
		return def
	}
	return a.True()
}

// Number reads a whole number within a range.
func (d *Decoder) Number(name string, def, low, high int64) int64 {
	a, ok := d.Typed(name, cty.Number, "a number")
	if !ok {
		return def
	}
	f := a.AsBigFloat()
	n, _ := f.Int64()
	if !f.IsInt() || n < low || n > high {
		d.Report.Error(a.At, "Out of range", "%s must be a whole number from %d to %d.", name, low, high)
		return def
	}
	return n
}

// Float reads a number within a range.
func (d *Decoder) Float(name string, def, low, high float64) float64 {
	a, ok := d.Typed(name, cty.Number, "a number")
	if !ok {
		return def
	}
	f, _ := a.AsBigFloat().Float64()
	if f < low || f > high {
		d.Report.Error(a.At, "Out of range", "%s must be a number from %v to %v.", name, low, high)
		return def
	}
	return f
}

// Size reads a number of bytes within a range.
func (d *Decoder) Size(name string, def, low, high int64) int64 {
	a, s, ok := d.Text(name)
	if !ok {
		return def
	}
	n, valid := ParseSize(s)
	if !valid {
		d.Report.Error(a.At, "Invalid size", "%s is not a size. Write a number and a unit: \"64MiB\". The units are B, KiB, MiB, GiB and TiB.", a.Show(s))
		return def
	}
	if n < low || n > high {
		d.Report.Error(a.At, "Out of range", "%s must be from %s to %s.", name, FormatSize(low), FormatSize(high))
		return def
	}
	return n
}

// Duration reads a duration within a range.
func (d *Decoder) Duration(name string, def, low, high time.Duration) time.Duration {
	a, s, ok := d.Text(name)
	if !ok {
		return def
	}
	v, err := time.ParseDuration(s)
	if err != nil {
		d.Report.Error(a.At, "Invalid duration", "%s is not a duration. Write numbers and units: \"30s\", \"1h30m\". The units are ms, s, m and h.", a.Show(s))
		return def
	}
	if v < low || v > high {
		d.Report.Error(a.At, "Out of range", "%s must be from %s to %s.", name, FormatDuration(low), FormatDuration(high))
		return def
	}
	return v
}

// Item is one element of a list or map.
type Item struct {
	Key   string // of a map
	Text  string
	At    hcl.Range // of the element where it is written as such, else of the whole
	Whole Value
}

// List reads a list of strings.
func (d *Decoder) List(name string) []Item {
	a, ok := d.Typed(name, cty.List(cty.String), "a list of strings")
	if !ok {
		return nil
	}
	var places []hcl.Range
	if tuple, ok := d.Body.Attributes[name].Expr.(*hclsyntax.TupleConsExpr); ok {
		for _, e := range tuple.Exprs {
			places = append(places, e.Range())
		}
	}
	var out []Item
	for it := a.ElementIterator(); it.Next(); {
		_, v := it.Element()
		at := a.At
		if i := len(out); i < len(places) {
			at = places[i]
		}
		if v.IsNull() {
			d.Report.Error(at, "Unsuitable value", "%s has an element that is null.", name)
			return nil
		}
		out = append(out, Item{Text: v.AsString(), At: at, Whole: a})
	}
	return out
}

// Table reads a map of strings, sorted by key. Null values are left out.
func (d *Decoder) Table(name, what string) []Item {
	a, ok := d.Value(name)
	if !ok {
		return nil
	}
	if ty := a.Type(); !ty.IsObjectType() && !ty.IsMapType() {
		d.Report.Error(a.At, "Unsuitable value", "%s must be %s, not %s.", name, what, ty.FriendlyName())
		return nil
	}
	places := d.KeyPlaces(name)
	var out []Item
	for it := a.ElementIterator(); it.Next(); {
		k, v := it.Element()
		at, ok := places[k.AsString()]
		if !ok {
			at = a.At
		}
		s, err := convert.Convert(v, cty.String)
		if err != nil {
			d.Report.Error(at, "Unsuitable value", "%s must be %s; %q is %s.", name, what, k.AsString(), v.Type().FriendlyName())
			continue
		}
		if !s.IsNull() {
			out = append(out, Item{Key: k.AsString(), Text: s.AsString(), At: at, Whole: a})
		}
	}
	slices.SortFunc(out, func(a, b Item) int { return strings.Compare(a.Key, b.Key) })
	return out
}

// KeyPlaces maps the keys of a written object to their places.
func (d *Decoder) KeyPlaces(name string) map[string]hcl.Range {
	out := map[string]hcl.Range{}
	object, ok := d.Body.Attributes[name].Expr.(*hclsyntax.ObjectConsExpr)
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
