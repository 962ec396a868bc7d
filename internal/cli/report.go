package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/kilnproject/kiln"
)

// printError says what went wrong and what to do, on standard error.
func (a *app) printError(err error) {
	s := a.style(a.Err)
	var shown *kiln.Error
	if !errors.As(err, &shown) {
		shown = plainError(err)
	}
	a.printDiagnostics(shown.Diagnostics)
	message := shown.Message
	if full := err.Error(); strings.HasSuffix(full, message) && full != message {
		message = full
	}
	a.say("%s %s", s.paint(red+";"+bold, "error:"), indentRest(s.lines(message)))
	for _, line := range shown.Evidence {
		a.say("  %s", s.lines(strings.TrimRight(line, "\n")))
	}
	if shown.Hint != "" {
		a.say("%s %s", s.paint(cyan+";"+bold, "hint:"), indentRest(s.lines(shown.Hint)))
	}
}

// plainError is what is shown of an error without a code.
func plainError(err error) *kiln.Error {
	var stopped *interruption
	switch {
	case errors.As(err, &stopped):
		return &kiln.Error{Message: stopped.message, Hint: stopped.hint}
	case errors.Is(err, context.Canceled):
		return &kiln.Error{Message: "interrupted"}
	default:
		return &kiln.Error{Message: err.Error()}
	}
}

// lines is safe, line by line.
func (s style) lines(text string) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		lines[i] = s.safe(line)
	}
	return strings.Join(lines, "\n")
}

func indentRest(text string) string { return strings.ReplaceAll(text, "\n", "\n  ") }

// say writes one line of speech.
func (a *app) say(format string, args ...any) {
	_, _ = fmt.Fprintf(a.Err, format+"\n", args...)
}

// printDiagnostics shows each with its place, its line and a caret below what
// is meant.
func (a *app) printDiagnostics(list []kiln.Diagnostic) {
	for _, d := range list {
		a.printDiagnostic(d)
	}
}

func (a *app) printDiagnostic(d kiln.Diagnostic) {
	s := a.style(a.Err)
	color := red
	if d.Severity == "warning" {
		color = yellow
	}
	a.say("%s %s", s.paint(color+";"+bold, d.Severity+":"), s.paint(bold, s.safe(d.Summary)))
	if d.File != "" {
		place := d.File
		if !filepath.IsAbs(place) {
			place = filepath.Join(a.dir, place)
		}
		if d.Line > 0 {
			place = fmt.Sprintf("%s:%d:%d", place, d.Line, max(1, d.Column))
		}
		a.say("  %s %s", s.paint(blue, "-->"), s.safe(place))
	}
	if d.Snippet != "" && d.Line > 0 {
		number := fmt.Sprintf("%4d", d.Line)
		snippet, caret := mark(d)
		a.say("%s %s", s.paint(blue, number+" |"), s.safe(snippet))
		if caret != "" {
			a.say("%s %s", s.paint(blue, "     |"), s.paint(color, caret))
		}
	}
	if d.Detail != "" {
		a.say("  %s", indentRest(s.lines(d.Detail)))
	}
	a.say("")
}

// longestSnippet is in characters; a line beyond it is cut around its mark.
const longestSnippet = 160

// mark returns the line with tabs as one blank, and carets below the range.
func mark(d kiln.Diagnostic) (snippet, caret string) {
	line := []rune(strings.ReplaceAll(strings.ToValidUTF8(d.Snippet, "?"), "\t", " "))
	column := d.Column
	if column > 60 && len(line) > longestSnippet {
		cut := min(column-40, len(line))
		line = append([]rune("..."), line[cut:]...)
		column = column - cut + 3
	}
	if len(line) > longestSnippet {
		line = append(line[:longestSnippet-3:longestSnippet-3], []rune("...")...)
	}
	if column < 1 || column > len(line)+1 {
		return string(line), ""
	}
	n := 1
	if d.EndColumn > d.Column {
		n = min(d.EndColumn-d.Column, max(1, len(line)-column+1))
	}
	return string(line), strings.Repeat(" ", column-1) + strings.Repeat("^", n)
}

// printJSON writes one value as indented JSON on standard output.
func (a *app) printJSON(v any) error {
	encoder := json.NewEncoder(a.Out)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(v)
}

// print writes data.
func (a *app) print(format string, args ...any) error {
	_, err := fmt.Fprintf(a.Out, format, args...)
	return err
}
