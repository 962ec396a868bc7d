package metrics

import (
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kilnproject/kiln"
)

// Proof says how what runs was judged, from memory: it is asked at every scrape.
type Proof interface {
	// Judgements are the last ones of the environments in which something runs.
	Judgements() []Judgement
	// Advisories are those that judgements ask.
	Advisories() Advisories
}

// Judgement is how what runs in an environment was judged last.
type Judgement struct {
	Environment string
	// Findings counts open advisories by the release's state and by severity.
	Findings map[kiln.ReleaseState]map[kiln.Severity]int
	// Services counts those of the live release by what their gates say.
	Services map[kiln.Outcome]int
}

// Advisories is the database of vulnerabilities.
type Advisories struct {
	Dated   time.Time      // of its oldest part; zero when there is none
	Records map[string]int // by ecosystem, of which there are a few dozen
}

// proofs are the metrics of what was proved.
type proofs struct {
	options  Options
	standing *standing
	now      func() time.Time
}

func ageDesc() *prometheus.Desc {
	return prometheus.NewDesc("kiln_advisories_age_seconds", "How old the oldest part of the database of vulnerabilities is; missing when there is none.", nil, nil)
}

func recordsDesc() *prometheus.Desc {
	return prometheus.NewDesc("kiln_advisories", "Records of the database of vulnerabilities, without those that were withdrawn.", []string{"ecosystem"}, nil)
}

func findingsDesc() *prometheus.Desc {
	return prometheus.NewDesc("kiln_findings", "Advisories about what the live and the parked release run, by their last judgement, without those that a gate ignores.", []string{"environment", "release", "severity"}, nil)
}

func judgedDesc() *prometheus.Desc {
	return prometheus.NewDesc("kiln_services_judged", "Services of live releases by what their gate said last, of advisories and of who signed them: one that does not pass runs, and a new release with its image is refused.", []string{"environment", "outcome"}, nil)
}

// Describe implements prometheus.Collector.
func (p proofs) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{ageDesc(), recordsDesc(), findingsDesc(), judgedDesc()} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (p proofs) Collect(ch chan<- prometheus.Metric) {
	a := p.options.Proof.Advisories()
	if !a.Dated.IsZero() {
		// An age below zero is one, too: the machine's clock is wrong, or the file's.
		ch <- prometheus.MustNewConstMetric(ageDesc(), prometheus.GaugeValue, p.now().Sub(a.Dated).Seconds())
	}
	for ecosystem, n := range a.Records {
		ch <- prometheus.MustNewConstMetric(recordsDesc(), prometheus.GaugeValue, float64(n), ecosystem)
	}
	running := p.standing.running()
	for _, j := range p.options.Proof.Judgements() {
		if slices.Contains(running, j.Environment) {
			j.collect(ch)
		}
	}
}

func (j Judgement) collect(ch chan<- prometheus.Metric) {
	for state, counts := range j.Findings {
		for _, severity := range kiln.Severities() {
			ch <- prometheus.MustNewConstMetric(findingsDesc(), prometheus.GaugeValue, float64(counts[severity]), j.Environment, string(state), string(severity))
		}
	}
	for _, outcome := range outcomes() {
		ch <- prometheus.MustNewConstMetric(judgedDesc(), prometheus.GaugeValue, float64(j.Services[outcome]), j.Environment, string(outcome))
	}
}

func outcomes() []kiln.Outcome {
	return []kiln.Outcome{kiln.OutcomePass, kiln.OutcomeFail, kiln.OutcomeUnknown}
}

// Inspected counts an image that was looked into.
func (m *Metrics) Inspected(took time.Duration, err error) {
	m.inspections.WithLabelValues(result(err)).Observe(took.Seconds())
}

// Judged counts a judgement, by one of a few words for what it was for.
func (m *Metrics) Judged(why string, outcome kiln.Outcome, err error) {
	if err != nil || !slices.Contains(outcomes(), outcome) {
		outcome = "error"
	}
	m.verdicts.WithLabelValues(why, string(outcome)).Inc()
}
