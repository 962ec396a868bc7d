package metrics

import (
	"strconv"
	"time"

	"github.com/kilnproject/kiln"
)

// Baked counts a bake of a definition.
func (m *Metrics) Baked(r kiln.BakeResult, took time.Duration, err error) {
	m.bakes.WithLabelValues(result(err)).Inc()
	m.bakeTime.WithLabelValues(result(err)).Observe(took.Seconds())
	for _, one := range r.Images {
		cache := "miss"
		if one.Cached {
			cache = "hit"
		}
		m.images.WithLabelValues(cache).Inc()
	}
}

// Sealed counts the sealing of a root file system.
func (m *Metrics) Sealed(took time.Duration, err error) {
	m.seals.WithLabelValues(result(err)).Inc()
	m.sealTime.Observe(took.Seconds())
}

// Stepped counts a step of a rollout, by a label of the journal.
func (m *Metrics) Stepped(step string, took time.Duration) {
	m.stepTime.WithLabelValues(step).Observe(took.Seconds())
}

// Reconciled counts a look at all environments.
func (m *Metrics) Reconciled(took time.Duration, err error) {
	m.reconciles.WithLabelValues(result(err)).Observe(took.Seconds())
}

// Answered counts a request of the API. The route is the pattern of one, not
// what was asked for.
func (m *Metrics) Answered(method, route string, code int, took time.Duration) {
	m.requests.WithLabelValues(method, route, strconv.Itoa(code)).Inc()
	m.requestTime.WithLabelValues(method, route).Observe(took.Seconds())
}

// Committing counts a record as waiting for the ledger until the function that
// it returns is called, with how that ended.
func (m *Metrics) Committing() func(error) {
	began := time.Now()
	m.waiting.Inc()
	return func(err error) {
		m.waiting.Dec()
		m.commits.WithLabelValues(result(err)).Observe(time.Since(began).Seconds())
	}
}

// Notified counts an attempt to deliver a notification.
func (m *Metrics) Notified(notify string, err error) {
	m.notifications.WithLabelValues(notify, result(err)).Inc()
}

// NotifyBehind says how many events a receiver has not been told of, and how
// many it never will be, since the last call.
func (m *Metrics) NotifyBehind(notify string, waiting, skipped int64) {
	m.behind.WithLabelValues(notify).Set(float64(waiting))
	m.skipped.WithLabelValues(notify).Add(float64(skipped))
}

// NotifyGone forgets a receiver.
func (m *Metrics) NotifyGone(notify string) { m.behind.DeleteLabelValues(notify) }

// Spans counts spans of traces: "exported", "failed" or "dropped".
func (m *Metrics) Spans(result string, n int) { m.spans.WithLabelValues(result).Add(float64(n)) }
