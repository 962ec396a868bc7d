package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/kilnproject/kiln/test/blame"
	"github.com/kilnproject/kiln/test/load"
)

// report is what came of a run.
type report struct {
	Seed     uint64             `json:"seed"`
	Seconds  float64            `json:"seconds"` // of disturbance
	Events   map[string]*tally  `json:"events"`  // by kind
	Starts   int64              `json:"control_plane_starts"`
	Releases int                `json:"releases_acknowledged"`
	Streams  map[string]*stream `json:"streams"`
	Orphans  []string           `json:"orphans"`  // what was left, while it ran and afterwards
	Records  []string           `json:"records"`  // broken or lost
	Problems []string           `json:"problems"` // what did not come back to what it should be
	Log      []string           `json:"log"`
}

// tally counts events of a kind.
type tally struct {
	Done    int `json:"done"`
	Without int `json:"without"` // not done, for want of a victim or a reason that is none of Kiln's
}

// stream is what became of one kind of requests.
type stream struct {
	load.Report
	// InFlight are failures of requests that were in flight on a process that
	// was killed, by process and cause; Unexplained are the others.
	InFlight    map[string]int `json:"in_flight"`
	Unexplained map[string]int `json:"unexplained"`
	Examples    []string       `json:"examples,omitempty"`
	Slow        []string       `json:"slow,omitempty"` // answered, but after slow
}

// slow is what a person notices, and longer than the freezes that are asked
// for.
const slow = 4 * time.Second

// examples is how many unexplained failures are shown.
const examples = 20

func newStream() *stream {
	return &stream{InFlight: map[string]int{}, Unexplained: map[string]int{}}
}

// take sorts what failed or was slow; the kills of their time must be known by
// now.
func (s *stream) take(odd []load.Outcome, kills *blame.Register, began time.Time) {
	for _, o := range odd {
		if o.Failure == "" {
			if len(s.Slow) < examples {
				s.Slow = append(s.Slow, fmt.Sprintf("%7.3f s, %.3f s", o.At.Sub(began).Seconds(), o.Took.Seconds()))
			}
			continue
		}
		cause := blame.Cause(o.Failure)
		if whom := kills.Of(o); whom != "" {
			s.InFlight[whom+": "+cause]++
			continue
		}
		s.Unexplained[cause]++
		if len(s.Examples) < examples {
			s.Examples = append(s.Examples, fmt.Sprintf("%7.3f s, after %.3f s: %s", o.At.Sub(began).Seconds(), o.Took.Seconds(), o.Failure))
		}
	}
}

// bar is one promise and whether it was kept.
type bar struct {
	What string
	Got  int
}

// bars must all be 0.
func (r *report) bars() []bar {
	unexplained := func(name string) (n int) {
		for _, v := range r.Streams[name].Unexplained {
			n += v
		}
		return n
	}
	out := []bar{}
	for _, name := range slices.Sorted(maps.Keys(r.Streams)) {
		out = append(out, bar{"failed " + name + " not in flight on a killed process", unexplained(name)})
	}
	return append(out, bar{"orphans", len(r.Orphans)}, bar{"broken or lost records", len(r.Records)}, bar{"what did not come back", len(r.Problems)})
}

func (r *report) met() bool {
	return !slices.ContainsFunc(r.bars(), func(b bar) bool { return b.Got != 0 })
}

// print is the report for a person.
func (r *report) print(w io.Writer) {
	say := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) }
	say("\nseed %d, %.0f s; the control plane was started again %d times, %d releases went live", r.Seed, r.Seconds, r.Starts, r.Releases)
	for _, name := range slices.Sorted(maps.Keys(r.Events)) {
		t := r.Events[name]
		say("  %3d x %s%s", t.Done, name, map[bool]string{true: fmt.Sprintf(" (and %d not done)", t.Without)}[t.Without > 0])
	}
	for _, name := range slices.Sorted(maps.Keys(r.Streams)) {
		s := r.Streams[name]
		say("%s: %s", name, s.Report)
		lines(say, "in flight on ", s.InFlight)
		lines(say, "without a cause: ", s.Unexplained)
		for _, e := range s.Examples {
			say("    %s", e)
		}
		for _, one := range s.Slow {
			say("    slow: %s", one)
		}
	}
	for title, all := range map[string][]string{"orphans": r.Orphans, "records": r.Records, "did not come back": r.Problems} {
		for _, one := range all {
			say("%s: %s", title, one)
		}
	}
	for _, b := range r.bars() {
		say("%-6s %d %s", map[bool]string{true: "met", false: "MISSED"}[b.Got == 0], b.Got, b.What)
	}
}

func lines(say func(string, ...any), title string, counts map[string]int) {
	for _, cause := range slices.Sorted(maps.Keys(counts)) {
		say("  %d %s%s", counts[cause], title, cause)
	}
}

// write puts the report into a file.
func (r *report) write(path string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}
