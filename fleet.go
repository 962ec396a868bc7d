package kiln

import (
	"net/netip"
	"time"
)

// Fleet is the instances of one template in one environment.
type Fleet struct {
	Environment string   `json:"environment"`
	Template    Template `json:"template"`
	Count       int      `json:"count"`
}

// FleetID names a fleet: "environment/service/template", the last part the
// first 12 hex digits of the template's digest.
type FleetID string

// ID returns the fleet's name.
func (f Fleet) ID() FleetID { return FleetIDOf(f.Environment, f.Template) }

// FleetIDOf names the fleet of a template in an environment.
func FleetIDOf(environment string, t Template) FleetID {
	return FleetID(environment + "/" + t.Service + "/" + t.Digest().Short())
}

// InstanceState is where an instance stands in its life.
type InstanceState string

// The states of an instance. Dead is final; a dead instance is forgotten by
// the engine after a while, by the ledger after a hundred thousand others.
const (
	InstanceStarting    InstanceState = "starting"
	InstanceReady       InstanceState = "ready"
	InstanceUnready     InstanceState = "unready"
	InstanceDraining    InstanceState = "draining"
	InstanceQuarantined InstanceState = "quarantined"
	InstanceDead        InstanceState = "dead"
)

// Instance is one running unit of a fleet.
type Instance struct {
	ID          string        `json:"id"` // "<service>-<time and chance>", sorts by time, at most 40 characters
	Environment string        `json:"environment"`
	Service     string        `json:"service"`
	Fleet       FleetID       `json:"fleet"`
	Image       Digest        `json:"image"`
	State       InstanceState `json:"state"`
	Address     netip.Addr    `json:"address,omitzero"`
	PID         int           `json:"pid,omitempty"` // on the host; 0 where the engine has none
	CreatedAt   time.Time     `json:"created_at"`
	ReadyAt     time.Time     `json:"ready_at,omitzero"` // the first time
	DiedAt      time.Time     `json:"died_at,omitzero"`
	// Reason says why it was started: "release 4", "replaces web-01...: exited".
	Reason string `json:"reason"`
	// Note is the last answer of a probe that failed while not ready.
	Note  string `json:"note,omitempty"`
	Cause *Cause `json:"cause,omitempty"` // of a dead one
}

// CauseKind classifies why an instance ended.
type CauseKind string

// The kinds of a cause.
const (
	CauseExited      CauseKind = "exited"        // by itself, with ExitCode
	CauseSignalled   CauseKind = "signalled"     // by a signal that Kiln did not send
	CauseOutOfMemory CauseKind = "out_of_memory" // its memory limit killed it
	CauseNeverReady  CauseKind = "never_ready"   // StartTimeout passed
	CauseUnready     CauseKind = "unready"       // its probe failed for too long
	CauseStartFailed CauseKind = "start_failed"  // it could not be started at all
	CauseStopped     CauseKind = "stopped"       // no longer desired
	CauseBurned      CauseKind = "burned"        // ended on purpose, with a reason
	CauseLost        CauseKind = "lost"          // gone, and nobody saw how
)

// Cause is an instance's cause of death.
type Cause struct {
	Kind     CauseKind `json:"kind"`
	ExitCode int       `json:"exit_code,omitempty"`
	Signal   string    `json:"signal,omitempty"` // "SIGKILL"
	Detail   string    `json:"detail,omitempty"` // one sentence: the probe's answer, the runtime's error, the reason of a burn
	Hint     string    `json:"hint,omitempty"`   // the line of the definition that would mend it, where that is known
	LastLog  []string  `json:"last_log,omitempty"`
}

// Failure reports whether the death was the instance's own.
func (c Cause) Failure() bool { return c.Kind != CauseStopped && c.Kind != CauseBurned }

// FleetStatus is a fleet as it is.
type FleetStatus struct {
	ID    FleetID `json:"id"`
	Fleet Fleet   `json:"fleet"` // as last applied
	// Instances that are not dead, oldest first.
	Instances []Instance `json:"instances"`
	// Deaths of late, oldest first, at most 20; stopped ones are left out.
	Deaths []Instance `json:"deaths,omitempty"`
}

// Ready counts the instances that can take traffic.
func (f FleetStatus) Ready() int {
	n := 0
	for _, i := range f.Instances {
		if i.State == InstanceReady {
			n++
		}
	}
	return n
}

// Observation is what an engine runs for one environment.
type Observation struct {
	Environment string        `json:"environment"`
	Fleets      []FleetStatus `json:"fleets"` // sorted by ID
}

// Fleet finds a fleet's status by its ID.
func (o Observation) Fleet(id FleetID) (FleetStatus, bool) {
	for _, f := range o.Fleets {
		if f.ID == id {
			return f, true
		}
	}
	return FleetStatus{}, false
}
