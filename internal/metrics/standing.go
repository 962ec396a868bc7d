package metrics

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kilnproject/kiln"
)

// keptEnded are the environments without a running release whose series are
// kept: previews come and go for years.
const keptEnded = 64

// standing is where all releases stand.
type standing struct {
	mu       sync.Mutex
	releases map[string]map[int]kiln.ReleaseState
	ended    []string // the one that ended last is last
	rolling  map[string]bool
}

func newStanding() *standing {
	return &standing{releases: map[string]map[int]kiln.ReleaseState{}, rolling: map[string]bool{}}
}

// Restore takes the releases that the ledger has, before anything is recorded.
func (m *Metrics) Restore(releases []kiln.Release) {
	for _, r := range releases {
		m.mark(r.Environment, r.Number, r.State)
	}
}

// Created counts a release that the ledger took.
func (m *Metrics) Created(r kiln.Release) {
	m.mark(r.Environment, r.Number, r.State)
	m.events.WithLabelValues("release.created").Inc() // the ledger's own
}

// Recorded counts what the ledger took.
func (m *Metrics) Recorded(r kiln.Record) {
	for _, mark := range r.Marks {
		m.mark(mark.Environment, mark.Number, mark.State)
	}
	if r.Rollout != nil {
		m.rolled(*r.Rollout)
	}
	for _, i := range r.Instances {
		m.lived(i)
	}
	for _, e := range r.Events {
		m.events.WithLabelValues(e.Kind).Inc()
	}
}

// rolled counts a rollout that ended.
func (m *Metrics) rolled(r kiln.Rollout) {
	m.standing.roll(r.Environment, r.EndedAt.IsZero())
	if r.EndedAt.IsZero() {
		return
	}
	var state struct {
		Kind string `json:"kind"`
	}
	if json.Unmarshal(r.State, &state) != nil || state.Kind == "" {
		state.Kind = "unknown"
	}
	how := "failed"
	if r.Step == "done" {
		how = "succeeded"
	}
	m.rollouts.WithLabelValues(r.Environment, state.Kind, how).Inc()
	m.rolloutTime.WithLabelValues(state.Kind, how).Observe(max(0, r.EndedAt.Sub(r.StartedAt).Seconds()))
}

// lived counts an instance's beginning and end.
func (m *Metrics) lived(i kiln.Instance) {
	switch {
	case i.State == kiln.InstanceDead && i.Cause != nil:
		m.deaths.WithLabelValues(i.Environment, i.Service, string(i.Cause.Kind)).Inc()
	case i.State == kiln.InstanceStarting:
		why := "release"
		if strings.HasPrefix(i.Reason, "replaces ") {
			why = "replacement"
		}
		m.started.WithLabelValues(i.Environment, i.Service, why).Inc()
	}
}

// mark notes where a release stands, and forgets the environment that ended
// longest ago when too many have.
func (m *Metrics) mark(environment string, number int, state kiln.ReleaseState) {
	for _, gone := range m.standing.mark(environment, number, state) {
		of := prometheus.Labels{"environment": gone}
		m.rollouts.DeletePartialMatch(of)
		m.started.DeletePartialMatch(of)
		m.deaths.DeletePartialMatch(of)
	}
}

func (s *standing) mark(environment string, number int, state kiln.ReleaseState) (forgotten []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.releases[environment] == nil {
		s.releases[environment] = map[int]kiln.ReleaseState{}
	}
	s.releases[environment][number] = state
	s.ended = slices.DeleteFunc(s.ended, func(name string) bool { return name == environment })
	if s.runs(environment) {
		return nil
	}
	s.ended = append(s.ended, environment)
	n := max(0, len(s.ended)-keptEnded)
	forgotten = slices.Clone(s.ended[:n])
	s.ended = s.ended[n:]
	return forgotten
}

// runs says whether an environment has a release that runs or is about to;
// s.mu is held.
func (s *standing) runs(environment string) bool {
	for _, state := range s.releases[environment] {
		switch state {
		case kiln.ReleaseLive, kiln.ReleaseParked, kiln.ReleasePending:
			return true
		case kiln.ReleaseRetired, kiln.ReleaseCondemned, kiln.ReleaseFailed:
		}
	}
	return false
}

func (s *standing) roll(environment string, runs bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if runs {
		s.rolling[environment] = true
	} else {
		delete(s.rolling, environment)
	}
}

// running lists the environments with a release that runs, sorted.
func (s *standing) running() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for name := range s.releases {
		if s.runs(name) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

func releasesDesc() *prometheus.Desc {
	return prometheus.NewDesc("kiln_releases", "Releases by where they stand.", []string{"environment", "state"}, nil)
}

func environmentsDesc() *prometheus.Desc {
	return prometheus.NewDesc("kiln_environments", "Environments with a release that runs or is about to.", nil, nil)
}

func rollingDesc() *prometheus.Desc {
	return prometheus.NewDesc("kiln_rollouts_running", "Rollouts that run now.", nil, nil)
}

// Describe implements prometheus.Collector.
func (s *standing) Describe(ch chan<- *prometheus.Desc) {
	ch <- releasesDesc()
	ch <- environmentsDesc()
	ch <- rollingDesc()
}

// Collect implements prometheus.Collector.
func (s *standing) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.MustNewConstMetric(environmentsDesc(), prometheus.GaugeValue, float64(len(s.running())))
	s.mu.Lock()
	defer s.mu.Unlock()
	ch <- prometheus.MustNewConstMetric(rollingDesc(), prometheus.GaugeValue, float64(len(s.rolling)))
	for _, name := range slices.Sorted(maps.Keys(s.releases)) {
		if !s.runs(name) && !slices.Contains(s.ended, name) {
			continue
		}
		counts := map[kiln.ReleaseState]int{
			kiln.ReleasePending: 0, kiln.ReleaseLive: 0, kiln.ReleaseParked: 0,
			kiln.ReleaseRetired: 0, kiln.ReleaseCondemned: 0, kiln.ReleaseFailed: 0,
		}
		for _, state := range s.releases[name] {
			counts[state]++
		}
		for state, n := range counts {
			ch <- prometheus.MustNewConstMetric(releasesDesc(), prometheus.GaugeValue, float64(n), name, string(state))
		}
	}
}
