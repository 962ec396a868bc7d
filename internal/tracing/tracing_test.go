package tracing

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/kilnproject/kiln"
)

// backend is a collector.
type backend struct {
	*httptest.Server
	mu       sync.Mutex
	spans    []*tracepb.Span
	resource map[string]string
	header   http.Header
	path     string
	counts   map[string]int
}

func newBackend(t *testing.T) *backend {
	t.Helper()
	b := &backend{resource: map[string]string{}, counts: map[string]int{}}
	b.Server = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var request collector.ExportTraceServiceRequest
		if err == nil {
			err = proto.Unmarshal(body, &request)
		}
		if err != nil {
			t.Error(err)
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		b.header, b.path = r.Header, r.URL.Path
		for _, of := range request.GetResourceSpans() {
			for _, a := range of.GetResource().GetAttributes() {
				b.resource[a.GetKey()] = a.GetValue().GetStringValue()
			}
			for _, scope := range of.GetScopeSpans() {
				b.spans = append(b.spans, scope.GetSpans()...)
			}
		}
	}))
	t.Cleanup(b.Close)
	return b
}

func (b *backend) count(result string, n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.counts[result] += n
}

func (b *backend) counted(result string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.counts[result]
}

// tree is every span with those below it, in the order of their beginning.
func (b *backend) tree() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	slices.SortStableFunc(b.spans, func(x, y *tracepb.Span) int { return cmp.Compare(x.GetStartTimeUnixNano(), y.GetStartTimeUnixNano()) })
	var out []string
	var below func(parent, indent string)
	below = func(parent, indent string) {
		for _, s := range b.spans {
			if string(s.GetParentSpanId()) == parent {
				out = append(out, indent+describe(s))
				below(string(s.GetSpanId()), indent+"  ")
			}
		}
	}
	below("", "")
	return out
}

func describe(s *tracepb.Span) string {
	var text strings.Builder
	text.WriteString(s.GetName())
	for _, a := range s.GetAttributes() {
		v := a.GetValue().GetStringValue()
		if v == "" {
			v = fmt.Sprint(a.GetValue().GetBoolValue())
		}
		text.WriteString(" " + a.GetKey() + "=" + v)
	}
	if s.GetStatus().GetCode() == tracepb.Status_STATUS_CODE_ERROR {
		text.WriteString(" ERROR " + s.GetStatus().GetMessage())
	}
	return text.String()
}

func newTracer(t *testing.T, b *backend, s Settings) *Tracer {
	t.Helper()
	tr := New("1.2.3", b.count, slog.New(slog.DiscardHandler))
	if err := tr.Set(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	return tr
}

func TestSpans(t *testing.T) {
	b := newBackend(t)
	tr := newTracer(t, b, Settings{Endpoint: b.URL, Headers: map[string]string{"X-Team": "ops"}})
	ctx, up := tr.Begin(t.Context(), "kiln up", "environment", "", "revision", "abc", "branch", "main")
	_, parse := tr.Begin(ctx, "parse")
	parse(nil, "environment", "production")
	rolloutCtx, rollout := tr.Begin(ctx, "rollout", "release", "4")
	_, step := tr.Begin(rolloutCtx, "rollout step", "step", "verify")
	step(kiln.Errorf(kiln.CodeFailed, "", "GET /healthz: 503"))
	rollout(errors.New("it failed"))
	up(nil, "environment", "production")
	_, nobody := tr.Begin(t.Context(), "seal") // an instance is replaced: not part of anything that was asked for
	nobody(nil)
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"kiln up vcs.ref.head.revision=abc vcs.ref.head.name=main kiln.environment=production",
		"  parse kiln.environment=production",
		"  rollout kiln.release=4 error.type=internal ERROR it failed",
		"    rollout verify kiln.step=verify error.type=failed ERROR GET /healthz: 503",
	}
	if diff := gocmp.Diff(want, b.tree()); diff != "" {
		t.Error(diff)
	}
	if b.resource["service.name"] != "kiln" || b.resource["service.version"] != "1.2.3" || b.resource["host.name"] == "" {
		t.Errorf("resource: %v", b.resource)
	}
	if b.header.Get("X-Team") != "ops" || b.path != "/v1/traces" {
		t.Errorf("%s %v", b.path, b.header)
	}
	if n := b.counted("exported"); n != 4 {
		t.Errorf("%d spans were exported", n)
	}
}

func TestBake(t *testing.T) {
	b := newBackend(t)
	tr := newTracer(t, b, Settings{Endpoint: b.URL + "/own/path"})
	ctx, up := tr.Begin(t.Context(), "kiln up")
	passed := 0
	progress, end := tr.Bake(ctx, func(kiln.Progress) { passed++ })
	for _, p := range []kiln.Progress{
		{Subject: "app", Step: "[1/2] FROM scratch", Cached: true, Done: true},
		{Subject: "app", Step: "[2/2] RUN make"},
		{Subject: "app", Step: "[2/2] RUN make", Message: "a line of output"},
		{Subject: "app", Step: "[2/2] RUN make", Error: "exit code 2", Took: time.Second},
		{Subject: "app", Error: "exit code 2"},
		{Subject: "base", Step: "fetch"}, // it is given up when the other fails
	} {
		progress(p)
	}
	end()
	progress(kiln.Progress{Subject: "late", Done: true})
	up(nil)
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	if passed != 7 {
		t.Errorf("%d lines were passed on", passed)
	}
	tree := b.tree()
	slices.Sort(tree) // two images run at once, and a step began when its length says
	want := []string{
		"kiln up",
		"  bake image kiln.image=app kiln.cached=false ERROR exit code 2",
		"  bake image kiln.image=base",
		"    bake step kiln.step=[1/2] FROM scratch kiln.cached=true",
		"    bake step kiln.step=[2/2] RUN make kiln.cached=false ERROR exit code 2",
		"    bake step kiln.step=fetch",
	}
	slices.Sort(want)
	if diff := gocmp.Diff(want, tree); diff != "" {
		t.Error(diff)
	}
	if b.path != "/own/path" {
		t.Error(b.path)
	}
}

