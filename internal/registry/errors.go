package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/kilnproject/kiln"
)

// failure is an answer with one of the specification's codes
// (distribution-spec, error codes).
type failure struct {
	status  int
	code    string
	message string
}

func (f *failure) Error() string { return f.message }

func notFound(code, format string, args ...any) *failure {
	return &failure{status: http.StatusNotFound, code: code, message: fmt.Sprintf(format, args...)}
}

func badRequest(code, format string, args ...any) *failure {
	return &failure{status: http.StatusBadRequest, code: code, message: fmt.Sprintf(format, args...)}
}

func notPossible(method string) *failure {
	return &failure{http.StatusMethodNotAllowed, "UNSUPPORTED", method + " is not possible here"}
}

// Denial lets who decides about a request say how it is answered: with a status
// and headers of its own.
type Denial interface {
	error
	Deny(h http.Header) (status int)
}

// failureOf turns any error into an answer.
func (q *request) failureOf(err error) *failure {
	var f *failure
	var denial Denial
	var shown *kiln.Error
	switch {
	case errors.As(err, &f):
		return f
	case errors.As(err, &denial):
		return deniedBy(denial.Deny(q.w.Header()), err)
	case errors.As(err, &shown):
		return ofCode(shown, err)
	case errors.Is(err, context.Canceled):
		return &failure{http.StatusServiceUnavailable, "UNKNOWN", "stopped"}
	}
	return &failure{http.StatusInternalServerError, "UNKNOWN", "the log of kilnd says more"}
}

func deniedBy(status int, err error) *failure {
	f := &failure{status, "DENIED", err.Error()}
	switch status {
	case http.StatusUnauthorized:
		f.code = "UNAUTHORIZED"
	case http.StatusTooManyRequests:
		f.code = "TOOMANYREQUESTS"
	}
	return f
}

func ofCode(shown *kiln.Error, err error) *failure {
	message := err.Error()
	if shown.Hint != "" {
		message += " (" + shown.Hint + ")"
	}
	switch shown.Code {
	case kiln.CodeInvalid:
		return &failure{http.StatusBadRequest, "UNSUPPORTED", message}
	case kiln.CodeNotFound:
		return &failure{http.StatusNotFound, "BLOB_UNKNOWN", message}
	case kiln.CodeRefused, kiln.CodeConflict, kiln.CodeFailed:
		return &failure{http.StatusForbidden, "DENIED", message}
	case kiln.CodeNoRoom:
		return &failure{http.StatusInsufficientStorage, "UNKNOWN", message}
	case kiln.CodeUnavailable:
		return &failure{http.StatusServiceUnavailable, "UNKNOWN", message}
	case kiln.CodeInternal:
	}
	return &failure{http.StatusInternalServerError, "UNKNOWN", "the log of kilnd says more"}
}

// fail answers with an error.
func (q *request) fail(err error) {
	f := q.failureOf(err)
	if f.status >= http.StatusInternalServerError {
		q.g.Log.ErrorContext(q.Context(), "a request to the registry failed", "method", q.Method, "path", q.URL.Path, "error", err)
	}
	type one struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	_ = q.answer(f.status, struct { // a client that is gone gets nothing
		Errors []one `json:"errors"`
	}{[]one{{f.code, f.message}}})
}

// answer writes a JSON value. A content type that was set stays.
func (q *request) answer(status int, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	h := q.w.Header()
	if h.Get("Content-Type") == "" || status >= http.StatusBadRequest {
		h.Set("Content-Type", "application/json")
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	q.w.WriteHeader(status)
	if q.Method != http.MethodHead {
		_, _ = q.w.Write(body) // a client that is gone gets nothing
	}
	return nil
}

// done answers without a body.
func (q *request) done(status int) error {
	q.w.Header().Set("Content-Length", "0")
	q.w.WriteHeader(status)
	return nil
}
