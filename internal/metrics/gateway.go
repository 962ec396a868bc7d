package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/kilnproject/kiln"
)

// carried are the metrics of the gateway: what it counts for the judgement of
// releases. They begin anew when it does.
type carried struct{ look *look }

// carriedDescs are the descriptions, in the order of their fields.
type carriedDescs struct {
	up, connections, requests, failures, inFlight, received, sent, duration *prometheus.Desc
}

func describeCarried() carriedDescs {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("kiln_gateway_"+name, help, labels, nil)
	}
	fleet := []string{"environment", "service", "version"}
	return carriedDescs{
		up:          desc("up", "1 when the gateway answers the control plane, else 0; it may carry traffic without."),
		connections: desc("connections", "Connections of clients that are open now."),
		requests:    desc("requests_total", "Requests that instances answered, by class of the status; a TCP connection is one of none.", append(fleet, "code")...),
		failures:    desc("failures_total", "Attempts that had no answer: refused, reset, timed out. One that was tried again on another instance counts for both.", fleet...),
		inFlight:    desc("requests_in_flight", "Requests and connections that instances answer now.", fleet...),
		received:    desc("received_bytes_total", "Bytes of requests.", fleet...),
		sent:        desc("sent_bytes_total", "Bytes of answers.", fleet...),
		duration:    desc("request_duration_seconds", "From a request to the last byte of its answer.", fleet...),
	}
}

func (d carriedDescs) each(f func(*prometheus.Desc)) {
	for _, one := range []*prometheus.Desc{d.up, d.connections, d.requests, d.failures, d.inFlight, d.received, d.sent, d.duration} {
		f(one)
	}
}

// Describe implements prometheus.Collector.
func (c carried) Describe(ch chan<- *prometheus.Desc) {
	describeCarried().each(func(d *prometheus.Desc) { ch <- d })
}

// Collect implements prometheus.Collector.
func (c carried) Collect(ch chan<- prometheus.Metric) {
	d, s := describeCarried(), c.look.get()
	up := 0.0
	if s.gateway {
		up = 1
		ch <- prometheus.MustNewConstMetric(d.connections, prometheus.GaugeValue, float64(s.connections))
	}
	ch <- prometheus.MustNewConstMetric(d.up, prometheus.GaugeValue, up)
	for _, m := range s.measured {
		d.fleet(ch, m)
	}
}

// fleet gives the metrics of one.
func (d carriedDescs) fleet(ch chan<- prometheus.Metric, m kiln.Measurement) {
	environment, service, version := parts(m.Fleet)
	give := func(desc *prometheus.Desc, kind prometheus.ValueType, value float64, more ...string) {
		ch <- prometheus.MustNewConstMetric(desc, kind, value, append([]string{environment, service, version}, more...)...)
	}
	for class, n := range m.Status {
		give(d.requests, prometheus.CounterValue, float64(n), string(rune('1'+class))+"xx")
	}
	give(d.failures, prometheus.CounterValue, float64(m.Failures))
	give(d.inFlight, prometheus.GaugeValue, float64(m.InFlight))
	give(d.received, prometheus.CounterValue, float64(m.BytesIn))
	give(d.sent, prometheus.CounterValue, float64(m.BytesOut))
	buckets, count := map[float64]uint64{}, uint64(0)
	for i, n := range m.Latency {
		if count += n; i < len(kiln.LatencyBounds) {
			buckets[kiln.LatencyBounds[i].Seconds()] = count
		}
	}
	ch <- prometheus.MustNewConstHistogram(d.duration, count, m.Took.Seconds(), buckets, environment, service, version)
}
