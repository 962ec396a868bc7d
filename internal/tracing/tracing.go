// Package tracing tells an OpenTelemetry collector of bakes and rollouts: what
// was done, in which order, and how long it took. It does nothing until it is
// given an endpoint. A collector that hangs or is away delays and fails nothing:
// what waits for it is bounded, and what exceeds the bound is dropped and
// counted.
package tracing

import (
	"context"
	"log/slog"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.40.0"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

const (
	// waiting bounds the spans that wait for the collector; one takes about a
	// kilobyte.
	waiting = 4096
	// exportLimit bounds one attempt to hand spans to the collector, and the
	// last one at the end.
	exportLimit = 10 * time.Second
	// longest bounds a text in a span, in bytes.
	longest  = 1024
	endLimit = time.Second
)

// Settings say where traces go.
type Settings struct {
	// Endpoint is the URL of a collector that takes OTLP over HTTP; without a
	// path it is that of traces, /v1/traces. Empty means nowhere, unless
	// Environment is set.
	Endpoint string
	Headers  map[string]string // of every request
	// Environment means that the variables OTEL_EXPORTER_OTLP_* say it all.
	Environment bool
}

// off says whether traces go nowhere.
func (s Settings) off() bool { return s.Endpoint == "" && !s.Environment }

// Tracer makes spans. Its methods may be called at once.
type Tracer struct {
	version string
	count   func(result string, n int)
	log     *slog.Logger
	limit   time.Duration // of the wait for what is left at the end

	mu      sync.Mutex // held while the settings change
	current atomic.Pointer[provider]
	ending  sync.WaitGroup
}

// provider is what makes the spans of one collector.
type provider struct {
	sdk    *sdk.TracerProvider
	tracer trace.Tracer
}

// New returns a tracer that is off. Count is told how many spans were
// "exported", "failed" and "dropped".
func New(version string, count func(result string, n int), log *slog.Logger) *Tracer {
	return &Tracer{version: version, count: count, log: log, limit: endLimit}
}

// Set sends what begins from now on to another collector, or nowhere. What
// waits for the one before still goes there.
func (t *Tracer) Set(ctx context.Context, s Settings) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var next *provider
	if !s.off() {
		var err error
		if next, err = t.open(ctx, s); err != nil {
			return err
		}
	}
	t.end(t.current.Swap(next))
	return nil
}

// open makes a provider; nothing is sent yet.
func (t *Tracer) open(ctx context.Context, s Settings) (*provider, error) {
	options := []otlptracehttp.Option{}
	if !s.Environment {
		u, err := url.Parse(s.Endpoint)
		if err != nil {
			return nil, err
		}
		if u.Path == "" || u.Path == "/" {
			u.Path = "/v1/traces"
		}
		options = append(options, otlptracehttp.WithEndpointURL(u.String()), otlptracehttp.WithHeaders(s.Headers), otlptracehttp.WithTimeout(exportLimit))
	}
	exporter, err := otlptracehttp.New(ctx, options...)
	if err != nil {
		return nil, err
	}
	about, err := resource.New(ctx, resource.WithHost(), resource.WithTelemetrySDK(),
		resource.WithAttributes(semconv.ServiceName("kiln"), semconv.ServiceVersion(t.version)), resource.WithFromEnv())
	if err != nil {
		t.log.WarnContext(ctx, "traces say less of where they are from", "error", err)
	}
	g := &gate{count: t.count}
	g.next = sdk.NewBatchSpanProcessor(&counted{SpanExporter: exporter, gate: g, log: t.log},
		sdk.WithMaxQueueSize(2*waiting), sdk.WithExportTimeout(exportLimit), sdk.WithBatchTimeout(2*time.Second))
	p := sdk.NewTracerProvider(sdk.WithSpanProcessor(g), sdk.WithResource(about), sdk.WithRawSpanLimits(limits()))
	return &provider{sdk: p, tracer: p.Tracer("github.com/kilnproject/kiln")}, nil
}

// limits bound what one span holds.
func limits() sdk.SpanLimits {
	return sdk.SpanLimits{
		AttributeValueLengthLimit: longest, AttributeCountLimit: 64, EventCountLimit: 128, LinkCountLimit: 16,
		AttributePerEventCountLimit: 16, AttributePerLinkCountLimit: 16,
	}
}

// end sends what waits, for a moment, and ends a provider.
//
//nolint:contextcheck // that goes on when the caller is done
func (t *Tracer) end(p *provider) {
	if p == nil {
		return
	}
	t.ending.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), t.limit)
		defer cancel()
		if err := p.sdk.Shutdown(ctx); err != nil {
			t.log.Debug("the last spans were not exported", "error", err)
		}
	})
}

// Close sends what waits, for a second at most.
func (t *Tracer) Close() error {
	t.mu.Lock()
	t.end(t.current.Swap(nil))
	t.mu.Unlock()
	t.ending.Wait()
	return nil
}

// gate bounds the spans that wait, and counts them.
type gate struct {
	next    sdk.SpanProcessor
	count   func(string, int)
	pending atomic.Int64
}

func (g *gate) OnStart(ctx context.Context, s sdk.ReadWriteSpan) { g.next.OnStart(ctx, s) }

// OnEnd takes a span unless too many wait.
func (g *gate) OnEnd(s sdk.ReadOnlySpan) {
	if !s.SpanContext().IsSampled() {
		return
	}
	if g.pending.Add(1) > waiting {
		g.pending.Add(-1)
		g.count("dropped", 1)
		return
	}
	g.next.OnEnd(s)
}

func (g *gate) Shutdown(ctx context.Context) error   { return g.next.Shutdown(ctx) }
func (g *gate) ForceFlush(ctx context.Context) error { return g.next.ForceFlush(ctx) }

// counted is an exporter that counts. Its errors are told once, not with each
// batch.
type counted struct {
	sdk.SpanExporter
	gate   *gate
	log    *slog.Logger
	failed atomic.Bool // the last time
}

// ExportSpans implements sdk.SpanExporter.
func (c *counted) ExportSpans(ctx context.Context, spans []sdk.ReadOnlySpan) error {
	err := c.SpanExporter.ExportSpans(ctx, spans)
	c.gate.pending.Add(-int64(len(spans)))
	how := "exported"
	if err != nil {
		how = "failed"
	}
	c.gate.count(how, len(spans))
	switch was := c.failed.Swap(err != nil); {
	case err != nil && !was:
		c.log.WarnContext(ctx, "traces do not reach the collector", "error", err)
	case err == nil && was:
		c.log.InfoContext(ctx, "traces reach the collector again")
	}
	return nil
}

// attributes are pairs of names and values as attributes; values that say
// nothing are left out.
func attributes(about []string) []attribute.KeyValue {
	var out []attribute.KeyValue
	for i := 0; i+1 < len(about); i += 2 {
		if about[i+1] != "" {
			out = append(out, key(about[i]).String(about[i+1]))
		}
	}
	return out
}

// key is an attribute's name: that of the conventions where they have one.
func key(name string) attribute.Key {
	switch name {
	case "revision":
		return semconv.VCSRefHeadRevisionKey
	case "branch":
		return semconv.VCSRefHeadNameKey
	default:
		return attribute.Key("kiln." + name)
	}
}

// Apart takes a context out of its trace, for code that would make spans of its
// own in it.
func Apart(ctx context.Context) context.Context {
	return trace.ContextWithSpan(ctx, noop.Span{})
}
