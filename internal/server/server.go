package server

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/control"
)

// openapi describes the API; a test keeps it equal to routes and types.
//
//go:embed openapi.json
var openapi []byte

// Options are what a handler needs. Control, Store, Version and Log must be
// set.
type Options struct {
	Control Control
	Store   Store
	Version Version
	Log     *slog.Logger
	Limits  Limits
	// Access lets callers in over TCP; nil lets none in.
	Access *Access
	// Record puts an event into the history; nil drops it.
	Record func(ctx context.Context, e kiln.Event) error
	// Ledger is checked, and accepted as it is, on request.
	Ledger Ledger
	// Backup writes a backup; nil when there is nothing to back up. Nothing that
	// it wrote counts when it returns an error.
	Backup func(ctx context.Context, actor string, request BackupRequest, w io.Writer) error
	// Shutdown ends every environment and then Kiln's own processes; nil when
	// the server cannot be asked for it.
	Shutdown func(ctx context.Context, actor string, progress func(kiln.Progress)) error
	// Reload reads the configuration again; nil when there is none to read.
	Reload func(ctx context.Context, actor string) (Reloaded, error)
	// Settings is the configuration in effect; nil when there is none.
	Settings func() Settings
	// Metrics answers with the metrics that a caller with a reach may see; nil
	// when there are none.
	Metrics func(kiln.Reach) http.Handler
	// Answered is told of every answer: by the route's pattern, "other" for a
	// path that is none, its status, and how long it took. Nil tells nobody.
	Answered func(method, route string, code int, took time.Duration)
	// Registry serves images below /v2/ to callers whom MayUseRegistry knows; nil
	// when there is none.
	Registry http.Handler
	// SigningKeys are the keys of images; nil when nothing is signed.
	SigningKeys SigningKeys
	// Push sends an image to another registry; nil when there are no images.
	Push func(ctx context.Context, actor string, request PushRequest, progress func(kiln.Progress)) (PushResult, error)
	// SBOM writes what is in an image, in a format; nil when there are no images.
	SBOM func(d control.Described, format string) (json.RawMessage, error)
	// Database is what is known of vulnerabilities; nil when nothing is.
	Database Database
	// NotifyTest sends a test event to one receiver, or to all for ""; nil when
	// there are none.
	NotifyTest func(ctx context.Context, name, actor string) ([]NotifyResult, error)
}

const (
	// bodyTimeout bounds how long a JSON body may take to arrive.
	bodyTimeout = 2 * time.Minute
	// bodyMemory bounds the large JSON bodies over TCP that are held at once, in
	// bytes; one is large from bodyLarge on.
	bodyMemory = 256 << 20
	bodyLarge  = 64 << 10
	// refusedTimeout is how long a refused client may go on to send.
	refusedTimeout = 2 * time.Second
)

type api struct {
	Options
	bodies *semaphore.Weighted
}

// New returns the API's handler. It answers requests that came over a Unix
// socket through Serve, or over TCP through a Remote; others are refused,
// because nobody knows who they are.
func New(options Options) http.Handler {
	a := newAPI(options)
	mux := http.NewServeMux()
	for _, r := range a.routes() {
		mux.Handle(r.method+" "+r.path, a.counted(r.method, r.path, a.enter(r.role, r.handle)))
	}
	if a.Registry != nil {
		mux.Handle(registryPath, a.counted("other", registryPath, a.registry(a.Registry)))
	}
	mux.Handle("/", a.counted("other", "other", a.enter(kiln.RoleRead, func(w http.ResponseWriter, r *http.Request) {
		writeError(w, kiln.Errorf(kiln.CodeNotFound, "GET /v1/openapi.json lists what there is", "no %s %s", r.Method, r.URL.Path))
	})))
	return mux
}

func newAPI(options Options) *api {
	options.Limits = options.Limits.withDefaults()
	if options.Access == nil {
		options.Access = NewAccess(nil)
	}
	return &api{Options: options, bodies: semaphore.NewWeighted(bodyMemory)}
}

type callKey struct{}

// call is what a request is known by once it has entered.
type call struct {
	caller
	response *http.ResponseController
}

// enter does what every request needs: caller known and allowed, versions
// told, defects turned into answers.
func (a *api) enter(need kiln.Role, next http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		response := http.NewResponseController(w)
		_ = response.SetWriteDeadline(time.Now().Add(writeTimeout))
		within, end, err := a.admit(r, need)
		if err != nil {
			a.refuse(w, r, response, err)
			return
		}
		defer end()
		w.Header().Set(VersionHeader, a.Version.Version)
		if err := kiln.CheckSkew("kiln", r.Header.Get(VersionHeader), "kilnd", a.Version.Version); err != nil {
			a.refuse(w, r, response, err)
			return
		}
		next(w, r.WithContext(within)) //nolint:contextcheck // admit makes it of r's
	})
}

