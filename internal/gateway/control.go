package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/kilnproject/kiln"
)

const maxTable = 64 << 20 // bytes of a table on the control socket

// Ready is the gateway's own state.
type Ready struct {
	Generation uint64 `json:"generation"`
	// Listeners are the sockets that the table needs; Missing are those that
	// have not been given.
	Listeners []string `json:"listeners"`
	Missing   []string `json:"missing"`
	// Connections are those of clients that are open, each request of HTTP/2
	// that is being answered counted as one more.
	Connections int `json:"connections"`
}

// control serves the control socket until ctx ends.
func (g *gateway) control(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /table", g.putTable)
	mux.HandleFunc("GET /measure", g.getMeasure)
	mux.HandleFunc("POST /drain", g.postDrain)
	mux.HandleFunc("GET /failures", g.getFailures)
	mux.HandleFunc("GET /ready", g.getReady)
	s := &http.Server{
		Handler: mux, ReadHeaderTimeout: 10 * time.Second,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the control socket: %w", err)
	}
	return nil
}

func (g *gateway) putTable(w http.ResponseWriter, r *http.Request) {
	var t kiln.Traffic
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxTable)).Decode(&t); err != nil {
		answerError(w, kiln.Errorf(kiln.CodeInvalid, "", "read the table: %w", err))
		return
	}
	if err := g.set(t); err != nil {
		answerError(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (g *gateway) getMeasure(w http.ResponseWriter, _ *http.Request) {
	answer(w, g.registry.measure())
}

func (g *gateway) getReady(w http.ResponseWriter, _ *http.Request) {
	t := g.table.Load()
	out := Ready{Generation: t.source.Generation, Listeners: t.source.Listeners(), Missing: []string{}, Connections: g.ports.connections()}
	open := g.ports.names()
	for _, name := range out.Listeners {
		if !open[name] {
			out.Missing = append(out.Missing, name)
		}
	}
	answer(w, out)
}

func (g *gateway) postDrain(w http.ResponseWriter, r *http.Request) {
	limit, err := time.ParseDuration(r.FormValue("limit"))
	if err != nil {
		answerError(w, kiln.Errorf(kiln.CodeInvalid, "", "read the limit: %w", err))
		return
	}
	if err := g.drain(r.Context(), r.FormValue("instance"), limit); err != nil {
		answerError(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// getFailures streams instance IDs, one JSON string a line.
func (g *gateway) getFailures(w http.ResponseWriter, r *http.Request) {
	ids, cancel := g.failures.subscribe()
	defer cancel()
	c := http.NewResponseController(w)
	w.Header().Set("Content-Type", "application/x-ndjson")
	e := json.NewEncoder(w)
	for {
		if c.Flush() != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case id := <-ids:
			if e.Encode(id) != nil {
				return
			}
		}
	}
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the client left: nobody is there to tell
}

func answerError(w http.ResponseWriter, err error) {
	e := &kiln.Error{Code: kiln.CodeInternal, Message: err.Error()}
	errors.As(err, &e)
	status := http.StatusInternalServerError
	switch e.Code {
	case kiln.CodeInvalid:
		status = http.StatusBadRequest
	case kiln.CodeConflict:
		status = http.StatusConflict
	default:
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(e)
}
