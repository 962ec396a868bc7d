package hclfile

import (
	"bytes"
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"

	"github.com/kilnproject/kiln"
)

const (
	severityError   = "error"
	severityWarning = "warning"

	// maxDiagnostics bounds a report; nobody reads more at once.
	maxDiagnostics = 100
	// maxSnippet is in bytes.
	maxSnippet = 400
)

// Report collects diagnostics, each once. The zero value is empty.
type Report struct {
	// Hide is what must not be shown of a line; nil for nothing.
	Hide *regexp.Regexp

	sources map[string][]byte // of files, for the snippets
	diags   kiln.Diagnostics
	dropped int
	errors  int
}

// Failed says whether there is an error among them.
func (r *Report) Failed() bool { return r.errors > 0 }

// Errors is how many errors were found, those that a full report left out
// included.
func (r *Report) Errors() int { return r.errors }

// Source keeps a file's text, for the snippets of its diagnostics.
func (r *Report) Source(name string, src []byte) {
	if r.sources == nil {
		r.sources = map[string][]byte{}
	}
	if r.Hide != nil {
		src = r.Hide.ReplaceAllFunc(src, func(secret []byte) []byte { return bytes.Repeat([]byte("*"), len(secret)) })
	}
	r.sources[name] = src
}

// Error adds an error at a range.
func (r *Report) Error(at hcl.Range, summary, format string, args ...any) {
	r.add(severityError, at, summary, fmt.Sprintf(format, args...))
}

// Warn adds a warning at a range.
func (r *Report) Warn(at hcl.Range, summary, format string, args ...any) {
	r.add(severityWarning, at, summary, fmt.Sprintf(format, args...))
}

// HCL adds the diagnostics of the hcl library.
func (r *Report) HCL(diags hcl.Diagnostics) {
	for _, d := range diags {
		severity := severityError
		if d.Severity == hcl.DiagWarning {
			severity = severityWarning
		}
		at := hcl.Range{}
		if d.Subject != nil {
			at = *d.Subject
		}
		r.add(severity, at, d.Summary, d.Detail)
	}
}

func (r *Report) add(severity string, at hcl.Range, summary, detail string) {
	d := kiln.Diagnostic{Severity: severity, Summary: summary, Detail: detail}
	if at.Filename != "" {
		d.File, d.Line, d.Column = at.Filename, at.Start.Line, at.Start.Column
		if at.End.Line == at.Start.Line && at.End.Column > at.Start.Column {
			d.EndColumn = at.End.Column
		}
		d.Snippet = line(r.sources[at.Filename], at.Start.Line)
	}
	if slices.Contains(r.diags, d) {
		return
	}
	if severity == severityError {
		r.errors++
	}
	if len(r.diags) >= maxDiagnostics {
		r.dropped++
		return
	}
	r.diags = append(r.diags, d)
}

// List returns what was found, sorted by place.
func (r *Report) List() kiln.Diagnostics {
	out := slices.Clone(r.diags)
	slices.SortStableFunc(out, func(a, b kiln.Diagnostic) int {
		return cmp.Or(
			strings.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column),
			strings.Compare(a.Summary, b.Summary), strings.Compare(a.Detail, b.Detail),
		)
	})
	if r.dropped > 0 {
		out = append(out, kiln.Diagnostic{
			Severity: severityError, Summary: "Too many diagnostics",
			Detail: fmt.Sprintf("%d more are not shown.", r.dropped),
		})
	}
	return out
}

// line returns line n, from 1, of src without its end.
func line(src []byte, n int) string {
	for ; n > 1; n-- {
		i := bytes.IndexByte(src, '\n')
		if i < 0 {
			return ""
		}
		src = src[i+1:]
	}
	if i := bytes.IndexByte(src, '\n'); i >= 0 {
		src = src[:i]
	}
	src = bytes.TrimSuffix(src, []byte("\r"))
	return strings.ToValidUTF8(string(src[:min(len(src), maxSnippet)]), "�")
}

// Sentence makes one of an error's words.
func Sentence(err error) string {
	s := err.Error()
	return strings.ToUpper(s[:1]) + s[1:] + "."
}

// Invalid makes one error of diagnostics of which at least one is an error;
// what is what they are about: "the definition".
func Invalid(what string, diags kiln.Diagnostics) *kiln.Error {
	n := 0
	for _, d := range diags {
		if d.Severity == severityError {
			n++
		}
	}
	message := what + " has an error"
	if n != 1 {
		message = fmt.Sprintf("%s has %d errors", what, n)
	}
	return &kiln.Error{Code: kiln.CodeInvalid, Message: message, Diagnostics: diags, Err: diags}
}
