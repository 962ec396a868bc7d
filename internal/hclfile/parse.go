package hclfile

import (
	"fmt"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
)

// MaxBytes is how long a file may be.
const MaxBytes = 1 << 20

// The bounds of a file. The parser and evaluators recurse, and a goroutine
// whose stack overflows cannot be recovered, so nesting is bounded before
// anything is parsed.
const (
	maxTokens  = 50_000
	maxNesting = 100 // of brackets, braces, parentheses and templates
	maxUnary   = 20  // operators in a row
)

// Parse parses src when it keeps to the bounds. It returns nil when it does
// not, or does not parse; the report has the reason.
func Parse(name string, src []byte, r *Report) *hclsyntax.Body {
	r.Source(name, src)
	start := hcl.Range{Filename: name, Start: hcl.InitialPos, End: hcl.InitialPos}
	if len(src) > MaxBytes {
		r.Error(start, "File too large", "%s has %d bytes; a file has at most %d.", name, len(src), MaxBytes)
		return nil
	}
	if at, ok := ConflictMarker(name, src); ok {
		r.Error(at, "Unresolved merge conflict", "Git left conflict markers in this file. Choose one side and remove the lines that begin with <<<<<<<, ======= and >>>>>>>.")
		return nil
	}
	tokens, diags := hclsyntax.LexConfig(src, name, hcl.InitialPos)
	if diags.HasErrors() {
		r.HCL(diags)
		return nil
	}
	if at, problem := excess(tokens); problem != "" {
		r.Error(at, "File too complex", "%s", problem)
		return nil
	}
	file, diags := hclsyntax.ParseConfig(src, name, hcl.InitialPos)
	r.HCL(diags)
	if diags.HasErrors() {
		return nil
	}
	return file.Body.(*hclsyntax.Body)
}

// excess returns where and how tokens break the bounds, or an empty problem.
func excess(tokens hclsyntax.Tokens) (hcl.Range, string) {
	depth, unary := 0, 0
	for i, t := range tokens {
		switch {
		case i >= maxTokens:
			return t.Range, fmt.Sprintf("The file has more than %d tokens.", maxTokens)
		case depth > maxNesting:
			return t.Range, fmt.Sprintf("Brackets are nested more than %d deep.", maxNesting)
		case unary > maxUnary:
			return t.Range, fmt.Sprintf("More than %d operators follow each other.", maxUnary)
		}
		switch t.Type {
		case hclsyntax.TokenOBrace, hclsyntax.TokenOBrack, hclsyntax.TokenOParen, hclsyntax.TokenOQuote,
			hclsyntax.TokenOHeredoc, hclsyntax.TokenTemplateInterp, hclsyntax.TokenTemplateControl:
			depth++
		case hclsyntax.TokenCBrace, hclsyntax.TokenCBrack, hclsyntax.TokenCParen, hclsyntax.TokenCQuote,
			hclsyntax.TokenCHeredoc, hclsyntax.TokenTemplateSeqEnd:
			depth = max(0, depth-1)
		default:
		}
		if t.Type == hclsyntax.TokenBang || t.Type == hclsyntax.TokenMinus {
			unary++
		} else {
			unary = 0
		}
	}
	return hcl.Range{}, ""
}
