package spec

import (
	"errors"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"

	"github.com/kilnproject/kiln/internal/hclfile"
)

// fuel is what one Load may spend: a unit is a step of a loop, an element that
// is looked at, or bytesPerUnit of text. All of it lasts about a second.
const (
	fuel         = 1_000_000
	bytesPerUnit = 16
)

// errExhausted is the panic that leaves an evaluation which spent its fuel.
// The evaluator goes on after errors, so that nothing else would stop a loop.
var errExhausted = errors.New("fuel exhausted")

// recovered, deferred, turns a panic of evaluation into a diagnostic: the
// meter's own, and those of the libraries that evaluate.
func recovered(r *hclfile.Report, at hcl.Range) {
	switch p := recover().(type) {
	case nil:
	case error:
		if errors.Is(p, errExhausted) {
			r.Error(at, "Too much to evaluate", "The definition makes values that are too large or takes too many steps. Make lists, strings and loops smaller.")
			return
		}
		r.Error(at, "Cannot evaluate", "The evaluation broke: %v. Please report this as a defect, with the definition.", p)
	default:
		r.Error(at, "Cannot evaluate", "The evaluation broke: %v. Please report this as a defect, with the definition.", p)
	}
}

// meter bounds the work and the memory of evaluation.
type meter struct{ left int }

func (m *meter) spend(n int) {
	if !m.afford(n) {
		panic(errExhausted)
	}
}

// afford spends n when there is so much; if not, nothing is left.
func (m *meter) afford(n int) bool {
	if n < 0 || n > m.left {
		m.left = 0
		return false
	}
	m.left -= n
	return true
}

// step charges for a value without looking into it.
func (m *meter) step(v cty.Value) {
	v, _ = v.Unmark()
	cost := 1
	if v.IsKnown() && !v.IsNull() {
		switch v.Type() {
		case cty.String:
			cost += len(v.AsString()) / bytesPerUnit
		case cty.Number:
			cost += digits(v)
		}
	}
	m.spend(cost)
}

// digits is about how many digits a number has when written without exponent.
func digits(v cty.Value) int {
	f := v.AsBigFloat()
	if f.IsInf() {
		return 1
	}
	exponent := f.MantExp(nil)
	return max(exponent, -exponent) / 3
}

// deep charges for all that a value holds.
func (m *meter) deep(v cty.Value) {
	m.step(v)
	v, _ = v.Unmark()
	if v.IsNull() || !v.IsKnown() || !v.CanIterateElements() {
		return
	}
	if v.Type().IsTupleType() { // converting one compares every two of its types
		n := v.LengthInt()
		m.spend(product(n, n/100))
	}
	for it := v.ElementIterator(); it.Next(); {
		key, element := it.Element()
		if key.Type() == cty.String {
			m.step(key)
		}
		m.deep(element)
	}
}

// metered is an expression whose every evaluation is charged.
type metered struct {
	hclsyntax.Expression
	meter *meter
	deep  bool
}

// Value evaluates the expression and charges for what it made.
func (e *metered) Value(ctx *hcl.EvalContext) (cty.Value, hcl.Diagnostics) {
	v, diags := e.Expression.Value(ctx)
	if e.deep {
		e.meter.deep(v)
	} else {
		e.meter.step(v)
	}
	return v, diags
}

func (m *meter) steps(e hclsyntax.Expression) hclsyntax.Expression {
	m.install(e)
	return &metered{Expression: e, meter: m}
}

func (m *meter) whole(e hclsyntax.Expression) hclsyntax.Expression {
	m.install(e)
	return &metered{Expression: e, meter: m, deep: true}
}

// install puts meters into an expression, in place. What the parent copies or
// compares whole is charged whole; what it only passes on, by the step.
// Expression.Variables does not see through meters: call it before.
func (m *meter) install(e hclsyntax.Expression) {
	switch e := e.(type) {
	case *hclsyntax.ParenthesesExpr:
		m.install(e.Expression)
	case *hclsyntax.RelativeTraversalExpr:
		m.install(e.Source)
	case *hclsyntax.TemplateWrapExpr:
		m.install(e.Wrapped)
	case *hclsyntax.ObjectConsKeyExpr:
		m.install(e.Wrapped)
	case *hclsyntax.UnaryOpExpr:
		e.Val = m.steps(e.Val)
	case *hclsyntax.IndexExpr:
		m.install(e.Collection)
		e.Key = m.steps(e.Key)
	case *hclsyntax.ConditionalExpr:
		e.Condition, e.TrueResult, e.FalseResult = m.steps(e.Condition), m.whole(e.TrueResult), m.whole(e.FalseResult)
	case *hclsyntax.BinaryOpExpr:
		e.LHS, e.RHS = m.whole(e.LHS), m.whole(e.RHS)
	case *hclsyntax.SplatExpr:
		e.Source, e.Each = m.whole(e.Source), m.steps(e.Each)
	case *hclsyntax.ForExpr:
		m.installFor(e)
	default:
		m.installList(e)
	}
}

func (m *meter) installFor(e *hclsyntax.ForExpr) {
	e.CollExpr, e.ValExpr = m.whole(e.CollExpr), m.steps(e.ValExpr)
	if e.KeyExpr != nil {
		e.KeyExpr = m.steps(e.KeyExpr)
	}
	if e.CondExpr != nil {
		e.CondExpr = m.steps(e.CondExpr)
	}
}

func (m *meter) installList(e hclsyntax.Expression) {
	switch e := e.(type) {
	case *hclsyntax.FunctionCallExpr:
		for i := range e.Args {
			e.Args[i] = m.whole(e.Args[i])
		}
	case *hclsyntax.TemplateExpr:
		for i := range e.Parts {
			e.Parts[i] = m.whole(e.Parts[i])
		}
	case *hclsyntax.TemplateJoinExpr:
		e.Tuple = m.whole(e.Tuple)
	case *hclsyntax.TupleConsExpr:
		for i := range e.Exprs {
			e.Exprs[i] = m.steps(e.Exprs[i])
		}
	case *hclsyntax.ObjectConsExpr:
		for i := range e.Items {
			m.install(e.Items[i].KeyExpr)
			e.Items[i].ValueExpr = m.steps(e.Items[i].ValueExpr)
		}
	}
}
