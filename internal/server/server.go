package server

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/control"
)

// Options are what a handler needs. All but Shutdown and Limits must be set.
type Options struct {
	Control Control
	Store   Store
	Version Version
	Log     *slog.Logger
	Limits  Limits
	// Shutdown ends every environment and then Kiln's own processes; nil when
	// the server cannot be asked for it.
	Shutdown func(ctx context.Context, actor string, progress func(kiln.Progress)) error
}

// bodyTimeout bounds how long a JSON body may take to arrive.
const bodyTimeout = 2 * time.Minute

type api struct {
	Options
}

// New returns the API's handler. It answers requests that came over a Unix
// socket through Serve; others are refused, because nobody knows who they are.
func New(options Options) http.Handler {
	options.Limits = options.Limits.withDefaults()
	a := &api{Options: options}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/version", a.answer(func(*http.Request) (any, error) { return a.Version, nil }))
	mux.HandleFunc("GET /v1/status", a.answer(a.status))
	mux.HandleFunc("GET /v1/instances", a.answer(a.instances))
	mux.HandleFunc("GET /v1/releases", a.answer(a.releases))
	mux.HandleFunc("POST /v1/blobs/missing", a.answer(a.missing))
	mux.HandleFunc("POST /v1/blobs", a.answer(a.upload))
	mux.HandleFunc("POST /v1/plan", a.answer(a.plan))
	mux.HandleFunc("POST /v1/up", a.stream(a.up))
	mux.HandleFunc("POST /v1/bake", a.stream(a.bake))
	mux.HandleFunc("POST /v1/rollback", a.stream(a.rollback))
	mux.HandleFunc("POST /v1/down", a.stream(a.down))
	mux.HandleFunc("POST /v1/shutdown", a.stream(a.shutdown))
	mux.HandleFunc("GET /v1/events", a.stream(a.events))
	mux.HandleFunc("GET /v1/logs", a.stream(a.logs))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeError(w, kiln.Errorf(kiln.CodeNotFound, "docs/reference/api.md lists what there is", "no %s %s", r.Method, r.URL.Path))
	})
	return a.enter(mux)
}

type callKey struct{}

// call is what a request is known by once it has entered.
type call struct {
	actor    string
	response *http.ResponseController
}

// enter does what every request needs: versions told, caller known, defects
// turned into answers.
func (a *api) enter(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(VersionHeader, a.Version.Version)
		if err := CheckSkew(r.Header.Get(VersionHeader), a.Version.Version); err != nil {
			writeError(w, err)
			return
		}
		actor, err := authorize(r.Context())
		if err != nil {
			a.Log.Warn("request refused", "path", r.URL.Path, "error", err)
			writeError(w, err)
			return
		}
		c := call{actor: actor, response: http.NewResponseController(w)}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callKey{}, c)))
	})
}

// callOf is for handlers behind enter.
func callOf(r *http.Request) call { return r.Context().Value(callKey{}).(call) }

func actorOf(r *http.Request) string { return callOf(r).actor }

// answer is an endpoint with one answer.
func (a *api) answer(do func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var result any
		err := a.guard(r, func() (err error) {
			result, err = do(r)
			return err
		})
		if err != nil {
			writeError(w, err)
			return
		}
		writeJSON(w, http.StatusOK, result)
	}
}

// stream is an endpoint that answers with frames.
func (a *api) stream(do func(*http.Request, *stream) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s := newStream(r.Context(), w)
		var result any
		err := a.guard(r, func() (err error) {
			result, err = do(r, s)
			return err
		})
		s.finish(result, err)
	}
}

// guard turns a panic into an error of ours, with its stack in the log.
func (a *api) guard(r *http.Request, do func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			a.Log.Error("request panicked", "method", r.Method, "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
			err = kiln.Errorf(kiln.CodeInternal, "kilnd.log in the data directory has the details; please report them",
				"a defect of Kiln: %v", p)
		}
	}()
	err = do()
	if err != nil && errorOf(err).Code == kiln.CodeInternal {
		a.Log.Error("request failed", "method", r.Method, "path", r.URL.Path, "error", err)
	}
	return err
}

// decode reads a JSON body within the limits and refuses fields that it does
// not know, so that a misspelt one is never silently without effect.
func decode[T any](a *api, r *http.Request) (T, error) {
	var v T
	// The deadline does not hold for the answer.
	response := callOf(r).response
	_ = response.SetReadDeadline(time.Now().Add(bodyTimeout))
	defer func() { _ = response.SetReadDeadline(time.Time{}) }()
	decoder := json.NewDecoder(http.MaxBytesReader(nil, r.Body, a.Limits.Request))
	decoder.DisallowUnknownFields()
	err := decoder.Decode(&v)
	if err == nil {
		_, err = decoder.Token()
		if errors.Is(err, io.EOF) {
			return v, nil
		}
		err = errors.New("more than one JSON value")
	}
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return v, kiln.Errorf(kiln.CodeInvalid, "", "the request has more than %d bytes", tooLarge.Limit)
	}
	return v, kiln.Errorf(kiln.CodeInvalid, "", "the request cannot be read: %w", err)
}

