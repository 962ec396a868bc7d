package rollout

import (
	"time"

	"github.com/kilnproject/kiln"
)

const (
	retryPause = time.Second
	// maxDrain bounds the wait for requests in flight before fleets end; the
	// engine then drains each instance within its own limit.
	maxDrain = 10 * time.Second
)

// Next returns the state to be in, given what is seen in state s, and the
// actions to take there. A state that differs from s must be journalled before
// Next is asked again; then seen.Result must be nil, as after a restart.
func Next(r Rollout, s State, seen Seen, now time.Time) (State, []Action) {
	switch s.Step {
	case Admit:
		return admit(r, s, seen, now)
	case Evict:
		return insist(s, seen, now, Vacate, Action{Kind: ActRoute}, Action{Kind: ActApply})
	case Vacate:
		return vacate(r, s, seen, now)
	case Start:
		// Calls of the new instances must find their own release at once.
		return risk(s, seen, now, Ready, Action{Kind: ActRoute}, Action{Kind: ActApply})
	case Ready:
		return await(s, serving(r), seen, now, afterReady(r))
	case Verify:
		return risk(s, seen, now, Switch, Action{Kind: ActVerify})
	case Switch:
		return switchOver(r, s, seen, now)
	case Workers:
		if s.Kind == Rollback {
			return insist(s, seen, now, tidy(r, s), Action{Kind: ActApply})
		}
		return risk(s, seen, now, Settle, Action{Kind: ActApply})
	case Settle:
		// The servers are looked at once more, which costs nothing: what dies of
		// its first requests is found here.
		return await(s, append(workers(r), serving(r)...), seen, now, tidy(r, s))
	case Drain:
		return drain(s, seen, now, DrainLimit(leaving(r, s)...), Retire)
	case Retire:
		return insist(s, seen, now, Done, Action{Kind: ActRoute}, Action{Kind: ActApply})
	case UndoRoute:
		return insist(s, seen, now, UndoDrain, Action{Kind: ActRoute}, Action{Kind: ActApply})
	case UndoDrain:
		return drain(s, seen, now, DrainLimit(r.To), Undo)
	case Undo:
		return insist(s, seen, now, Failed, Action{Kind: ActRoute}, Action{Kind: ActApply})
	case Done, Failed:
	}
	return s, nil
}

// risk takes actions whose failure undoes the rollout.
func risk(s State, seen Seen, now time.Time, next Step, actions ...Action) (State, []Action) {
	switch {
	case seen.Result == nil:
		return s, actions
	case seen.Result.Failure != nil:
		return s.fail(*seen.Result.Failure, now), nil
	default:
		return s.enter(next, now), nil
	}
}

// insist takes actions until they succeed.
func insist(s State, seen Seen, now time.Time, next Step, actions ...Action) (State, []Action) {
	switch {
	case seen.Result == nil:
		return s, actions
	case seen.Result.Failure != nil:
		return s, append([]Action{{Kind: ActPause, For: retryPause}}, actions...)
	default:
		return s.enter(next, now), nil
	}
}

// await waits until fleets are ready or cannot become so.
func await(s State, fleets []kiln.Fleet, seen Seen, now time.Time, next Step) (State, []Action) {
	ready, failure, left := judge(s, fleets, seen.Fleets, now)
	switch {
	case ready:
		return s.enter(next, now), nil
	case failure != nil:
		return s.fail(*failure, now), nil
	default:
		return s, []Action{{Kind: ActWait, For: left}}
	}
}

// admit makes the machine ready for the new release. When it has no room, the
// release that was parked before has to go; it would at the switch anyhow.
func admit(r Rollout, s State, seen Seen, now time.Time) (State, []Action) {
	full := seen.Result != nil && seen.Result.Failure != nil && seen.Result.Failure.Code == kiln.CodeNoRoom
	if full && r.Kind == Up && r.Parked != nil && !s.Evicted {
		s.Evicted = true
		return s.enter(Evict, now), nil
	}
	return risk(s, seen, now, Start, Action{Kind: ActAdmit, Fleets: extra(r)})
}

// vacate waits until the evicted release's instances are gone, for as long as
// they may take.
func vacate(r Rollout, s State, seen Seen, now time.Time) (State, []Action) {
	stay := map[kiln.FleetID]bool{}
	for _, f := range Fleets(r, s) {
		stay[f.ID()] = true
	}
	left := 0
	var limit time.Duration
	for _, one := range r.Parked.Services {
		limit = max(limit, one.Template.Config.Drain+one.Template.Config.Grace)
		if id := kiln.FleetIDOf(r.Environment, one.Template); !stay[id] {
			status, _ := seen.Fleets.Fleet(id)
			left += len(status.Instances)
		}
	}
	rest := s.Began.Add(limit + startSlack).Sub(now)
	if left == 0 || rest <= 0 {
		return s.enter(Admit, now), nil
	}
	return s, []Action{{Kind: ActWait, For: rest}}
}

// drain waits until nothing is in flight to what leaves, for the limit at most.
func drain(s State, seen Seen, now time.Time, limit time.Duration, next Step) (State, []Action) {
	if seen.InFlight == 0 || now.Sub(s.Began) >= limit {
		return s.enter(next, now), nil
	}
	return s, []Action{{Kind: ActWait, For: DrainPoll}}
}

// switchOver gives the new release the traffic.
func switchOver(r Rollout, s State, seen Seen, now time.Time) (State, []Action) {
	next, actions := risk(s, seen, now, Workers, Action{Kind: ActRoute})
	if next.Step == Workers && s.Kind == Up && r.From != nil {
		if park := parkTime(r.To); park > 0 {
			next.ParkedUntil = now.Add(park)
		}
	}
	return next, actions
}

// afterReady skips the verification of a release that has none.
func afterReady(r Rollout) Step {
	for _, s := range r.To.Services {
		if len(s.Rollout.Verify) > 0 {
			return Verify
		}
	}
	return Switch
}

// tidy is the first step after the outcome is decided.
func tidy(r Rollout, s State) Step {
	if len(leaving(r, s)) > 0 {
		return Drain
	}
	return Done
}

// parkTime is how long the release before r stays warm: the longest that a
// serving service of r says, or that a worker says where nothing serves.
func parkTime(r kiln.Release) time.Duration {
	var park, workers time.Duration
	serving := false
	for _, s := range r.Services {
		if s.Template.Worker() { // at zero while parked: nothing of it is kept
			workers = max(workers, s.Rollout.Park)
			continue
		}
		park, serving = max(park, s.Rollout.Park), true
	}
	if !serving {
		return workers
	}
	return park
}

// DrainPoll is the time between two looks at what is in flight.
const DrainPoll = 50 * time.Millisecond

// DrainLimit bounds the wait for the requests in flight to releases that leave,
// before their instances are told to end.
func DrainLimit(leaving ...kiln.Release) time.Duration {
	var limit time.Duration
	for _, r := range leaving {
		for _, s := range r.Services {
			limit = max(limit, s.Template.Config.Drain)
		}
	}
	return min(limit, maxDrain)
}
