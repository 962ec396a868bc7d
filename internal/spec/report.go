package spec

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
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

// report collects diagnostics, each once.
type report struct {
	sources map[string][]byte // of files, for the snippets
	diags   kiln.Diagnostics
	dropped int
	errors  int
}

func (r *report) failed() bool { return r.errors > 0 }

// error adds an error at a range.
func (r *report) error(at hcl.Range, summary, format string, args ...any) {
	r.add(severityError, at, summary, fmt.Sprintf(format, args...))
}

// warn adds a warning at a range.
func (r *report) warn(at hcl.Range, summary, format string, args ...any) {
	r.add(severityWarning, at, summary, fmt.Sprintf(format, args...))
}

// hcl adds the diagnostics of the hcl library.
func (r *report) hcl(diags hcl.Diagnostics) {
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

func (r *report) add(severity string, at hcl.Range, summary, detail string) {
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

// list returns what was found, sorted by place.
func (r *report) list() kiln.Diagnostics {
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

// recovered, deferred, turns a panic of evaluation into a diagnostic: the
// meter's own, and those of the libraries that evaluate.
func (r *report) recovered(at hcl.Range) {
	switch p := recover().(type) {
	case nil:
	case error:
		if errors.Is(p, errExhausted) {
			r.error(at, "Too much to evaluate", "The definition makes values that are too large or takes too many steps. Make lists, strings and loops smaller.")
			return
		}
		r.error(at, "Cannot evaluate", "The evaluation broke: %v. Please report this as a defect, with the definition.", p)
	default:
		r.error(at, "Cannot evaluate", "The evaluation broke: %v. Please report this as a defect, with the definition.", p)
	}
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

// sentence makes one of an error's words.
func sentence(err error) string {
	s := err.Error()
	return strings.ToUpper(s[:1]) + s[1:] + "."
}
