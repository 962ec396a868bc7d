package kiln

import (
	"errors"
	"fmt"
	"strings"
)

// Code classifies an error for programs; the command line maps it to an exit
// code and the API to an HTTP status.
type Code string

// The codes of an error.
const (
	CodeInvalid     Code = "invalid"     // the input is wrong: definition, flag, request
	CodeNotFound    Code = "not_found"   // it names what is not there
	CodeConflict    Code = "conflict"    // it cannot be done in the present state
	CodeRefused     Code = "refused"     // it could be done, and a rule says no
	CodeFailed      Code = "failed"      // it was tried and did not work
	CodeUnavailable Code = "unavailable" // a needed process or machine is out of reach
	CodeNoRoom      Code = "no_room"     // disk, memory or addresses do not suffice
	CodeInternal    Code = "internal"    // a defect of Kiln
)

// Error is an error that a user sees: what is wrong, and what to do next.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
	// Hint is the command or the line that mends it.
	Hint        string       `json:"hint,omitempty"`
	Diagnostics []Diagnostic `json:"diagnostics,omitempty"`
	// Evidence is shown below the message: a probe's answer, last log lines.
	Evidence []string `json:"evidence,omitempty"`
	Err      error    `json:"-"` // what it wraps, not shown
}

func (e *Error) Error() string { return e.Message }

// Unwrap returns the wrapped error.
func (e *Error) Unwrap() error { return e.Err }

// Is matches errors of the same code whose message is empty, so that
// errors.Is(err, ErrNotFound) holds for every error of that code.
func (e *Error) Is(target error) bool {
	t := &Error{}
	return errors.As(target, &t) && t.Message == "" && t.Code == e.Code
}

// Errors by code, for errors.Is.
var (
	ErrNotFound = &Error{Code: CodeNotFound}
	ErrNoRoom   = &Error{Code: CodeNoRoom}
	ErrConflict = &Error{Code: CodeConflict}
	ErrInvalid  = &Error{Code: CodeInvalid}
)

// Errorf returns an error with a code and a message; a %w operand is wrapped.
func Errorf(code Code, hint, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Message: err.Error(), Hint: hint, Err: errors.Unwrap(err)}
}

// Diagnostic is an error or warning with its place in a definition.
type Diagnostic struct {
	Severity string `json:"severity"` // "error" or "warning"
	Summary  string `json:"summary"`  // "Unsupported argument"
	Detail   string `json:"detail"`   // sentences: why, and what to do
	File     string `json:"file,omitempty"`
	Line     int    `json:"line,omitempty"`   // from 1
	Column   int    `json:"column,omitempty"` // from 1, in characters
	// EndColumn is past the last marked character when the range is within
	// one line, else 0.
	EndColumn int    `json:"end_column,omitempty"`
	Snippet   string `json:"snippet,omitempty"` // the line as it stands
}

// Diagnostics is a list with at least one error, as an error.
type Diagnostics []Diagnostic

func (d Diagnostics) Error() string {
	var b strings.Builder
	for i, one := range d {
		if i > 0 {
			b.WriteString("; ")
		}
		if one.File != "" {
			fmt.Fprintf(&b, "%s:%d: ", one.File, one.Line)
		}
		b.WriteString(one.Summary)
		if one.Detail != "" {
			b.WriteString(": " + one.Detail)
		}
	}
	return b.String()
}
