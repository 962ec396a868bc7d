package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/control"
)

// fakeControl records what it was asked and answers with what it is given.
type fakeControl struct {
	up     func(ctx context.Context, r control.UpRequest, progress func(kiln.Progress)) (control.UpResult, error)
	status func() (control.Status, error)
	events func(ctx context.Context, q control.EventQuery, each func(kiln.Event) error) error
	logs   func(ctx context.Context, w io.Writer, q kiln.LogQuery) error
	down   string
	actor  string
	listed int // instances, and releases

	scanned   control.ScanRequest
	described control.InventoryRequest
}

func (f *fakeControl) Up(ctx context.Context, r control.UpRequest, p func(kiln.Progress)) (control.UpResult, error) {
	return f.up(ctx, r, p)
}

func (f *fakeControl) Bake(context.Context, control.UpRequest, func(kiln.Progress)) (control.BakeResult, error) {
	return control.BakeResult{Bundle: kiln.DigestOf(nil)}, nil
}

func (f *fakeControl) Plan(_ context.Context, r control.UpRequest) (control.PlanResult, error) {
	return control.PlanResult{Environment: r.Environment, Live: 3}, nil
}

func (f *fakeControl) Rollback(_ context.Context, r control.RollbackRequest, _ func(kiln.Progress)) (control.RollbackResult, error) {
	return control.RollbackResult{From: 2, To: r.Release}, nil
}

func (f *fakeControl) Repave(_ context.Context, r control.RepaveRequest, _ func(kiln.Progress)) (control.RepaveResult, error) {
	f.actor = r.Actor
	return control.RepaveResult{Environments: []control.Repaved{{Environment: strings.Join(r.Environments, " "), Outcome: control.RepaveNothing, Reason: fmt.Sprint(r.Reach)}}}, nil
}

func (f *fakeControl) Down(_ context.Context, r control.DownRequest, _ func(kiln.Progress)) error {
	f.down, f.actor = r.Environment, r.Actor
	return nil
}

func (f *fakeControl) VerifyRelease(_ context.Context, r control.ProofRequest, p func(kiln.Progress)) (kiln.ReleaseProof, error) {
	f.actor = r.Actor
	p(kiln.Progress{Stage: "verify", Subject: "web"})
	return kiln.ReleaseProof{Environment: r.Environment, Release: r.Release, Checks: []kiln.Check{}}, nil
}

func (f *fakeControl) DiffReleases(_ context.Context, r control.DiffRequest) (kiln.ReleaseDiff, error) {
	return kiln.ReleaseDiff{
		From: kiln.ReleaseName{Environment: r.From.Environment, Release: r.From.Release}, To: kiln.ReleaseName{Environment: r.To.Environment, Release: r.To.Release},
		Definition: []kiln.FileChange{}, Images: []kiln.ImageChange{},
	}, nil
}

func (f *fakeControl) Status(context.Context) (control.Status, error) { return f.status() }

func (f *fakeControl) Scan(_ context.Context, r control.ScanRequest, progress func(kiln.Progress)) (control.ScanResult, error) {
	f.scanned = r
	progress(kiln.Progress{Stage: "scan", Subject: "app"})
	return control.ScanResult{Images: []control.Scanned{{Subject: "app", Name: "app", Verdict: kiln.Verdict{Outcome: kiln.OutcomeFail}}}}, nil
}

func (f *fakeControl) Inventory(_ context.Context, r control.InventoryRequest) (control.Described, error) {
	f.described = r
	return control.Described{Name: "app"}, nil
}

func (f *fakeControl) InstancePage(_ context.Context, q control.InstanceQuery) ([]kiln.Instance, error) {
	var out []kiln.Instance
	for i := range f.listed {
		one := kiln.Instance{Environment: "production", Service: "web", ID: fmt.Sprintf("web-%04d", i)}
		if one.ID > q.After.ID && len(out) < q.Limit {
			out = append(out, one)
		}
	}
	return out, nil
}

