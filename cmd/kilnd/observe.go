package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/config"
	"github.com/kilnproject/kiln/internal/control"
	"github.com/kilnproject/kiln/internal/metrics"
	"github.com/kilnproject/kiln/internal/notify"
	"github.com/kilnproject/kiln/internal/prove"
	"github.com/kilnproject/kiln/internal/server"
	"github.com/kilnproject/kiln/internal/tracing"
)

// urlLimit bounds the wait for where an environment answers, for a
// notification.
const urlLimit = 2 * time.Second

// openMetrics makes what counts and what tells, before anything can be counted.
// They ask parts that are made later.
func (p *plane) openMetrics(context.Context) error {
	p.metrics = metrics.New(metrics.Options{
		Version: version, Engine: sights{p}, Gateway: sights{p}, Proof: sights{p}, DataDir: p.data, LedgerFile: p.dir("ledger", "ledger.db"), Log: p.log,
		StorageMax: func() int64 { return p.settings.Load().storageMax },
		Storage: map[string]metrics.Usage{
			"cache":  func(ctx context.Context) (int64, error) { return caches{p.baker}.Usage(ctx) },
			"seals":  func(ctx context.Context) (int64, error) { return seals{p.sealer}.Usage(ctx) },
			"images": func(ctx context.Context) (int64, error) { return blobs{p.store}.Usage(ctx) },
			"logs":   func(ctx context.Context) (int64, error) { return writings{p.engine}.Usage(ctx) },
		},
	})
	p.listeners = p.metrics.NewListeners()
	p.later(p.listeners.Close)
	p.tracer = tracing.New(version, p.metrics.Spans, p.log)
	p.later(p.tracer.Close)
	return nil
}

// restoreMetrics counts the releases that the ledger has.
func (p *plane) restoreMetrics(ctx context.Context) error {
	names, err := p.ledger.Environments(ctx)
	if err != nil {
		return fmt.Errorf("list the environments: %w", err)
	}
	for _, name := range names {
		releases, err := p.ledger.Releases(ctx, name)
		if err != nil {
			return fmt.Errorf("list the releases of %s: %w", name, err)
		}
		p.metrics.Restore(releases)
	}
	return nil
}

// sights are what metrics ask the engine and the gateway.
type sights struct{ p *plane }

func (s sights) Observe(ctx context.Context, environment string) (kiln.Observation, error) {
	return s.p.engine.Observe(ctx, environment)
}

func (s sights) Measure(ctx context.Context) ([]kiln.Measurement, error) {
	return s.p.engine.Measure(ctx)
}

func (s sights) Connections(ctx context.Context) (int, error) {
	ready, err := s.p.gateway.Ready(ctx)
	return ready.Connections, err
}

// Judgements are none until what runs was judged.
func (s sights) Judgements() []metrics.Judgement {
	var out []metrics.Judgement
	for _, j := range s.p.control.Judgements() {
		out = append(out, metrics.Judgement(j))
	}
	return out
}

func (s sights) Advisories() metrics.Advisories {
	status := s.p.advisories.Status()
	out := metrics.Advisories{Dated: status.Dated, Records: map[string]int{}}
	for _, e := range status.Ecosystems {
		out.Records[e.Name] = e.Records - e.Withdrawn
	}
	return out
}

// proofs tells metrics of what is proved.
type proofs struct{ metrics *metrics.Metrics }

func (o proofs) Inspected(took time.Duration, err error) { o.metrics.Inspected(took, err) }

func (o proofs) Judged(why prove.Why, outcome kiln.Outcome, err error) {
	o.metrics.Judged(string(why), outcome, err)
}

// observer tells metrics and traces of work.
type observer struct {
	metrics *metrics.Metrics
	tracer  *tracing.Tracer
}

// Begin implements control.Observer.
func (o observer) Begin(ctx context.Context, name string, about ...string) (context.Context, control.End) {
	began := time.Now()
	ctx, end := o.tracer.Begin(ctx, name, about...)
	return ctx, func(err error, more ...string) {
		end(err, more...)
		switch {
		case name == "reconcile":
			o.metrics.Reconciled(time.Since(began), err)
		case name == "rollout step" && len(about) > 1:
			o.metrics.Stepped(about[1], time.Since(began))
		}
	}
}

// observedBaker tells metrics and traces of bakes. The spans are Kiln's own:
// BuildKit, which makes some of its own where it finds a trace, finds none.
type observedBaker struct {
	control.Baker
	observer
}

