package kiln

import (
	"encoding/json"
	"time"
)

// Rollout is the journal's record of one move of an environment from one
// release to another.
type Rollout struct {
	ID          string `json:"id"` // sorts by time
	Environment string `json:"environment"`
	From        int    `json:"from"` // the release that had the traffic, 0 for none
	To          int    `json:"to"`
	Actor       string `json:"actor,omitempty"`
	// Step is the label of the step that was begun last; the one before it
	// was done.
	Step string `json:"step"`
	// State belongs to the state machine that drives the rollout.
	State     json.RawMessage `json:"state"`
	StartedAt time.Time       `json:"started_at"`
	EndedAt   time.Time       `json:"ended_at,omitzero"` // zero while it runs
}

// ReleaseMark sets where a release stands.
type ReleaseMark struct {
	Environment string       `json:"environment"`
	Number      int          `json:"number"`
	State       ReleaseState `json:"state"`
	ParkedUntil time.Time    `json:"parked_until,omitzero"` // of a parked one
	LiveAt      time.Time    `json:"live_at,omitzero"`      // of one that goes live; zero leaves the last
}

// Record is what the ledger takes in one step: all of it or nothing.
type Record struct {
	Rollout   *Rollout
	Marks     []ReleaseMark
	Instances []Instance // as they are now
	Events    []Event
	// Settings are values by name, which replace those that were there.
	Settings map[string][]byte
}
