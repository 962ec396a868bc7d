package spec

import (
	"fmt"

	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"

	"github.com/kilnproject/kiln/internal/hclfile"
)

// decoder reads the arguments of one block for one instance.
type decoder struct {
	*scope
	hclfile.Decoder
	each *instance
}

func (s *scope) decode(body *hclsyntax.Body, each *instance) *decoder {
	eval := func(e hclsyntax.Expression) (cty.Value, bool) { return s.eval(e, each) }
	return &decoder{scope: s, Decoder: hclfile.Decoder{Body: body, Report: s.report, Eval: eval}, each: each}
}

// single returns a decoder for the nested block of a kind, or nil.
func (d *decoder) single(kind string) *decoder {
	for _, b := range d.Body.Blocks {
		if b.Type == kind {
			return d.decode(b.Body, d.each)
		}
	}
	return nil
}

// strings reads a list of strings for a command: without NUL.
func (d *decoder) strings(name string) []string {
	var out []string
	for _, i := range d.List(name) {
		if hasNUL(i.Text) {
			d.report.Error(i.At, "Unsuitable value", "%s holds a NUL byte.", name)
			return nil
		}
		out = append(out, i.Text)
	}
	return out
}

// block reads a reference to an image or a service and returns its name.
func (d *decoder) block(name, kind string) string {
	a, ok := d.Value(name)
	if !ok {
		return ""
	}
	return d.blockName(a, name, kind, a.Value)
}

func (d *decoder) blockName(a hclfile.Value, name, kind string, v cty.Value) string {
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
	d.report.Error(a.At, "Unsuitable value", "%s must be %s %s, written %s.NAME.%s", name, article(kind), kind, kind, hint)
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
