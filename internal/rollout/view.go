package rollout

import (
	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/plan"
)

// View says which releases of an environment traffic can reach.
type View struct {
	Live   *kiln.Release  // has the public traffic; nil for none
	Others []kiln.Release // reached by their own fleets' calls only, in order of precedence
}

// ViewOf returns what traffic must reach in state s.
func ViewOf(r Rollout, s State) View {
	var others []kiln.Release
	add := func(list ...*kiln.Release) []kiln.Release {
		for _, one := range list {
			if one != nil {
				others = append(others, *one)
			}
		}
		return others
	}
	to, parked := r.To, parkedNow(r, s)
	switch s.Step {
	case Start, Ready, Verify, UndoRoute, UndoDrain:
		return View{Live: r.From, Others: add(&to, parked)}
	case Switch, Workers, Settle, Drain:
		return View{Live: &to, Others: add(r.From, parked)}
	case Retire, Done:
		return View{Live: &to, Others: add(parkedAfter(r, s))}
	case Admit, Evict, Vacate, Undo, Failed:
	}
	return View{Live: r.From, Others: add(parked, toBefore(r, s))}
}

// Fleets returns what must run in state s.
func Fleets(r Rollout, s State) []kiln.Fleet {
	to, parked := r.To, plan.Part{Release: parkedNow(r, s), Spare: true}
	from := plan.Part{Release: r.From, Workers: true}
	switch s.Step {
	case Start, Ready, Verify, Switch, UndoRoute, UndoDrain:
		return plan.Fleets(r.Environment, from, plan.Part{Release: &to}, parked)
	case Workers, Settle, Drain:
		return plan.Fleets(r.Environment, plan.Part{Release: &to, Workers: true}, plan.Part{Release: r.From, Spare: true}, parked)
	case Retire, Done:
		return plan.Fleets(r.Environment, plan.Part{Release: &to, Workers: true}, plan.Part{Release: parkedAfter(r, s), Spare: true})
	case Admit, Evict, Vacate, Undo, Failed:
	}
	return plan.Fleets(r.Environment, from, parked, plan.Part{Release: toBefore(r, s), Spare: true})
}

// Marks returns where each release of the rollout stands in state s.
func Marks(r Rollout, s State) []kiln.ReleaseMark {
	mark := func(release *kiln.Release, state kiln.ReleaseState) []kiln.ReleaseMark {
		if release == nil {
			return nil
		}
		m := kiln.ReleaseMark{Environment: r.Environment, Number: release.Number, State: state}
		if state == kiln.ReleaseParked {
			m.ParkedUntil = release.ParkedUntil
			if r.From != nil && release.Number == r.From.Number {
				m.ParkedUntil = s.ParkedUntil
			}
		}
		return []kiln.ReleaseMark{m}
	}
	to := r.To
	live, next := kiln.ReleaseLive, kiln.ReleasePending
	parked := kiln.ReleaseParked
	switch s.Step {
	case Workers, Settle, Drain, Retire, Done:
		live, next = fromAfter(s), kiln.ReleaseLive
		if s.Kind == Up {
			parked = kiln.ReleaseRetired
		}
	case UndoRoute, UndoDrain, Undo, Failed:
		next = s.Before
		if s.Kind == Up {
			next = kiln.ReleaseFailed
		}
	case Admit, Evict, Vacate, Start, Ready, Verify, Switch:
	}
	if s.Evicted {
		parked = kiln.ReleaseRetired
	}
	return append(append(mark(r.From, live), mark(&to, next)...), mark(r.Parked, parked)...)
}

