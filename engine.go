package kiln

import (
	"context"
	"io"
	"time"
)

// Engine is where instances run. It knows neither releases nor rollouts: the
// control plane says what should be, the engine makes it so, keeps it so, and
// reports what is. All methods may be called at once and again; an engine
// outlives no call's context.
type Engine interface {
	// Admit makes everything available that instances of the templates need
	// (sealed and mounted, or pushed to where nodes pull), checks it against
	// its digest, and checks that there is room for the counts in addition to
	// what runs. It starts nothing. ErrNoRoom when there is none.
	Admit(ctx context.Context, fleets []Fleet) error

	// Apply takes the whole desired set of an environment and returns once it
	// is recorded. The engine converges to it from then on, replaces what dies
	// or turns unready, ends what is not in the set, and after a restart goes
	// on by itself. Fleets that stay are not touched; a count that changes
	// creates or destroys the difference. An empty set ends the environment.
	// The reason is shown with the instances that it creates.
	Apply(ctx context.Context, environment string, fleets []Fleet, reason string) error

	// Observe returns an environment as it is; unknown ones are empty.
	Observe(ctx context.Context, environment string) (Observation, error)

	// Watch streams changes until ctx ends, then closes the channel. A reader
	// that is too slow loses changes and gets one with Missed set.
	Watch(ctx context.Context) <-chan Change

	// Replace starts another instance first, then ends this one with the
	// reason. ErrNotFound for an unknown or dead one.
	Replace(ctx context.Context, instance, reason string) error

	// Quarantine takes an instance out of traffic, replaces it, and keeps its
	// body, frozen, to be examined.
	Quarantine(ctx context.Context, instance, reason string) error

	// Route takes the whole traffic table and returns when new requests follow
	// it. Requests in flight finish where they are.
	Route(ctx context.Context, table RouteTable) error

	// Measure returns what was counted since the start of the gateway.
	Measure(ctx context.Context) ([]Measurement, error)

	// Run starts one instance of a template beside an environment, as a caller
	// of the given release, waits for its end and removes it. The error is for
	// what could not be run; a command that failed is in the result.
	Run(ctx context.Context, task Task) (TaskResult, error)

	// Check makes one HTTP request to every ready instance of a fleet and
	// returns the first that was not as wanted, as an error that says so.
	Check(ctx context.Context, fleet FleetID, check Verify) error

	// Logs writes the kept lines of the selected instances in the order of
	// time, as LogLine in JSON, one a line, and follows when asked.
	Logs(ctx context.Context, w io.Writer, query LogQuery) error
}

// Preparer is an engine that makes ready what it can of templates before
// anything says that they may run, so that Admit has less to do.
type Preparer interface {
	// Prepare starts nothing, and leaves to Admit what it does not do: its error
	// says that Admit will have to.
	Prepare(ctx context.Context, templates []Template) error
}

// Change is one thing that an engine saw.
type Change struct {
	At       time.Time `json:"at"`
	Instance *Instance `json:"instance,omitempty"` // as it is now
	Event    *Event    `json:"event,omitempty"`    // what is not a change of state: blocked egress, drift
	// Missed means that changes were lost; Observe again.
	Missed bool `json:"missed,omitempty"`
}

// Task is one run of a command.
type Task struct {
	Environment string
	Release     int // whose services its calls reach
	Template    Template
	Timeout     time.Duration
}

// TaskResult is how a task ended.
type TaskResult struct {
	Cause Cause
	Took  time.Duration
}

// LogQuery selects log lines.
type LogQuery struct {
	Environment string
	Service     string // empty for all
	Instance    string // empty for all
	Tail        int    // lines per instance; 0 for all that is kept
	Since       time.Time
	Follow      bool
}

// LogLine is one line that an instance wrote.
type LogLine struct {
	At       time.Time `json:"at"`
	Instance string    `json:"instance"`
	Stream   string    `json:"stream"` // "stdout" or "stderr"
	Text     string    `json:"text"`   // without its newline; invalid UTF-8 replaced
}