func (f *fakeControl) ReleasePage(_ context.Context, q control.ReleaseQuery) ([]kiln.Release, error) {
	var out []kiln.Release
	for n := f.listed; n > 0; n-- {
		if (q.After.Number == 0 || n < q.After.Number) && len(out) < q.Limit {
			out = append(out, kiln.Release{Environment: "production", Number: n})
		}
	}
	return out, nil
}

func (f *fakeControl) Events(ctx context.Context, q control.EventQuery, each func(kiln.Event) error) error {
	return f.events(ctx, q, each)
}

func (f *fakeControl) Logs(ctx context.Context, w io.Writer, q kiln.LogQuery) error {
	return f.logs(ctx, w, q)
}

// fakeStore keeps blobs in memory and checks their digests.
type fakeStore struct {
	mu    sync.Mutex
	blobs map[kiln.Digest][]byte
}

func (s *fakeStore) NewBatch() Batch { return &fakeBatch{store: s, blobs: map[kiln.Digest][]byte{}} }

func (s *fakeStore) Missing(digests []kiln.Digest) []kiln.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(digests), func(d kiln.Digest) bool { _, ok := s.blobs[d]; return ok })
}

type fakeBatch struct {
	store *fakeStore
	blobs map[kiln.Digest][]byte
}

func (b *fakeBatch) Put(_ context.Context, r io.Reader, want kiln.Digest) (kiln.Digest, int64, error) {
	content, err := io.ReadAll(r)
	if err != nil {
		return "", 0, err
	}
	if got := kiln.DigestOf(content); got != want {
		return "", 0, kiln.Errorf(kiln.CodeInvalid, "", "content is %s and not %s", got.Short(), want.Short())
	}
	b.blobs[want] = content
	return want, int64(len(content)), nil
}

func (b *fakeBatch) Commit(context.Context) error {
	b.store.mu.Lock()
	defer b.store.mu.Unlock()
	maps.Copy(b.store.blobs, b.blobs)
	return nil
}

func (b *fakeBatch) Discard() { b.blobs = nil }

// fixture serves on a socket of its own until the test ends.
type fixture struct {
	control *fakeControl
	store   *fakeStore
	options Options
	client  *Client
	socket  string
	log     *bytes.Buffer // read it after stop
	stop    func()
}

func serve(t *testing.T, change func(*Options)) *fixture {
	t.Helper()
	dir, err := os.MkdirTemp("", "ks") // short: a socket's path has 107 characters
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	f := &fixture{
		control: &fakeControl{}, store: &fakeStore{blobs: map[kiln.Digest][]byte{}},
		socket: filepath.Join(dir, SocketName), log: &bytes.Buffer{},
	}
	f.options = Options{
		Control: f.control, Store: f.store, Version: Version{Version: "1.4.0", PID: 7}, Log: slog.New(slog.NewTextHandler(f.log, nil)),
	}
	if change != nil {
		change(&f.options)
	}
	f.start(t)
	f.client = NewClient(f.socket, "1.4.2")
	return f
}

// start serves, for the first time or again.
func (f *fixture) start(t *testing.T) {
	t.Helper()
	listener, err := Listen(f.socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, listener, New(f.options), time.Second, f.options.Log) }()
	f.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(f.stop)
}

func TestUpStreamsProgressAndResult(t *testing.T) {
	f := serve(t, nil)
	f.control.up = func(_ context.Context, r control.UpRequest, progress func(kiln.Progress)) (control.UpResult, error) {
		progress(kiln.Progress{Stage: "bake", Subject: "web", Step: "RUN make", Message: "cc -o web"})
		progress(kiln.Progress{Stage: "bake", Subject: "web", Done: true})
		return control.UpResult{Environment: r.Environment, Release: kiln.Release{Number: 4, Actor: r.Actor}}, nil
	}
	var seen []kiln.Progress
	result, err := f.client.Up(t.Context(), control.UpRequest{Environment: "production"}, func(p kiln.Progress) { seen = append(seen, p) })
	if err != nil {
		t.Fatal(err)
	}
	if len(seen) != 2 || seen[0].Message != "cc -o web" || !seen[1].Done {
		t.Errorf("progress: %+v", seen)
	}
	if result.Environment != "production" || result.Release.Number != 4 {
		t.Errorf("result: %+v", result)
	}
	if !strings.HasSuffix(result.Release.Actor, fmt.Sprintf(" (%d)", os.Geteuid())) {
		t.Errorf("actor %q is not the caller", result.Release.Actor)
	}
}