// admit says who calls and counts the request as running, or says why it may
// not. The context that it returns ends when the caller may no longer call.
func (a *api) admit(r *http.Request, need kiln.Role) (context.Context, func(), error) {
	ctx := r.Context()
	who, err := a.identify(r)
	if err != nil {
		return nil, nil, err
	}
	if r.ContentLength != 0 && r.Method == http.MethodGet {
		return nil, nil, kiln.Errorf(kiln.CodeInvalid, "", "%s %s takes no body", r.Method, r.URL.Path)
	}
	if !who.role.Includes(need) {
		a.Log.Warn("request refused", "method", r.Method, "path", r.URL.Path, "actor", who.actor, "role", who.role, "needs", need)
		return nil, nil, kiln.Errorf(kiln.CodeRefused, "use a token with that role, or the Unix socket",
			"%s may not do that: it needs role %s, and has role %s", who.actor, need, who.role)
	}
	ctx, end, err := a.Access.begin(ctx, who)
	if err != nil {
		return nil, nil, err
	}
	leave := serves(ctx)
	ctx = context.WithValue(ctx, callKey{}, call{caller: who})
	return ctx, func() { leave(); end() }, nil
}

// identify says who calls.
func (a *api) identify(r *http.Request) (caller, error) {
	if from, ok := remoteOf(r.Context()); ok {
		return a.Access.enter(r.Context(), from, r.Header.Get("Authorization"))
	}
	actor, err := authorize(r.Context())
	if err != nil {
		a.Log.Warn("request refused", "path", r.URL.Path, "error", err)
		return caller{}, err
	}
	return caller{actor: actor, role: kiln.RoleAdmin}, nil
}

// refuse answers a request whose body nobody reads, and does not wait for it.
func (a *api) refuse(w http.ResponseWriter, r *http.Request, response *http.ResponseController, err error) {
	if d := (*denial)(nil); !errors.As(err, &d) || d.status != http.StatusUnauthorized {
		w.Header().Set(VersionHeader, a.Version.Version) // strangers need not know
	}
	if r.ContentLength != 0 { // the body is not read
		w.Header().Set("Connection", "close")
		_ = response.SetReadDeadline(time.Now().Add(refusedTimeout))
	}
	writeError(w, err)
}

// callOf is for handlers behind enter.
func callOf(r *http.Request) call { return r.Context().Value(callKey{}).(call) }

func actorOf(r *http.Request) string { return callOf(r).actor }

// answer is an endpoint with one answer.
func (a *api) answer(do func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		r = withResponse(w, r)
		var result any
		err := a.guard(r, func() (err error) {
			result, err = do(r)
			return err
		})
		_ = callOf(r).response.SetWriteDeadline(time.Now().Add(writeTimeout))
		if err != nil {
			writeError(w, err)
			return
		}
		writeJSON(w, http.StatusOK, result)
	}
}

// stream is an endpoint that answers with frames.
func (a *api) stream(do func(*http.Request, *stream) (any, error)) http.HandlerFunc {
	return a.streamAs(typeStream, do)
}

func (a *api) streamAs(mediaType string, do func(*http.Request, *stream) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		r = withResponse(w, r)
		s := newStream(r.Context(), w, mediaType)
		var result any
		err := a.guard(r, func() (err error) {
			result, err = do(r, s)
			return err
		})
		s.finish(result, err)
	}
}

// withResponse lets the readers of a request's body set its deadlines.
func withResponse(w http.ResponseWriter, r *http.Request) *http.Request {
	c := callOf(r)
	c.response = http.NewResponseController(w)
	return r.WithContext(context.WithValue(r.Context(), callKey{}, c))
}

// guard turns a panic into an error of ours, with its stack in the log, and
// says why a context ended where that is known.
func (a *api) guard(r *http.Request, do func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			a.Log.Error("request panicked", "method", r.Method, "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
			err = kiln.Errorf(kiln.CodeInternal, "kilnd.log in the data directory has the details; please report them",
				"a defect of Kiln: %v", p)
		}
	}()
	err = do()
	if cause := (*kiln.Error)(nil); err != nil && r.Context().Err() != nil && errors.As(context.Cause(r.Context()), &cause) {
		err = cause
	}
	if err != nil && errorOf(err).Code == kiln.CodeInternal {
		a.Log.Error("request failed", "method", r.Method, "path", r.URL.Path, "error", err)
	}
	return err
}

// record puts an event of the caller's into the history.
func (a *api) record(ctx context.Context, e kiln.Event) error {
	if a.Record == nil {
		return nil
	}
	e.At = time.Now().UTC()
	return a.Record(ctx, e)
}