// Leaving returns the fleets that no release needs once the rollout is done,
// or undone.
func Leaving(r Rollout, s State) []kiln.FleetID {
	end, gone := s, leaving(r, s)
	end.Step = Done
	if s.Failure != nil {
		end.Step, gone = Failed, []kiln.Release{r.To}
	}
	stay := map[kiln.FleetID]bool{}
	for _, f := range Fleets(r, end) {
		stay[f.ID()] = true
	}
	var out []kiln.FleetID
	for _, release := range gone {
		for _, one := range release.Services {
			if id := kiln.FleetIDOf(r.Environment, one.Template); !stay[id] {
				out = append(out, id)
			}
		}
	}
	return out
}

// IsWarm says whether a release can take the traffic as it stands: each of its
// serving fleets has an instance that is ready.
func IsWarm(r kiln.Release, o kiln.Observation) bool {
	for _, s := range r.Services {
		if s.Template.Worker() || s.Count == 0 {
			continue
		}
		status, ok := o.Fleet(kiln.FleetIDOf(r.Environment, s.Template))
		if !ok || status.Ready() == 0 {
			return false
		}
	}
	return true
}

// fromAfter is where the old release stands once it lost the traffic.
func fromAfter(s State) kiln.ReleaseState {
	switch {
	case s.Kind == Rollback:
		return kiln.ReleaseCondemned
	case s.ParkedUntil.IsZero():
		return kiln.ReleaseRetired
	default:
		return kiln.ReleaseParked
	}
}

// parkedNow is the release that was parked before, while it still is.
func parkedNow(r Rollout, s State) *kiln.Release {
	if s.Evicted {
		return nil
	}
	return r.Parked
}

// parkedAfter is the release that is parked in the end; nil for none.
func parkedAfter(r Rollout, s State) *kiln.Release {
	switch {
	case s.Kind == Rollback:
		return r.Parked
	case s.ParkedUntil.IsZero():
		return nil
	default:
		return r.From
	}
}

// toBefore is the new release where it was parked when the rollout began.
func toBefore(r Rollout, s State) *kiln.Release {
	if s.Before != kiln.ReleaseParked {
		return nil
	}
	to := r.To
	return &to
}

// leaving are the releases that end when the rollout is done.
func leaving(r Rollout, s State) []kiln.Release {
	var out []kiln.Release
	if r.From != nil && fromAfter(s) != kiln.ReleaseParked {
		out = append(out, *r.From)
	}
	if r.Parked != nil && s.Kind == Up && !s.Evicted {
		out = append(out, *r.Parked)
	}
	return out
}

// extra are the fleets that the new release needs beyond what runs, with the
// count that is missing; workers take the room of those that they replace.
func extra(r Rollout) []kiln.Fleet {
	have := map[kiln.FleetID]int{}
	workers := map[string]int{}
	if r.From != nil {
		for _, s := range r.From.Services {
			have[kiln.FleetIDOf(r.Environment, s.Template)] = s.Count
			if s.Template.Worker() {
				workers[s.Template.Service] = s.Count
			}
		}
	}
	var out []kiln.Fleet
	for _, s := range r.To.Services {
		f := kiln.Fleet{Environment: r.Environment, Template: s.Template}
		f.Count = max(0, s.Count-max(have[f.ID()], workers[s.Template.Service]))
		out = append(out, f)
	}
	return out
}

// serving are the fleets that must be ready before the switch: those of the
// new release that take traffic and do not run already.
func serving(r Rollout) []kiln.Fleet { return wanted(r, false) }

// workers are the fleets that must run after it.
func workers(r Rollout) []kiln.Fleet { return wanted(r, true) }

func wanted(r Rollout, worker bool) []kiln.Fleet {
	have := map[kiln.FleetID]int{}
	if r.From != nil {
		for _, s := range r.From.Services {
			have[kiln.FleetIDOf(r.Environment, s.Template)] = s.Count
		}
	}
	var out []kiln.Fleet
	for _, s := range r.To.Services {
		f := kiln.Fleet{Environment: r.Environment, Template: s.Template, Count: s.Count}
		if s.Template.Worker() == worker && s.Count > have[f.ID()] {
			out = append(out, f)
		}
	}
	return out
}