func TestErrorsKeepCodeHintAndEvidence(t *testing.T) {
	f := serve(t, nil)
	want := &kiln.Error{
		Code: kiln.CodeFailed, Message: "web was never ready", Hint: "kiln logs", Evidence: []string{"GET /: 500"},
		Diagnostics: []kiln.Diagnostic{{Severity: "error", Summary: "No", File: "kiln.hcl", Line: 3}},
	}
	f.control.up = func(context.Context, control.UpRequest, func(kiln.Progress)) (control.UpResult, error) {
		return control.UpResult{}, fmt.Errorf("release 4: %w", want)
	}
	_, err := f.client.Up(t.Context(), control.UpRequest{}, nil)
	var got *kiln.Error
	if !errors.As(err, &got) {
		t.Fatalf("%T %v", err, err)
	}
	outer := *want
	outer.Message = "release 4: web was never ready"
	if diff := cmp.Diff(&outer, got); diff != "" {
		t.Error(diff)
	}
}

func TestStatusFollowsCode(t *testing.T) {
	f := serve(t, nil)
	for code, status := range map[kiln.Code]int{
		kiln.CodeInvalid: 422, kiln.CodeNotFound: 404, kiln.CodeConflict: 409, kiln.CodeRefused: 403,
		kiln.CodeFailed: 502, kiln.CodeUnavailable: 503, kiln.CodeNoRoom: 507, kiln.CodeInternal: 500, "new": 500,
	} {
		f.control.status = func() (control.Status, error) { return control.Status{}, &kiln.Error{Code: code, Message: "m"} }
		f.control.up = func(context.Context, control.UpRequest, func(kiln.Progress)) (control.UpResult, error) {
			return control.UpResult{}, &kiln.Error{Code: code, Message: "m"}
		}
		for _, one := range []struct{ method, path, body string }{{"GET", "status", ""}, {"POST", "up", "{}"}} {
			response, err := f.client.send(t.Context(), one.method, one.path, nil, typeJSON, strings.NewReader(one.body))
			if err != nil {
				t.Fatal(err)
			}
			_ = response.Body.Close()
			if response.StatusCode != status {
				t.Errorf("%s %s: %d, want %d", code, one.path, response.StatusCode, status)
			}
		}
	}
}

func TestPanicIsAnInternalErrorWithItsStackInTheLog(t *testing.T) {
	f := serve(t, nil)
	f.control.status = func() (control.Status, error) { panic("out of cheese") }
	f.control.up = func(context.Context, control.UpRequest, func(kiln.Progress)) (control.UpResult, error) {
		panic("out of crackers")
	}
	_, err1 := f.client.Status(t.Context())
	_, err2 := f.client.Up(t.Context(), control.UpRequest{}, nil)
	for _, err := range []error{err1, err2} {
		if !errors.Is(err, &kiln.Error{Code: kiln.CodeInternal}) {
			t.Errorf("%v", err)
		}
	}
	f.stop()
	for _, want := range []string{"out of cheese", "out of crackers", "server_test.go"} {
		if !strings.Contains(f.log.String(), want) {
			t.Errorf("%q is not in the log", want)
		}
	}
}

