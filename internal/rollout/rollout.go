// Package rollout decides how an environment moves from one release to
// another. It is pure: a state, what is seen and the time go in, the next
// state and the actions to take come out. It never looks, waits or acts
// itself; package control does, and journals each state before it acts on it.
//
// Blue-green: the serving fleets of the new release start beside the old ones,
// become ready, are verified, and get all traffic in one swap; then the
// workers change over, and the old release is parked or ended. Until the
// outcome is decided every failure leads back to the old release.
package rollout

import (
	"time"

	"github.com/kilnproject/kiln"
)

// Kind is what a rollout is for.
type Kind string

// The kinds of a rollout. A rollback that reached the switch is never undone:
// what it left is condemned.
const (
	Up       Kind = "up"
	Rollback Kind = "rollback"
)

// Step is a label of the journal. Each is safe to take twice.
type Step string

// The steps of a rollout, in their order, and those of its undoing.
const (
	Admit     Step = "admit"      // the engine has what instances need, and room
	Evict     Step = "evict"      // no room: the release that was parked before ends
	Vacate    Step = "vacate"     // its instances are gone
	Start     Step = "start"      // serving fleets of the new release beside the old
	Ready     Step = "ready"      // all of them can take traffic
	Verify    Step = "verify"     // the definition's own checks
	Switch    Step = "switch"     // all routes, in one swap
	Workers   Step = "workers"    // the new ones start, the old ones stop
	Settle    Step = "settle"     // the new workers run
	Drain     Step = "drain"      // requests in flight to what leaves end
	Retire    Step = "retire"     // what is neither live nor parked ends
	Done      Step = "done"       // the new release is live
	UndoRoute Step = "undo_route" // traffic and workers back to the old release
	UndoDrain Step = "undo_drain" // requests in flight to the new release end
	Undo      Step = "undo"       // the new fleets end
	Failed    Step = "failed"     // the old release is live
)

// Steps are all labels, in order.
func Steps() []Step {
	return []Step{
		Admit, Evict, Vacate, Start, Ready, Verify, Switch, Workers, Settle, Drain, Retire, Done,
		UndoRoute, UndoDrain, Undo, Failed,
	}
}

// Rollout is what moves; it does not change while it runs.
type Rollout struct {
	Environment string
	Kind        Kind
	From        *kiln.Release // nil when there was none
	To          kiln.Release
	Parked      *kiln.Release // parked when it began and neither From nor To
}

// State is where a rollout stands: what the journal keeps.
type State struct {
	Kind Kind `json:"kind"`
	Step Step `json:"step"`
	// Parked is the number of the release that was parked when it began and
	// is neither From nor To; 0 for none.
	Parked int `json:"parked,omitempty"`
	// Warm means that To's serving fleets ran already: one swap.
	Warm bool `json:"warm,omitempty"`
	// Evicted means that Parked had to end to make room.
	Evicted bool `json:"evicted,omitempty"`
	// Before is where To stood before; it goes back there when undone.
	Before kiln.ReleaseState `json:"before"`
	// Began is when the step began, or was taken up again after a restart.
	Began time.Time `json:"began"`
	// Since bounds the deaths that count: those of instances born after it.
	Since time.Time `json:"since"`
	// ParkedUntil is when From is retired, once it is parked.
	ParkedUntil time.Time `json:"parked_until,omitzero"`
	// Failure is why it is undone.
	Failure *Failure `json:"failure,omitempty"`
	// Trail has the steps that were done, with the time that each took.
	Trail []Mark `json:"trail,omitempty"`
}

// Mark is a step that was done.
type Mark struct {
	Step Step          `json:"step"`
	Took time.Duration `json:"took"`
}

// Failure is why a rollout is undone, for a person.
type Failure struct {
	Step     Step      `json:"step"`
	Code     kiln.Code `json:"code"`
	Message  string    `json:"message"`
	Hint     string    `json:"hint,omitempty"`
	Evidence []string  `json:"evidence,omitempty"`
}

// Result is how a step's actions ended.
type Result struct {
	Failure *Failure // nil when they were done
}

// Seen is what is known when the next move is asked for.
type Seen struct {
	Fleets kiln.Observation
	// InFlight counts the requests that leaving fleets still answer.
	InFlight int64
	// Result is nil while the step's actions were not taken.
	Result *Result
}

// ActionKind is what control does.
type ActionKind string

// The kinds of an action.
const (
	ActAdmit  ActionKind = "admit"  // Fleets
	ActApply  ActionKind = "apply"  // what Fleets says of the state
	ActRoute  ActionKind = "route"  // what View says of the state
	ActVerify ActionKind = "verify" // To's checks
	ActWait   ActionKind = "wait"   // for a change, or For
	ActPause  ActionKind = "pause"  // For, whatever changes
)

// Action is one thing to do. Actions are done in their order; the first that
// fails ends them.
type Action struct {
	Kind   ActionKind
	Fleets []kiln.Fleet
	For    time.Duration
}

// Begin returns the first state of a rollout. A warm one needs To's serving
// fleets to run, as IsWarm says.
func Begin(r Rollout, warm bool, now time.Time) State {
	s := State{Kind: r.Kind, Step: Admit, Warm: warm, Before: r.To.State, Began: now, Since: now}
	if r.Parked != nil {
		s.Parked = r.Parked.Number
	}
	if warm {
		s.Step = Switch
	}
	return s
}

// Resume takes a journalled state up again after a restart: waits begin anew.
func Resume(s State, now time.Time) State {
	s.Began, s.Since = now, now
	return s
}

// Ended says whether nothing is left to do.
func (s State) Ended() bool { return s.Step == Done || s.Step == Failed }

// Decided says whether the outcome stands: what follows only tidies up.
func (s State) Decided() bool {
	switch s.Step {
	case Drain, Retire, Done, Failed:
		return true
	case Workers, Settle:
		return s.Kind == Rollback
	case Admit, Evict, Vacate, Start, Ready, Verify, Switch, UndoRoute, UndoDrain, Undo:
	}
	return false
}

// Open says whether a rollout can still be called off: its outcome is not
// decided and it is not being undone.
func (s State) Open() bool { return !s.Decided() && s.Failure == nil }

// CallOff returns the state in which an open rollout is undone for a reason
// that is not its own.
func CallOff(s State, why Failure, now time.Time) State { return s.fail(why, now) }

// switched says whether the new release has the traffic, or is given it.
func (s State) switched() bool {
	switch s.Step {
	case Switch, Workers, Settle, Drain, Retire, Done:
		return true
	case Admit, Evict, Vacate, Start, Ready, Verify, UndoRoute, UndoDrain, Undo, Failed:
	}
	return false
}

// enter moves to a step.
func (s State) enter(step Step, now time.Time) State {
	s.Trail = append(s.Trail[:len(s.Trail):len(s.Trail)], Mark{Step: s.Step, Took: max(0, now.Sub(s.Began))})
	s.Step, s.Began = step, now
	return s
}

// fail moves to the undoing.
func (s State) fail(f Failure, now time.Time) State {
	f.Step = s.Step
	s.Failure = &f
	if s.switched() {
		return s.enter(UndoRoute, now)
	}
	return s.enter(Undo, now)
}