// decode reads a JSON body within the limits and refuses fields that it does
// not know, so that a misspelt one is never silently without effect.
func decode[T any](a *api, r *http.Request) (T, error) {
	var v T
	response := callOf(r).response
	_ = response.SetReadDeadline(time.Now().Add(bodyTimeout))
	done, err := a.holdBody(r)
	if err != nil {
		return v, err
	}
	defer done()
	decoder := json.NewDecoder(http.MaxBytesReader(nil, r.Body, a.Limits.Request))
	decoder.DisallowUnknownFields()
	err = decoder.Decode(&v)
	if err == nil {
		_, err = decoder.Token()
		if errors.Is(err, io.EOF) {
			_ = response.SetReadDeadline(time.Time{}) // it does not hold for the answer
			return v, nil
		}
		err = errors.New("more than one JSON value")
	}
	_ = response.SetReadDeadline(time.Now().Add(refusedTimeout)) // what is left is not waited for
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return v, kiln.Errorf(kiln.CodeInvalid, "", "the request has more than %d bytes", tooLarge.Limit)
	}
	return v, kiln.Errorf(kiln.CodeInvalid, "", "the request cannot be read: %w", err)
}

// holdBody takes the memory of a large body from what callers over TCP have
// together, until done is called. One who sends slowly keeps it from nobody but
// other large ones.
func (a *api) holdBody(r *http.Request) (done func(), err error) {
	size := min(a.Limits.Request, bodyMemory)
	if r.ContentLength >= 0 {
		size = min(size, r.ContentLength)
	}
	if callOf(r).token == nil || size < bodyLarge {
		return func() {}, nil
	}
	if !a.bodies.TryAcquire(size) {
		return nil, busy(time.Second, "too many large requests at once")
	}
	return func() { a.bodies.Release(size) }, nil
}

func (a *api) status(r *http.Request) (any, error) {
	status, err := a.Control.Status(r.Context())
	if err != nil {
		return nil, err
	}
	reach := callOf(r).reach
	status.Environments = slices.DeleteFunc(status.Environments, func(e control.EnvironmentStatus) bool { return !reach.Covers(e.Name) })
	return status, nil
}

func (a *api) settings(*http.Request) (any, error) {
	if a.Settings == nil {
		return nil, kiln.Errorf(kiln.CodeNotFound, "", "this server has no configuration")
	}
	return a.Settings(), nil
}

func (a *api) reload(r *http.Request) (any, error) {
	if _, err := decode[struct{}](a, r); err != nil {
		return nil, err
	}
	if a.Reload == nil {
		return nil, kiln.Errorf(kiln.CodeRefused, "", "this server has no configuration to reload")
	}
	// Once it is taken, half of it must not be undone because the caller left.
	return a.Reload(context.WithoutCancel(r.Context()), actorOf(r))
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
	request.Actor, request.Reach = actorOf(r), callOf(r).reach
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
	request.Actor, request.Reach = actorOf(r), callOf(r).reach
	return a.Control.Rollback(r.Context(), request, s.offer)
}

func (a *api) repave(r *http.Request, s *stream) (any, error) {
	request, err := decode[control.RepaveRequest](a, r)
	if err != nil {
		return nil, err
	}
	request.Actor, request.Reach = actorOf(r), callOf(r).reach
	return a.Control.Repave(r.Context(), request, s.offer)
}

func (a *api) down(r *http.Request, s *stream) (any, error) {
	request, err := decode[control.DownRequest](a, r)
	if err != nil {
		return nil, err
	}
	request.Actor, request.Reach = actorOf(r), callOf(r).reach
	return struct{}{}, a.Control.Down(r.Context(), request, s.offer)
}

func (a *api) push(r *http.Request, s *stream) (any, error) {
	request, err := decode[PushRequest](a, r)
	if err != nil {
		return nil, err
	}
	if err := MayUseRegistry(r, "push"); err != nil {
		return nil, err
	}
	if a.Push == nil {
		return nil, kiln.Errorf(kiln.CodeNotFound, "", "this server has no images")
	}
	return a.Push(r.Context(), actorOf(r), request, s.offer)
}

func (a *api) shutdown(r *http.Request, s *stream) (any, error) {
	if a.Shutdown == nil {
		return nil, kiln.Errorf(kiln.CodeRefused, "", "this server cannot be shut down by request")
	}
	return struct{}{}, a.Shutdown(r.Context(), actorOf(r), s.offer)
}

func (a *api) logs(r *http.Request, s *stream) (any, error) {
	q := r.URL.Query()
	p := params{values: q}
	query := kiln.LogQuery{
		Environment: q.Get("environment"), Service: q.Get("service"), Instance: q.Get("instance"),
		Tail: int(p.integer("tail")), Follow: p.boolean("follow"), Since: p.instant("since"),
	}
	if p.err == nil && !callOf(r).reach.Covers(query.Environment) {
		p.err = kiln.Errorf(kiln.CodeRefused, "use a token whose block in kilnd.hcl names the environment", "environment %q is not for this token", query.Environment)
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
	n, err := strconv.ParseInt(text, 10, 64)
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