func TestUploadStoresWhatIsMissing(t *testing.T) {
	f := serve(t, nil)
	contents := [][]byte{[]byte("one"), []byte("two"), {}, bytes.Repeat([]byte("x"), 3<<20)}
	var digests []kiln.Digest
	var blobs []Blob
	for _, c := range contents {
		d := kiln.DigestOf(c)
		digests = append(digests, d, d) // repeats are answered once
		blobs = append(blobs, Blob{Digest: d, Size: int64(len(c)), Open: func() (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(c)), nil
		}})
	}
	missing, err := f.client.Missing(t.Context(), digests)
	if err != nil || len(missing) != len(contents) {
		t.Fatalf("missing %v: %v", missing, err)
	}
	var sent int64
	result, err := f.client.Upload(t.Context(), blobs, func(n int64) { sent += n })
	if err != nil {
		t.Fatal(err)
	}
	if want := int64(6 + 3<<20); result.Blobs != 4 || result.Bytes != want || sent != want {
		t.Errorf("%+v, sent %d", result, sent)
	}
	if missing, err = f.client.Missing(t.Context(), digests); err != nil || len(missing) != 0 {
		t.Errorf("still missing %v: %v", missing, err)
	}
}

func TestUploadRefusesWhatIsWrong(t *testing.T) {
	content := []byte("content")
	opener := func(c []byte) func() (io.ReadCloser, error) {
		return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(c)), nil }
	}
	for name, c := range map[string]struct {
		blobs []Blob
		want  string
	}{
		"other content":  {[]Blob{{kiln.DigestOf([]byte("c0ntent")), 7, opener(content)}}, "content is"},
		"grew":           {[]Blob{{kiln.DigestOf(content), 3, opener(content)}}, "changed while it was read"},
		"shrank":         {[]Blob{{kiln.DigestOf(content), 9, opener(content)}}, "changed while it was read"},
		"bad name":       {[]Blob{{"../../etc/passwd", 7, opener(content)}}, "64 lower-case hex digits"},
		"upper case":     {[]Blob{{kiln.Digest(strings.ToUpper(string(kiln.DigestOf(content)))), 7, opener(content)}}, "64 lower-case hex digits"},
		"blob too large": {[]Blob{{kiln.DigestOf(make([]byte, 101)), 101, opener(make([]byte, 101))}}, "at most 100"},
		"too many": {[]Blob{
			{kiln.DigestOf(nil), 0, opener(nil)}, {kiln.DigestOf(content), 7, opener(content)}, {kiln.DigestOf([]byte("c")), 1, opener([]byte("c"))},
		}, "more than 2 blobs"},
		"too much": {[]Blob{
			{kiln.DigestOf(make([]byte, 99)), 99, opener(make([]byte, 99))}, {kiln.DigestOf(make([]byte, 98)), 98, opener(make([]byte, 98))},
		}, "more than 150 bytes"},
		"unreadable": {[]Blob{{kiln.DigestOf(content), 7, func() (io.ReadCloser, error) { return nil, os.ErrPermission }}}, "permission denied"},
	} {
		t.Run(name, func(t *testing.T) {
			f := serve(t, func(o *Options) { o.Limits = Limits{Blob: 100, Upload: 150, Blobs: 2} })
			_, err := f.client.Upload(t.Context(), c.blobs, nil)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if len(f.store.blobs) > 0 {
				t.Errorf("%d blobs of a refused upload are stored", len(f.store.blobs))
			}
		})
	}
}

