package server

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"

	"github.com/kilnproject/kiln"
)

// statusOf maps an error's code to an HTTP status.
func statusOf(code kiln.Code) int {
	switch code {
	case kiln.CodeInvalid:
		return http.StatusUnprocessableEntity
	case kiln.CodeNotFound:
		return http.StatusNotFound
	case kiln.CodeConflict:
		return http.StatusConflict
	case kiln.CodeRefused:
		return http.StatusForbidden
	case kiln.CodeFailed:
		return http.StatusBadGateway
	case kiln.CodeUnavailable:
		return http.StatusServiceUnavailable
	case kiln.CodeNoRoom:
		return http.StatusInsufficientStorage
	case kiln.CodeInternal:
		return http.StatusInternalServerError
	default:
		return http.StatusInternalServerError
	}
}

// errorOf turns any error into what a client is shown. Context that wraps a
// *kiln.Error is kept in the message.
func errorOf(err error) *kiln.Error {
	var shown *kiln.Error
	var diagnostics kiln.Diagnostics
	switch {
	case errors.As(err, &shown):
		if message := err.Error(); message != shown.Message {
			outer := *shown
			outer.Message = message
			return &outer
		}
		return shown
	case errors.As(err, &diagnostics):
		return &kiln.Error{Code: kiln.CodeInvalid, Message: "the definition has errors", Diagnostics: diagnostics}
	case errors.Is(err, context.Canceled):
		return &kiln.Error{Code: kiln.CodeFailed, Message: "stopped: " + err.Error()}
	default:
		return &kiln.Error{Code: kiln.CodeInternal, Message: err.Error(), Hint: "kilnd.log in the data directory says more"}
	}
}

func writeError(w http.ResponseWriter, err error) {
	shown := errorOf(err)
	status := statusOf(shown.Code)
	if d := (*denial)(nil); errors.As(err, &d) {
		status = d.status
		if status == http.StatusUnauthorized {
			w.Header().Set("WWW-Authenticate", `Bearer realm="kiln"`)
		}
		if d.after > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(int(d.after.Seconds())))
		}
	}
	writeJSON(w, status, Frame{Error: shown})
}

// writeJSON answers with one value. A client that is gone gets nothing, and
// there is nobody to tell.
func writeJSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", typeJSON)
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n'))
}
