package spec

import (
	"fmt"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/hclfile"
)

// A reference to a block is an object: kind and name say which block it is,
// and a service has its addresses besides.

// instance is a block, or one of those that its for_each makes.
type instance struct {
	name  string
	key   string // empty without for_each
	value cty.Value
	block *hclsyntax.Block
}

// at is where to point when the block as a whole is meant.
func (i *instance) at() hcl.Range { return i.block.DefRange() }

// instances expands a block's for_each. Without one it is the block itself.
func (s *scope) instances(b *hclsyntax.Block) ([]*instance, bool) {
	if list, ok := s.repeated[b]; ok {
		return list, list != nil
	}
	list := s.expand(b)
	s.repeated[b] = list
	return list, list != nil
}

// expand returns nil when there was an error.
func (s *scope) expand(b *hclsyntax.Block) []*instance {
	a := b.Body.Attributes["for_each"]
	if a == nil {
		return []*instance{{name: b.Labels[0], block: b}}
	}
	v, ok := s.eval(a.Expr, nil)
	if !ok {
		return nil
	}
	at := a.Expr.Range()
	if problem := badForEach(v); problem != "" {
		s.report.Error(at, "Invalid for_each", "%s", problem)
		return nil
	}
	list := []*instance{}
	for it := v.ElementIterator(); it.Next(); {
		key, value := it.Element()
		if v.Type().IsSetType() {
			key = value
		}
		if key.IsNull() || key.AsString() == "" {
			s.report.Error(at, "Invalid for_each", "A key is null or empty.")
			return nil
		}
		name := b.Labels[0] + "-" + key.AsString()
		if problem := badName(b.Type, name); problem != "" {
			s.report.Error(at, "Invalid for_each", "The key %q does not make a name of %s %q: %s", key.AsString(), b.Type, b.Labels[0], problem)
			return nil
		}
		list = append(list, &instance{name: name, key: key.AsString(), value: value, block: b})
	}
	return list
}

func badForEach(v cty.Value) string {
	switch ty := v.Type(); {
	case v.ContainsMarked():
		return "It is made from a sensitive variable, and its keys become names that everybody sees."
	case v.IsNull():
		return "It is null. For no instance, give an empty map."
	case ty.IsTupleType() || ty.IsListType():
		return "A list has no keys. Write toset([...]) to use its strings as keys."
	case ty.IsSetType() && (ty.ElementType() == cty.String || v.LengthInt() == 0):
	case ty.IsMapType() || ty.IsObjectType():
	default:
		return "It must be a map or a set of strings, not " + ty.FriendlyName() + "."
	}
	if n := v.LengthInt(); n > maxInstances {
		return fmt.Sprintf("It has %d entries; at most %d are possible.", n, maxInstances)
	}
	return ""
}

// blockValue is what image.NAME or service.NAME is: the block's object, or
// with for_each an object of them by key.
func (s *scope) blockValue(b *hclsyntax.Block) (cty.Value, bool) {
	list, ok := s.instances(b)
	if !ok {
		return cty.DynamicVal, false
	}
	byKey := map[string]cty.Value{}
	for _, i := range list {
		v := cty.ObjectVal(map[string]cty.Value{"kind": cty.StringVal(b.Type), "name": cty.StringVal(i.name)})
		if b.Type == "service" {
			if v, ok = s.serviceValue(i); !ok {
				return cty.DynamicVal, false
			}
		}
		if i.key == "" {
			return v, true
		}
		byKey[i.key] = v
	}
	return cty.ObjectVal(byKey), true
}

// serviceValue holds a service's addresses as the environment sees them: its
// name is a host name there.
func (s *scope) serviceValue(i *instance) (cty.Value, bool) {
	ports, ok := s.ports(i)
	if !ok {
		return cty.DynamicVal, false
	}
	v := map[string]cty.Value{
		"kind": cty.StringVal("service"),
		"name": cty.StringVal(i.name),
		"host": cty.StringVal(i.name),
	}
	byName := map[string]cty.Value{}
	for _, p := range ports {
		address := fmt.Sprintf("%s:%d", i.name, p.Number)
		scheme := "http"
		if p.Protocol == kiln.ProtocolTCP {
			scheme = "tcp"
		}
		url := cty.StringVal(scheme + "://" + address)
		byName[p.Name] = cty.ObjectVal(map[string]cty.Value{
			"number":   cty.NumberUIntVal(uint64(p.Number)),
			"protocol": cty.StringVal(string(p.Protocol)),
			"address":  cty.StringVal(address),
			"url":      url,
		})
		if _, ok := v["url"]; !ok && p.Protocol != kiln.ProtocolTCP {
			v["url"] = url
		}
	}
	v["port"] = cty.ObjectVal(byName)
	return cty.ObjectVal(v), true
}

// checkURL explains service.NAME.url of a service that has none, and attributes
// that no service has.
func (s *scope) checkURL(ref hcl.Traversal, v cty.Value) bool {
	if ref.RootName() != "service" && ref.RootName() != "image" || !v.Type().IsObjectType() {
		return true
	}
	for _, step := range ref[2:] {
		name := ""
		switch step := step.(type) {
		case hcl.TraverseAttr:
			name = step.Name
		case hcl.TraverseIndex:
			if step.Key.Type() == cty.String {
				name = step.Key.AsString()
			}
		}
		if name == "" || !v.Type().IsObjectType() {
			return true
		}
		if !v.Type().HasAttribute(name) {
			s.noAttribute(ref, name, v)
			return false
		}
		v = v.GetAttr(name)
	}
	return true
}

func (s *scope) noAttribute(ref hcl.Traversal, name string, v cty.Value) {
	var known []string
	for n := range v.Type().AttributeTypes() {
		known = append(known, n)
	}
	if name == "url" && v.Type().HasAttribute("port") {
		s.report.Error(ref.SourceRange(), "No url", "Service %q has no http or h2c port, so it has no url. Use .host and .port.NAME.number, or .port.NAME.address.", v.GetAttr("name").AsString())
		return
	}
	s.report.Error(ref.SourceRange(), "Unknown reference", "There is no %q here.%s", name, hclfile.Suggest(name, known))
}