func TestRequestsAreBounded(t *testing.T) {
	f := serve(t, func(o *Options) { o.Limits = Limits{Request: 1000, Blobs: 2} })
	f.control.up = func(context.Context, control.UpRequest, func(kiln.Progress)) (control.UpResult, error) {
		return control.UpResult{}, nil
	}
	for body, want := range map[string]string{
		`{"environment":"` + strings.Repeat("x", 1000) + `"}`: "more than 1000 bytes",
		`{"enviroment":"p"}`:      `unknown field "enviroment"`,
		`{"environment":"p"} {}`:  "more than one JSON value",
		`{"environment":`:         "unexpected EOF",
		`{"actor":"root (0)"}`:    "unknown field",
		``:                        "EOF",
		`{"environment":{"a":1}}`: "cannot unmarshal",
	} {
		err := f.client.call(t.Context(), http.MethodPost, "up", nil, typeJSON, strings.NewReader(body), &struct{}{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40s: %v, want %q", body, err, want)
		}
	}
	d := kiln.DigestOf(nil)
	body, _ := json.Marshal(MissingRequest{Digests: []kiln.Digest{d, d, d}})
	err := f.client.call(t.Context(), http.MethodPost, "blobs/missing", nil, typeJSON, bytes.NewReader(body), &struct{}{})
	if err == nil || !strings.Contains(err.Error(), "at most 2") {
		t.Errorf("too many digests: %v", err)
	}
}

// TestAFollowedStreamGoesOnAfterARestart ends the server under a client and
// starts another on the same socket.
func TestAFollowedStreamGoesOnAfterARestart(t *testing.T) {
	f := serve(t, nil)
	queries := make(chan control.EventQuery, 2)
	f.control.events = func(ctx context.Context, q control.EventQuery, each func(kiln.Event) error) error {
		queries <- q
		if err := each(kiln.Event{Sequence: q.After + 1, Kind: "release.live"}); err != nil {
			return err
		}
		<-ctx.Done()
		return nil
	}
	seen := make(chan kiln.Event)
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		query := control.EventQuery{Environment: "production", After: 5, Last: 2, Follow: true}
		ended <- f.client.Events(ctx, query, func(e kiln.Event) error { seen <- e; return nil })
	}()
	if diff := cmp.Diff(control.EventQuery{Environment: "production", After: 5, Last: 2, Follow: true}, <-queries); diff != "" {
		t.Error(diff)
	}
	if e := <-seen; e.Sequence != 6 {
		t.Errorf("event %+v", e)
	}
	f.stop()
	f.start(t)
	if diff := cmp.Diff(control.EventQuery{Environment: "production", After: 6, Follow: true}, <-queries); diff != "" {
		t.Error(diff)
	}
	if e := <-seen; e.Sequence != 7 {
		t.Errorf("event %+v", e)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("end of the stream: %v", err)
	}
}

func TestLogsAreFramedByLine(t *testing.T) {
	f := serve(t, nil)
	since := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	f.control.logs = func(_ context.Context, w io.Writer, q kiln.LogQuery) error {
		if diff := cmp.Diff(kiln.LogQuery{Environment: "p", Service: "web", Tail: 9, Since: since}, q); diff != "" {
			t.Error(diff)
		}
		for _, part := range []string{`{"instance":"a","te`, `xt":"1"}` + "\n" + `{"instance":"b","text":"2"}`, "\n"} {
			if _, err := io.WriteString(w, part); err != nil {
				return err
			}
		}
		return nil
	}
	var got []kiln.LogLine
	err := f.client.Logs(t.Context(), kiln.LogQuery{Environment: "p", Service: "web", Tail: 9, Since: since}, func(l kiln.LogLine) error {
		got = append(got, l)
		return nil
	})
	want := []kiln.LogLine{{Instance: "a", Text: "1"}, {Instance: "b", Text: "2"}}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
}

func TestSlowClientDoesNotHoldUpTheOperation(t *testing.T) {
	f := serve(t, nil)
	made := make(chan struct{})
	f.control.up = func(_ context.Context, _ control.UpRequest, progress func(kiln.Progress)) (control.UpResult, error) {
		line := strings.Repeat("x", 4096)
		for range 20 * streamQueue { // 80 MiB, far more than queue and socket hold
			progress(kiln.Progress{Stage: "bake", Message: line})
		}
		close(made)
		return control.UpResult{Environment: "done"}, nil
	}
	result, err := f.client.Up(t.Context(), control.UpRequest{}, func(kiln.Progress) { <-made })
	if err != nil || result.Environment != "done" {
		t.Errorf("%+v: %v", result, err)
	}
}

func TestEndedCallerEndsTheOperationsContext(t *testing.T) {
	f := serve(t, nil)
	started, ended := make(chan struct{}), make(chan struct{})
	f.control.up = func(ctx context.Context, _ control.UpRequest, _ func(kiln.Progress)) (control.UpResult, error) {
		close(started)
		<-ctx.Done()
		close(ended)
		return control.UpResult{}, ctx.Err()
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-started; cancel() }()
	if _, err := f.client.Up(ctx, control.UpRequest{}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	<-ended
}

func TestRequestsWithoutPeerAreRefused(t *testing.T) {
	handler := New(Options{Control: &fakeControl{}, Store: &fakeStore{}, Log: slog.New(slog.DiscardHandler)})
	answer := &recorder{header: http.Header{}}
	request, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://kiln/v1/version", nil)
	handler.ServeHTTP(answer, request)
	if answer.status != http.StatusForbidden {
		t.Errorf("status %d", answer.status)
	}
}

type recorder struct {
	header http.Header
	status int
}

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) WriteHeader(status int)      { r.status = status }
func (r *recorder) Write(b []byte) (int, error) { return len(b), nil }