func (b observedBaker) Bake(ctx context.Context, r kiln.BakeRequest) (kiln.BakeResult, error) {
	began := time.Now()
	progress, end := b.tracer.Bake(ctx, r.Progress)
	defer end()
	r.Progress = progress
	out, err := b.Baker.Bake(tracing.Apart(ctx), r)
	b.metrics.Baked(out, time.Since(began), err)
	return out, err
}

// traces are the settings of traces: those of the environment over the file's.
func traces(file config.Traces, getenv func(string) string) (tracing.Settings, error) {
	switch {
	case getenv("OTEL_SDK_DISABLED") == "true" || getenv("OTEL_TRACES_EXPORTER") == "none":
		return tracing.Settings{}, nil
	case getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") != "" || getenv("OTEL_EXPORTER_OTLP_ENDPOINT") != "":
		return tracing.Settings{Environment: true}, nil
	case file.HeadersFile == "":
		return tracing.Settings{Endpoint: file.Endpoint}, nil
	}
	headers, err := config.Headers(file.HeadersFile)
	return tracing.Settings{Endpoint: file.Endpoint, Headers: headers}, err
}

// receivers are whom to notify, with their keys.
func receivers(list []config.Notify) ([]notify.Receiver, error) {
	var out []notify.Receiver
	for _, n := range list {
		r := notify.Receiver{Name: n.Name, URL: n.URL, Events: n.Events, Environments: n.Environments}
		if n.SecretFile != "" {
			key, err := config.Key(n.SecretFile)
			if err != nil {
				return nil, fmt.Errorf("read the key of notify %s: %w", n.Name, err)
			}
			r.Key = key
		}
		out = append(out, r)
	}
	return out, nil
}

// openNotifier makes what notifies; it begins with Run.
func (p *plane) openNotifier() {
	p.notifier = notify.New(notify.Options{
		Dir: p.dir("notify"), Source: p.ledger, Counter: p.metrics, Version: version, URLs: p.urls, Record: p.record, Log: p.log,
	})
}

// urls are where an environment answers.
func (p *plane) urls(ctx context.Context, environment string) []string {
	ctx, cancel := context.WithTimeout(ctx, urlLimit)
	defer cancel()
	status, err := p.control.Status(ctx)
	if err != nil {
		return nil
	}
	for _, e := range status.Environments {
		if e.Name == environment {
			return e.URLs
		}
	}
	return nil
}

// testNotify sends a test event.
func (p *plane) testNotify(ctx context.Context, name, actor string) ([]server.NotifyResult, error) {
	results, err := p.notifier.Test(ctx, name, actor)
	out := []server.NotifyResult{}
	for _, r := range results {
		one := server.NotifyResult{Name: r.Name, URL: r.URL, Status: r.Status, Took: r.Took}
		if r.Err != nil {
			one.Error = r.Err.Error()
		}
		out = append(out, one)
	}
	return out, err
}

// openTelling begins to serve metrics, to trace and to notify as the
// configuration says. What cannot be had keeps nothing else from working: it is
// told, and kiln reload tries it again.
func (p *plane) openTelling(ctx context.Context) {
	file := p.settings.Load().file
	if err := p.listeners.Set(ctx, file.Listen.Metrics); err != nil {
		p.log.ErrorContext(ctx, "metrics are not served at their own address; kiln reload tries it again", "error", err)
	}
	t, err := newTelling(file)
	if err == nil {
		err = p.tell(ctx, t)
	}
	if err != nil {
		p.log.ErrorContext(ctx, "traces or notifications are not sent; kiln reload tries it again", "error", err)
	}
}

// telling is whom traces and notifications go to, with what is secret about it.
type telling struct {
	traces    tracing.Settings
	receivers []notify.Receiver
}

func newTelling(file config.Config) (t telling, err error) {
	if t.receivers, err = receivers(file.Notify); err != nil {
		return t, err
	}
	if t.traces, err = traces(file.Traces, os.Getenv); err != nil {
		return t, fmt.Errorf("read the headers of traces: %w", err)
	}
	return t, nil
}

// tell makes it those that are told.
func (p *plane) tell(ctx context.Context, t telling) error {
	p.notifier.Set(t.receivers)
	if err := p.tracer.Set(ctx, t.traces); err != nil {
		return fmt.Errorf("begin to trace: %w", err)
	}
	return nil
}

// metricsFor answers with the metrics within a caller's reach.
func (p *plane) metricsFor(reach kiln.Reach) http.Handler { return p.metrics.Handler(reach) }

// place is a URL's scheme and host: the rest may be a secret.
func place(text string) string {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" {
		return ""
	}
	return u.Scheme + "://" + u.Host
}