func TestStepsOfAnImageAreBounded(t *testing.T) {
	b := newBackend(t)
	tr := newTracer(t, b, Settings{Endpoint: b.URL})
	ctx, up := tr.Begin(t.Context(), "kiln up")
	progress, end := tr.Bake(ctx, nil)
	for i := range 2 * stepsOfImage {
		progress(kiln.Progress{Subject: "app", Step: fmt.Sprint(i), Done: true})
	}
	end()
	up(nil)
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	if n := len(b.tree()); n != stepsOfImage+2 {
		t.Errorf("%d spans", n)
	}
}

// TestOff: nothing is made, and nothing is allocated.
func TestOff(t *testing.T) {
	tr := New("1", func(string, int) { t.Error("counted") }, slog.New(slog.DiscardHandler))
	ctx := t.Context()
	allocated := testing.AllocsPerRun(100, func() {
		within, end := tr.Begin(ctx, "kiln up")
		end(nil)
		if within != ctx {
			t.Error("another context")
		}
	})
	if allocated > 0 {
		t.Errorf("%v allocations", allocated)
	}
	called := false
	progress, end := tr.Bake(ctx, func(kiln.Progress) { called = true })
	progress(kiln.Progress{Subject: "app"})
	end()
	if !called {
		t.Error("progress was not passed on")
	}
	if err := tr.Close(); err != nil {
		t.Error(err)
	}
}

// TestACollectorThatHangs: spans are made as before, what exceeds the bound is
// dropped and counted, and the end does not wait.
func TestACollectorThatHangs(t *testing.T) {
	hang := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-hang
	}))
	b := &backend{counts: map[string]int{}}
	tr := newTracer(t, b, Settings{Endpoint: server.URL})
	tr.limit = 10 * time.Millisecond
	const more = 500
	for range waiting + more {
		_, end := tr.Begin(t.Context(), "kiln up")
		end(nil)
	}
	if n := b.counted("dropped"); n != more {
		t.Errorf("%d spans were dropped, want %d", n, more)
	}
	if err := tr.Close(); err != nil {
		t.Error(err)
	}
	close(hang)
	server.Close()
}

func TestACollectorThatIsAway(t *testing.T) {
	b := newBackend(t)
	b.Close()
	tr := newTracer(t, b, Settings{Endpoint: b.URL})
	tr.limit = 10 * time.Millisecond
	_, end := tr.Begin(t.Context(), "kiln up")
	end(nil)
	if err := tr.Close(); err != nil {
		t.Error(err)
	}
	if n := b.counted("exported"); n != 0 {
		t.Errorf("%d spans were exported to nobody", n)
	}
}

func TestSettingsChange(t *testing.T) {
	one, other := newBackend(t), newBackend(t)
	tr := newTracer(t, one, Settings{Endpoint: one.URL})
	_, end := tr.Begin(t.Context(), "kiln up")
	end(nil)
	if err := tr.Set(t.Context(), Settings{Endpoint: other.URL}); err != nil {
		t.Fatal(err)
	}
	_, end = tr.Begin(t.Context(), "kiln bake")
	end(nil)
	if err := tr.Set(t.Context(), Settings{}); err != nil {
		t.Fatal(err)
	}
	_, end = tr.Begin(t.Context(), "kiln rollback")
	end(nil)
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	if a, b := one.tree(), other.tree(); len(a) != 1 || a[0] != "kiln up" || len(b) != 1 || b[0] != "kiln bake" {
		t.Errorf("%v and %v", a, b)
	}
}

// TestTheEnvironmentSaysIt: the standard variables alone.
func TestTheEnvironmentSaysIt(t *testing.T) {
	b := newBackend(t)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", b.URL)
	t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-team=env")
	t.Setenv("OTEL_SERVICE_NAME", "kiln-of-ops")
	tr := newTracer(t, b, Settings{Environment: true})
	_, end := tr.Begin(t.Context(), "kiln up")
	end(nil)
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	if len(b.tree()) != 1 || b.header.Get("X-Team") != "env" || b.resource["service.name"] != "kiln-of-ops" {
		t.Errorf("%v %v %v", b.tree(), b.header, b.resource)
	}
}

func TestApart(t *testing.T) {
	b := newBackend(t)
	tr := newTracer(t, b, Settings{Endpoint: b.URL})
	ctx, end := tr.Begin(t.Context(), "kiln up")
	defer end(nil)
	type key struct{}
	ctx = context.WithValue(ctx, key{}, 1)
	apart := Apart(ctx)
	if trace.SpanContextFromContext(apart).IsValid() || apart.Value(key{}) != 1 {
		t.Error("it is in the trace, or has lost its values")
	}
	tr.limit = 0
	if err := tr.Close(); err != nil {
		t.Error(err)
	}
}

func TestLongTextsAreCut(t *testing.T) {
	if got := clip(strings.Repeat("é", longest)); len(got) > longest+3 || !strings.HasSuffix(got, "é...") {
		t.Errorf("%d bytes", len(got))
	}
}
