package server

import (
	"net/http"
	"time"

	"github.com/kilnproject/kiln"
)

// metrics answers with the metrics that the caller's reach covers.
func (a *api) metrics(w http.ResponseWriter, r *http.Request) {
	if a.Metrics == nil {
		writeError(w, kiln.Errorf(kiln.CodeNotFound, "", "this server has no metrics"))
		return
	}
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
	a.Metrics(callOf(r).reach).ServeHTTP(w, r)
}

// counted tells of every answer of a route, refusals included.
func (a *api) counted(method, route string, next http.Handler) http.Handler {
	if a.Answered == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		noted := &noted{ResponseWriter: w}
		defer func() { a.Answered(method, route, noted.status(), time.Since(began)) }()
		next.ServeHTTP(noted, r)
	})
}

// noted remembers an answer's status.
type noted struct {
	http.ResponseWriter
	code int // 0 before the answer begins
}

func (n *noted) WriteHeader(code int) {
	if n.code == 0 {
		n.code = code
	}
	n.ResponseWriter.WriteHeader(code)
}

// Unwrap lets http.ResponseController reach what is beneath.
func (n *noted) Unwrap() http.ResponseWriter { return n.ResponseWriter }

// status is what the client got.
func (n *noted) status() int {
	if n.code == 0 {
		return http.StatusOK
	}
	return n.code
}

// notifyTest sends a test event.
func (a *api) notifyTest(r *http.Request) (any, error) {
	request, err := decode[NotifyTest](a, r)
	if err != nil {
		return nil, err
	}
	if a.NotifyTest == nil {
		return nil, kiln.Errorf(kiln.CodeNotFound, "", "this server notifies nobody")
	}
	results, err := a.NotifyTest(r.Context(), request.Name, actorOf(r))
	return NotifyResults{Results: orEmpty(results)}, err
}
