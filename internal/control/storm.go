package control

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kilnproject/kiln"
)

const (
	// stormBurst and stormRate, a second, are how many events of one kind an
	// engine may report of one environment; what exceeds them is counted. An
	// instance that tries every port of every address must not fill the disk.
	stormBurst = 100
	stormRate  = 10
	// stormFlush is how long a count may wait to be told.
	stormFlush = 10 * time.Second
)

// storm bounds the events that instances can cause at will. It is not safe for
// concurrent use.
type storm struct {
	buckets map[stormKey]*bucket
}

type stormKey struct{ environment, kind string }

type bucket struct {
	tokens  float64
	at      time.Time
	dropped int
}

// admit returns the event, or nothing when there are too many of its kind.
func (s *storm) admit(e kiln.Event, now time.Time) []kiln.Event {
	if s.buckets == nil {
		s.buckets = map[stormKey]*bucket{}
	}
	key := stormKey{e.Environment, e.Kind}
	b, ok := s.buckets[key]
	if !ok {
		b = &bucket{tokens: stormBurst, at: now}
		s.buckets[key] = b
	}
	b.tokens = min(stormBurst, b.tokens+stormRate*max(0, now.Sub(b.at).Seconds()))
	b.at = now
	if b.tokens < 1 {
		b.dropped++
		return nil
	}
	b.tokens--
	return []kiln.Event{e}
}

// flush returns one event for each count, and forgets what is at rest.
func (s *storm) flush(now time.Time) []kiln.Event {
	var out []kiln.Event
	for key, b := range s.buckets {
		if b.dropped > 0 {
			out = append(out, kiln.Event{
				At: now.UTC(), Environment: key.environment, Kind: "events.dropped", Subject: key.kind,
				Message: fmt.Sprintf("%d more events %s came than are recorded", b.dropped, key.kind),
				Data:    map[string]string{"count": fmt.Sprint(b.dropped)},
			})
			b.dropped = 0
		} else if now.Sub(b.at) > time.Minute {
			delete(s.buckets, key)
		}
	}
	slices.SortFunc(out, func(a, b kiln.Event) int {
		if a.Environment != b.Environment {
			return strings.Compare(a.Environment, b.Environment)
		}
		return strings.Compare(a.Subject, b.Subject)
	})
	return out
}
