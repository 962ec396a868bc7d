package metrics

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kilnproject/kiln"
)

const (
	// lookFresh is how long what was asked for is given again: whoever scrapes
	// often, or many at once, does not keep engine and gateway busy.
	lookFresh = time.Second
	// lookLimit bounds how long an engine and a gateway that hang are waited for.
	lookLimit = 3 * time.Second
)

// look asks the engine and the gateway.
type look struct {
	options  Options
	standing *standing
	blind    *prometheus.CounterVec
	now      func() time.Time

	mu   sync.Mutex // held while it looks: those who come meanwhile get what it sees
	at   time.Time
	seen seen
}

// seen is what there was.
type seen struct {
	fleets      []kiln.FleetStatus
	measured    []kiln.Measurement // of whole fleets
	connections int
	gateway     bool // answered
}

// get returns what is there, or was a moment ago.
func (l *look) get() seen {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := l.now(); l.at.IsZero() || now.Sub(l.at) >= lookFresh || now.Before(l.at) {
		l.seen = l.ask()
		l.at = l.now()
	}
	return l.seen
}

// ask asks anew. What has no answer is counted and missing.
func (l *look) ask() seen {
	ctx, cancel := context.WithTimeout(context.Background(), lookLimit)
	defer cancel()
	var s seen
	for _, name := range l.standing.running() {
		o, err := l.options.Engine.Observe(ctx, name)
		if err != nil {
			l.failed("engine", err)
			break
		}
		s.fleets = append(s.fleets, o.Fleets...)
	}
	measured, err := l.options.Engine.Measure(ctx)
	if err != nil {
		l.failed("gateway", err)
		return s
	}
	for _, m := range measured {
		if m.Instance == "" {
			s.measured = append(s.measured, m)
		}
	}
	if s.connections, err = l.options.Gateway.Connections(ctx); err != nil {
		l.failed("gateway", err)
		return s
	}
	s.gateway = true
	return s
}

func (l *look) failed(source string, err error) {
	l.blind.WithLabelValues(source).Inc()
	l.options.Log.Debug("metrics are incomplete", "source", source, "error", err)
}

// runs are the metrics of what runs.
type runs struct{ look *look }

func instancesDesc() *prometheus.Desc {
	return prometheus.NewDesc("kiln_instances", "Instances by service, version (of the template) and state.", []string{"environment", "service", "version", "state"}, nil)
}

func desiredDesc() *prometheus.Desc {
	return prometheus.NewDesc("kiln_instances_desired", "Instances that should run; a parked version's workers should not.", []string{"environment", "service", "version"}, nil)
}

// Describe implements prometheus.Collector.
func (r runs) Describe(ch chan<- *prometheus.Desc) {
	ch <- instancesDesc()
	ch <- desiredDesc()
}

// Collect implements prometheus.Collector.
func (r runs) Collect(ch chan<- prometheus.Metric) {
	for _, f := range r.look.get().fleets {
		environment, service, version := parts(f.ID)
		ch <- prometheus.MustNewConstMetric(desiredDesc(), prometheus.GaugeValue, float64(f.Fleet.Count), environment, service, version)
		counts := map[kiln.InstanceState]int{
			kiln.InstanceStarting: 0, kiln.InstanceReady: 0, kiln.InstanceUnready: 0, kiln.InstanceDraining: 0, kiln.InstanceQuarantined: 0,
		}
		for _, i := range f.Instances {
			counts[i.State]++
		}
		for state, n := range counts {
			ch <- prometheus.MustNewConstMetric(instancesDesc(), prometheus.GaugeValue, float64(n), environment, service, version, string(state))
		}
	}
}

// parts are the labels that a fleet's name has.
func parts(id kiln.FleetID) (environment, service, version string) {
	environment, rest, _ := strings.Cut(string(id), "/")
	service, version, _ = strings.Cut(rest, "/")
	return environment, service, version
}
