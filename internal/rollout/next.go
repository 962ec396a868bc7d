package rollout

import (
	"time"

	"github.com/kilnproject/kiln"
)

const (
	retryPause = time.Second
	drainPoll  = 50 * time.Millisecond
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
		return risk(s, seen, now, Start, Action{Kind: ActAdmit, Fleets: extra(r)})
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
		return await(s, workers(r), seen, now, tidy(r, s))
	case Drain:
		if seen.InFlight == 0 || now.Sub(s.Began) >= drainLimit(leaving(r, s)) {
			return s.enter(Retire, now), nil
		}
		return s, []Action{{Kind: ActWait, For: drainPoll}}
	case Retire:
		return insist(s, seen, now, Done, Action{Kind: ActRoute}, Action{Kind: ActApply})
	case UndoRoute:
		return insist(s, seen, now, Undo, Action{Kind: ActRoute})
	case Undo:
		return insist(s, seen, now, Failed, Action{Kind: ActApply}, Action{Kind: ActRoute})
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
		return s, append([]Action{{Kind: ActWait, For: retryPause}}, actions...)
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
// service of r says.
func parkTime(r kiln.Release) time.Duration {
	var park time.Duration
	for _, s := range r.Services {
		park = max(park, s.Rollout.Park)
	}
	return park
}

// drainLimit bounds the wait for the leaving releases' requests in flight.
func drainLimit(leaving []kiln.Release) time.Duration {
	var limit time.Duration
	for _, r := range leaving {
		for _, s := range r.Services {
			limit = max(limit, s.Template.Config.Drain)
		}
	}
	return min(limit, maxDrain)
}
