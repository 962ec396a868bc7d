package spec

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/function"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/hclfile"
)

// scope evaluates expressions. What they refer to is evaluated when it is
// first needed, once.
type scope struct {
	doc         *document
	report      *hclfile.Report
	meter       *meter
	functions   map[string]function.Function
	environment *kiln.Environment
	variables   map[string]cty.Value // those with a valid value
	nodes       map[string]*node
	path        []*node // being evaluated, outermost first
	prepared    map[hclsyntax.Expression][]hcl.Traversal
	repeated    map[*hclsyntax.Block][]*instance
	validations []validation
}

// node is a named value that expressions refer to.
type node struct {
	name    string // "local.a"
	at      hcl.Range
	running bool
	done    bool
	value   cty.Value
	ok      bool // false when it has errors, which were reported
}

func newScope(doc *document, f *folder, r *hclfile.Report) *scope {
	s := &scope{
		doc: doc, report: r, meter: &meter{left: fuel},
		variables: map[string]cty.Value{},
		nodes:     map[string]*node{},
		prepared:  map[hclsyntax.Expression][]hcl.Traversal{},
		repeated:  map[*hclsyntax.Block][]*instance{},
	}
	s.functions = newFunctions(f, s.meter)
	return s
}

// eval evaluates an expression for an instance of a repeated block, or for
// nil. It returns false when there was an error, which is reported.
func (s *scope) eval(expr hclsyntax.Expression, each *instance) (value cty.Value, ok bool) {
	ctx, found := s.context(s.references(expr), each)
	if !found {
		return cty.DynamicVal, false
	}
	return s.value(expr, ctx)
}

// constant checks an expression that may not refer to anything; why is said
// when it does. It returns false when there was an error, which is reported.
func (s *scope) constant(expr hclsyntax.Expression, why string) bool {
	if refs := s.references(expr); len(refs) > 0 {
		s.report.Error(refs[0].SourceRange(), "No references here", "%s", why)
		return false
	}
	_, ok := s.value(expr, &hcl.EvalContext{Functions: s.functions})
	return ok
}

func (s *scope) value(expr hclsyntax.Expression, ctx *hcl.EvalContext) (value cty.Value, ok bool) {
	if s.meter.left == 0 {
		return cty.DynamicVal, false // reported when it ran out
	}
	defer recovered(s.report, expr.Range())
	v, diags := expr.Value(ctx)
	for _, d := range diags {
		if unknown, ok := hcl.DiagnosticExtra[hclsyntax.FunctionCallUnknownDiagExtra](d); ok {
			name := unknown.CalledFunctionName()
			d.Detail = fmt.Sprintf("There is no function %q.%s", name, hclfile.Suggest(name, sortedKeys(ctx.Functions)))
		}
	}
	s.report.HCL(diags)
	if diags.HasErrors() {
		return cty.DynamicVal, false
	}
	s.meter.deep(v)
	return v, true
}

// references returns what an expression refers to. The first call puts the
// meters in.
func (s *scope) references(expr hclsyntax.Expression) []hcl.Traversal {
	refs, ok := s.prepared[expr]
	if !ok {
		refs = expr.Variables()
		s.meter.install(expr)
		s.prepared[expr] = refs
	}
	return refs
}

// context holds the values that the references need.
func (s *scope) context(refs []hcl.Traversal, each *instance) (*hcl.EvalContext, bool) {
	roots := map[string]map[string]cty.Value{}
	ok := true
	for _, ref := range refs {
		root := ref.RootName()
		if roots[root] == nil {
			roots[root] = map[string]cty.Value{}
		}
		if !s.refer(ref, each, roots[root]) {
			ok = false
		}
	}
	if !ok {
		return nil, false
	}
	ctx := &hcl.EvalContext{Variables: map[string]cty.Value{}, Functions: s.functions}
	for root, names := range roots {
		ctx.Variables[root] = cty.ObjectVal(names)
	}
	return ctx, true
}

