package spec

import (
	"fmt"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
)

// The bounds of a definition. The parser and the evaluator recurse, and a
// goroutine whose stack overflows cannot be recovered, so nesting is bounded
// before anything is parsed.
const (
	maxFileBytes  = 1 << 20
	maxFiles      = 100
	maxTokens     = 50_000 // of one file
	maxNesting    = 100    // of brackets, braces, parentheses and templates
	maxUnary      = 20     // operators in a row
	maxBlocks     = 2_000  // top-level, of all files
	maxInstances  = 1_000  // of one for_each
	maxAllObjects = 2_000  // images, services, and routes, each
)

// parseBounded parses src when it keeps to the bounds.
func parseBounded(name string, src []byte, r *report) *hclsyntax.Body {
	r.sources[name] = src
	start := hcl.Range{Filename: name, Start: hcl.InitialPos, End: hcl.InitialPos}
	if len(src) > maxFileBytes {
		r.error(start, "File too large", "%s has %d bytes; a definition's file has at most %d.", name, len(src), maxFileBytes)
		return nil
	}
	if at, ok := conflictMarker(name, src); ok {
		r.error(at, "Unresolved merge conflict", "Git left conflict markers in this file. Choose one side and remove the lines that begin with <<<<<<<, ======= and >>>>>>>.")
		return nil
	}
	tokens, diags := hclsyntax.LexConfig(src, name, hcl.InitialPos)
	if diags.HasErrors() {
		r.hcl(diags)
		return nil
	}
	if at, problem := excess(tokens); problem != "" {
		r.error(at, "Definition too complex", "%s", problem)
		return nil
	}
	file, diags := hclsyntax.ParseConfig(src, name, hcl.InitialPos)
	r.hcl(diags)
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