func (a *api) status(r *http.Request) (any, error) { return a.Control.Status(r.Context()) }

func (a *api) instances(r *http.Request) (any, error) {
	return eachEnvironment(a, r, a.Control.Instances)
}

func (a *api) releases(r *http.Request) (any, error) {
	return eachEnvironment(a, r, a.Control.Releases)
}

// eachEnvironment lists what belongs to the environment that is asked for, or
// to all of them.
func eachEnvironment[T any](a *api, r *http.Request, list func(context.Context, string) ([]T, error)) ([]T, error) {
	if name := r.URL.Query().Get("environment"); name != "" {
		one, err := list(r.Context(), name)
		return orEmpty(one), err
	}
	status, err := a.Control.Status(r.Context())
	if err != nil {
		return nil, err
	}
	all := []T{}
	for _, e := range status.Environments {
		one, err := list(r.Context(), e.Name)
		if err != nil {
			return nil, err
		}
		all = append(all, one...)
	}
	return all, nil
}

// orEmpty makes an empty list "[]" and not "null" in JSON.
func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

func (a *api) plan(r *http.Request) (any, error) {
	request, err := a.upRequest(r)
	if err != nil {
		return nil, err
	}
	return a.Control.Plan(r.Context(), request)
}

func (a *api) upRequest(r *http.Request) (control.UpRequest, error) {
	request, err := decode[control.UpRequest](a, r)
	request.Actor = actorOf(r)
	return request, err
}

func (a *api) up(r *http.Request, s *stream) (any, error) {
	request, err := a.upRequest(r)
	if err != nil {
		return nil, err
	}
	return a.Control.Up(r.Context(), request, s.offer)
}

func (a *api) bake(r *http.Request, s *stream) (any, error) {
	request, err := a.upRequest(r)
	if err != nil {
		return nil, err
	}
	return a.Control.Bake(r.Context(), request, s.offer)
}

func (a *api) rollback(r *http.Request, s *stream) (any, error) {
	request, err := decode[control.RollbackRequest](a, r)
	if err != nil {
		return nil, err
	}
	request.Actor = actorOf(r)
	return a.Control.Rollback(r.Context(), request, s.offer)
}

func (a *api) down(r *http.Request, s *stream) (any, error) {
	request, err := decode[control.DownRequest](a, r)
	if err != nil {
		return nil, err
	}
	request.Actor = actorOf(r)
	return struct{}{}, a.Control.Down(r.Context(), request, s.offer)
}

func (a *api) shutdown(r *http.Request, s *stream) (any, error) {
	if a.Shutdown == nil {
		return nil, kiln.Errorf(kiln.CodeRefused, "", "this server cannot be shut down by request")
	}
	return struct{}{}, a.Shutdown(r.Context(), actorOf(r), s.offer)
}

func (a *api) events(r *http.Request, s *stream) (any, error) {
	q := r.URL.Query()
	query := control.EventQuery{Environment: q.Get("environment")}
	p := params{values: q}
	query.After = p.integer("after")
	query.Last = int(p.integer("last"))
	query.Follow = p.boolean("follow")
	if p.err != nil {
		return nil, p.err
	}
	ctx, cancel := untilClosing(r.Context())
	defer cancel()
	return struct{}{}, a.Control.Events(ctx, query, func(e kiln.Event) error { return s.send(Frame{Event: &e}) })
}

func (a *api) logs(r *http.Request, s *stream) (any, error) {
	q := r.URL.Query()
	p := params{values: q}
	query := kiln.LogQuery{
		Environment: q.Get("environment"), Service: q.Get("service"), Instance: q.Get("instance"),
		Tail: int(p.integer("tail")), Follow: p.boolean("follow"), Since: p.instant("since"),
	}
	if p.err != nil {
		return nil, p.err
	}
	ctx, cancel := untilClosing(r.Context())
	defer cancel()
	return struct{}{}, a.Control.Logs(ctx, &logFrames{s: s}, query)
}

// params reads query parameters and keeps the first error.
type params struct {
	values url.Values
	err    error
}

func (p *params) fail(name, want string) {
	if p.err == nil {
		p.err = kiln.Errorf(kiln.CodeInvalid, "", "%s=%q: want %s", name, p.values.Get(name), want)
	}
}

func (p *params) integer(name string) int64 {
	text := p.values.Get(name)
	if text == "" {
		return 0
	}
	n, err := strconv.ParseInt(text, 10, 32)
	if err != nil || n < 0 {
		p.fail(name, "a whole number, 0 or more")
	}
	return n
}

func (p *params) boolean(name string) bool {
	text := p.values.Get(name)
	if text == "" {
		return false
	}
	b, err := strconv.ParseBool(text)
	if err != nil {
		p.fail(name, "true or false")
	}
	return b
}

func (p *params) instant(name string) time.Time {
	text := p.values.Get(name)
	if text == "" {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		p.fail(name, "a time such as 2026-01-31T12:00:00Z")
	}
	return t
}