// refer adds what one reference needs to the values of its root.
func (s *scope) refer(ref hcl.Traversal, each *instance, values map[string]cty.Value) bool {
	switch root := ref.RootName(); root {
	case "each":
		if each == nil || each.key == "" {
			s.report.Error(ref.SourceRange(), "No each here", "each.key and each.value exist only in blocks that have for_each.")
			return false
		}
		values["key"], values["value"] = cty.StringVal(each.key), each.value
		return true
	case "environment":
		values["name"], values["branch"] = cty.StringVal(s.environment.Name), cty.StringVal(s.environment.Branch)
		return true
	case "var", "local", "image", "service":
		name, ok := s.referredName(ref)
		if !ok {
			return false
		}
		v, ok := s.resolve(root, name, ref.SourceRange())
		if !ok {
			return false
		}
		values[name] = v
		return s.checkURL(ref, v)
	default:
		s.report.Error(ref.SourceRange(), "Unknown reference", "Nothing is called %q.%s", root,
			hclfile.Suggest(root, []string{"var", "local", "image", "service", "environment", "each"}))
		return false
	}
}

// referredName returns the second step of a reference: "orders" in
// service.orders.url.
func (s *scope) referredName(ref hcl.Traversal) (string, bool) {
	if len(ref) > 1 {
		switch step := ref[1].(type) {
		case hcl.TraverseAttr:
			return step.Name, true
		case hcl.TraverseIndex:
			if step.Key.Type() == cty.String {
				return step.Key.AsString(), true
			}
		}
	}
	s.report.Error(ref.SourceRange(), "Incomplete reference", "%s needs a name: %s.NAME.", ref.RootName(), ref.RootName())
	return "", false
}

// resolve returns the value of a named thing. It evaluates it when this is the
// first reference, and reports a cycle when it is being evaluated already.
func (s *scope) resolve(root, name string, at hcl.Range) (cty.Value, bool) {
	key := root + "." + name
	n := s.nodes[key]
	if n == nil {
		n = &node{name: key, at: at}
		s.nodes[key] = n
	}
	switch {
	case n.done:
		return n.value, n.ok
	case n.running:
		s.cycle(n, at)
		return cty.DynamicVal, false
	}
	n.running = true
	s.path = append(s.path, n)
	n.value, n.ok = s.define(root, name, at)
	s.path = s.path[:len(s.path)-1]
	n.running, n.done = false, true
	return n.value, n.ok
}

func (s *scope) cycle(n *node, at hcl.Range) {
	i := slices.Index(s.path, n)
	var names []string
	for _, on := range s.path[i:] {
		names = append(names, on.name)
	}
	names = append(names, n.name)
	s.report.Error(at, "Cycle", "These refer to each other in a circle: %s. Break it at one of them.", strings.Join(names, " -> "))
}

// define evaluates a named thing.
func (s *scope) define(root, name string, at hcl.Range) (cty.Value, bool) {
	switch root {
	case "var":
		if s.doc.named("variable", name) == nil {
			s.unknown(at, "variable", name, s.doc.names("variable"))
			return cty.DynamicVal, false
		}
		v, ok := s.variables[name]
		return v, ok
	case "local":
		a, ok := s.doc.locals[name]
		if !ok {
			s.unknown(at, "local", name, slices.Collect(maps.Keys(s.doc.locals)))
			return cty.DynamicVal, false
		}
		return s.eval(a.Expr, nil)
	default:
		b := s.doc.named(root, name)
		if b == nil {
			s.unknown(at, root, name, s.doc.names(root))
			return cty.DynamicVal, false
		}
		return s.blockValue(b)
	}
}

func (s *scope) unknown(at hcl.Range, kind, name string, known []string) {
	s.report.Error(at, "Unknown "+kind, "There is no %s %q.%s", kind, name, hclfile.Suggest(name, known))
}

// evaluateLocals evaluates those that nothing refers to as well, so that their
// errors show.
func (s *scope) evaluateLocals() {
	for _, name := range slices.Sorted(maps.Keys(s.doc.locals)) {
		s.resolve("local", name, s.doc.locals[name].NameRange)
	}
}