func TestPeersAreJudgedByUserAndGroup(t *testing.T) {
	self := uint32(os.Geteuid())
	for name, c := range map[string]struct {
		peer   Peer
		exists bool
		want   bool
	}{
		"root":                      {Peer{}, false, true},
		"the server's own user":     {Peer{UID: self, GID: 5}, false, true},
		"primary group":             {Peer{UID: self + 1, GID: 77}, true, true},
		"supplementary group":       {Peer{UID: self + 1, GID: 5, Groups: []uint32{6, 77}}, true, true},
		"another":                   {Peer{UID: self + 1, GID: 5, Groups: []uint32{6}}, true, false},
		"group does not exist":      {Peer{UID: self + 1, GID: 77}, false, false},
		"group zero does not count": {Peer{UID: self + 1, GID: 0}, false, false},
	} {
		if got := c.peer.allowed(77, c.exists); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestSkew(t *testing.T) {
	f := serve(t, nil)
	if _, err := NewClient(f.socket, "1.1.0").Version(t.Context()); err == nil || !strings.Contains(err.Error(), "kiln is too old") {
		t.Errorf("over the wire: %v", err)
	}
}

func TestSocketIsPrivateAndRemoved(t *testing.T) {
	f := serve(t, nil)
	info, err := os.Stat(f.socket)
	if err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("%v %v", info, err)
	}
	v, err := f.client.Version(t.Context())
	if err != nil || v.PID != 7 {
		t.Errorf("%+v %v", v, err)
	}
	f.stop()
	if _, err := os.Stat(f.socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	_, err = f.client.Version(t.Context())
	if shown := (*kiln.Error)(nil); !errors.As(err, &shown) || shown.Code != kiln.CodeUnavailable {
		t.Errorf("%v", err)
	}
	if _, err := Listen("/tmp/" + strings.Repeat("x", 120)); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("%v", err)
	}
}

func TestUnknownPathsAndParameters(t *testing.T) {
	f := serve(t, nil)
	f.control.events = func(context.Context, control.EventQuery, func(kiln.Event) error) error { return nil }
	f.control.logs = func(context.Context, io.Writer, kiln.LogQuery) error { return nil }
	for path, want := range map[string]string{
		"nothing": "no GET /v1/nothing", "up": "no GET /v1/up",
		"events?last=-1": "0 or more", "events?after=x": "0 or more", "logs?follow=perhaps": "true or false", "logs?since=noon": "want a time",
	} {
		p, q, _ := strings.Cut(path, "?")
		k, v, _ := strings.Cut(q, "=")
		err := f.client.follow(t.Context(), p, map[string][]string{k: {v}}, func(Frame) error { return nil })
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
}

func TestDownAndShutdownKnowTheActor(t *testing.T) {
	var by string
	f := serve(t, func(o *Options) {
		o.Shutdown = func(_ context.Context, actor string, _ func(kiln.Progress)) error { by = actor; return nil }
	})
	if err := f.client.Down(t.Context(), "preview", nil); err != nil || f.control.down != "preview" || f.control.actor == "" {
		t.Errorf("down %q by %q: %v", f.control.down, f.control.actor, err)
	}
	if err := f.client.Shutdown(t.Context(), nil); err != nil || by != f.control.actor {
		t.Errorf("shutdown by %q: %v", by, err)
	}
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func textLog(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

func jsonOf(response *http.Response, v any) error {
	defer func() { _ = response.Body.Close() }()
	return json.NewDecoder(response.Body).Decode(v)
}
