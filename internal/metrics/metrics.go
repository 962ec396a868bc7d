// Package metrics counts what a control plane does and gives it in Prometheus'
// form. Labels have values from the definition and from Kiln's own code alone:
// never what a stranger's request says. The series of environments that ended
// are bounded.
//
// What the ledger took is what is counted of releases, rollouts, instances and
// events; what runs, and what the gateway carried, is asked for when somebody
// looks. The package changes nothing and nothing waits for it.
package metrics

import (
	"context"
	"log/slog"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/kilnproject/kiln"
)

// Options are what is measured. All must be set.
type Options struct {
	Version string
	Engine  Engine
	Gateway Gateway
	Proof   Proof
	Storage map[string]Usage // by what is stored
	// StorageMax is the bound of Storage together in bytes; 0 is no bound.
	StorageMax func() int64
	DataDir    string
	LedgerFile string
	Log        *slog.Logger
}

// Engine says what runs and what was carried to it.
type Engine interface {
	Observe(ctx context.Context, environment string) (kiln.Observation, error)
	Measure(ctx context.Context) ([]kiln.Measurement, error)
}

// Gateway says how the gateway itself is.
type Gateway interface {
	// Connections are those of clients that are open now.
	Connections(ctx context.Context) (int, error)
}

// Usage measures what is stored, in bytes. It may take a while.
type Usage func(ctx context.Context) (int64, error)

// Metrics counts. Its methods may be called at once, and return at once.
type Metrics struct {
	options  Options
	registry *prometheus.Registry
	standing *standing
	look     *look
	usage    *usage

	rollouts      *prometheus.CounterVec
	rolloutTime   *prometheus.HistogramVec
	stepTime      *prometheus.HistogramVec
	started       *prometheus.CounterVec
	deaths        *prometheus.CounterVec
	events        *prometheus.CounterVec
	bakes         *prometheus.CounterVec
	bakeTime      *prometheus.HistogramVec
	images        *prometheus.CounterVec
	seals         *prometheus.CounterVec
	sealTime      prometheus.Histogram
	reconciles    *prometheus.HistogramVec
	verdicts      *prometheus.CounterVec
	inspections   *prometheus.HistogramVec
	requests      *prometheus.CounterVec
	requestTime   *prometheus.HistogramVec
	commits       *prometheus.HistogramVec
	waiting       prometheus.Gauge
	blind         *prometheus.CounterVec
	notifications *prometheus.CounterVec
	behind        *prometheus.GaugeVec
	skipped       *prometheus.CounterVec
	spans         *prometheus.CounterVec
}

// New returns metrics that begin with nothing counted.
func New(o Options) *Metrics {
	m := &Metrics{options: o, registry: prometheus.NewRegistry(), standing: newStanding()}
	m.count()
	m.countProcesses()
	m.look = &look{options: o, standing: m.standing, blind: m.blind, now: time.Now}
	m.usage = &usage{options: o, blind: m.blind, now: time.Now}
	m.registry.MustRegister(
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		m.standing, runs{m.look}, carried{m.look}, m.usage, disk{o}, proofs{o, m.standing, time.Now},
	)
	info := m.gauge("kiln_build_info", "The version of the control plane; always 1.", "version", "goversion")
	info.WithLabelValues(o.Version, runtime.Version()).Set(1)
	return m
}

// count makes what counts releases and what runs them.
func (m *Metrics) count() {
	m.rollouts = m.counter("kiln_rollouts_total", "Rollouts that ended, by what they were for and how they ended.", "environment", "kind", "result")
	m.rolloutTime = m.histogram("kiln_rollout_duration_seconds", "From the beginning of a rollout to its end, parking included.", minutes(), "kind", "result")
	m.stepTime = m.histogram("kiln_rollout_step_duration_seconds", "How long the steps of rollouts took.", minutes(), "step")
	m.started = m.counter("kiln_instances_started_total", "Instances that were started, for a release or in the place of another.", "environment", "service", "why")
	m.deaths = m.counter("kiln_instance_deaths_total", "Instances that ended, by cause.", "environment", "service", "cause")
	m.events = m.counter("kiln_events_total", "Events that were recorded, by kind.", "kind")
	m.bakes = m.counter("kiln_bakes_total", "Bakes of whole definitions, by result.", "result")
	m.bakeTime = m.histogram("kiln_bake_duration_seconds", "How long bakes of whole definitions took.", minutes(), "result")
	m.images = m.counter("kiln_baked_images_total", "Images that bakes gave, by whether their inputs had been baked before.", "cache")
	m.seals = m.counter("kiln_seals_total", "Root file systems that were sealed, by result.", "result")
	m.sealTime = m.histogram("kiln_seal_duration_seconds", "How long sealing a root file system took.", minutes()).WithLabelValues().(prometheus.Histogram)
	m.verdicts = m.counter("kiln_verdicts_total", "Judgements of images, by what they were for and what came of them.", "why", "outcome")
	m.inspections = m.histogram("kiln_inspection_duration_seconds", "How long looking into an image took, for its inventory and the lint.", minutes(), "result")
	m.reconciles = m.histogram("kiln_reconcile_duration_seconds", "How long comparing all environments with what is desired took, and mending them.", seconds(), "result")
}

// countProcesses makes what counts Kiln's own work.
func (m *Metrics) countProcesses() {
	m.requests = m.counter("kiln_api_requests_total", "Requests of the API that were answered, by route and status.", "method", "route", "code")
	m.requestTime = m.histogram("kiln_api_request_duration_seconds", "From a request of the API to the end of its answer; one that follows something lasts for as long as it does.", seconds(), "method", "route")
	m.commits = m.histogram("kiln_ledger_commit_duration_seconds", "How long the ledger took to make a record durable, the wait for others included.", seconds(), "result")
	m.waiting = m.gauge("kiln_ledger_commits_waiting", "Records that wait for the ledger now.").WithLabelValues()
	m.blind = m.counter("kiln_metrics_errors_total", "Questions that had no answer when metrics were made; their series are missing then.", "source")
	m.notifications = m.counter("kiln_notifications_total", "Attempts to deliver a notification, by result.", "notify", "result")
	m.behind = m.gauge("kiln_notifications_waiting", "Events that are recorded and not delivered yet, or passed over.", "notify")
	m.skipped = m.counter("kiln_notification_events_skipped_total", "Events that a receiver will never be told of, because it was away for too long.", "notify")
	m.spans = m.counter("kiln_trace_spans_total", "Spans of traces, by whether they were exported, lost with an export, or dropped because too many waited.", "result")
	for _, result := range []string{"exported", "failed", "dropped"} {
		m.spans.WithLabelValues(result)
	}
}

func (m *Metrics) counter(name, help string, labels ...string) *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	m.registry.MustRegister(c)
	return c
}

func (m *Metrics) gauge(name, help string, labels ...string) *prometheus.GaugeVec {
	g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	m.registry.MustRegister(g)
	return g
}

func (m *Metrics) histogram(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
	m.registry.MustRegister(h)
	return h
}

// minutes are buckets for what takes from milliseconds to a quarter of an hour.
func minutes() []float64 {
	return []float64{0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900}
}

// seconds are buckets for what should be quick.
func seconds() []float64 {
	return []float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60}
}

// result is the label of how something ended.
func result(err error) string {
	if err != nil {
		return "failed"
	}
	return "succeeded"
}
