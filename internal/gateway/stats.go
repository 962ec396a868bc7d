package gateway

import (
	"sync/atomic"
	"time"

	"github.com/kilnproject/kiln"
)

// stats are counters that only grow, but for inFlight.
type stats struct {
	requests, failures atomic.Uint64
	bytesIn, bytesOut  atomic.Uint64
	inFlight           atomic.Int64
	status             [5]atomic.Uint64
	latency            [len(kiln.LatencyBounds) + 1]atomic.Uint64
	took               atomic.Int64 // nanoseconds of all that latency counts
}

// answered counts one answer, took from the request to its last byte.
func (s *stats) answered(status int, took time.Duration, in, out int64) {
	s.requests.Add(1)
	if class := status/100 - 1; class >= 0 && class < len(s.status) {
		s.status[class].Add(1)
	}
	s.latency[bucket(took)].Add(1)
	s.took.Add(int64(max(0, took)))
	if in > 0 {
		s.bytesIn.Add(uint64(in))
	}
	if out > 0 {
		s.bytesOut.Add(uint64(out))
	}
}

// failed counts one attempt that had no answer.
func (s *stats) failed() {
	s.requests.Add(1)
	s.failures.Add(1)
}

// bucket is the index of the latency's bucket.
func bucket(d time.Duration) int {
	lo, hi := 0, len(kiln.LatencyBounds)
	for lo < hi {
		if mid := (lo + hi) / 2; d <= kiln.LatencyBounds[mid] {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return lo
}

// addUp adds the counts of m to sum.
func addUp(sum, m *kiln.Measurement) {
	sum.Requests += m.Requests
	sum.Failures += m.Failures
	sum.InFlight += m.InFlight
	sum.BytesIn += m.BytesIn
	sum.BytesOut += m.BytesOut
	for i := range m.Status {
		sum.Status[i] += m.Status[i]
	}
	for i := range m.Latency {
		sum.Latency[i] += m.Latency[i]
	}
	sum.Took += m.Took
}

// addTo adds what was counted to m.
func (s *stats) addTo(m *kiln.Measurement) {
	m.Requests += s.requests.Load()
	m.Failures += s.failures.Load()
	m.InFlight += s.inFlight.Load()
	m.BytesIn += s.bytesIn.Load()
	m.BytesOut += s.bytesOut.Load()
	for i := range s.status {
		m.Status[i] += s.status[i].Load()
	}
	for i := range s.latency {
		m.Latency[i] += s.latency[i].Load()
	}
	m.Took += time.Duration(s.took.Load())
}
