package control

import (
	"context"
	"fmt"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/rollout"
)

// watch waits until a rollout's outcome stands and returns its failure.
func (c *Control) watch(ctx context.Context, d *drive) error {
	select {
	case <-d.holder.decided:
	case <-d.stuck:
		return d.failed(notUndone)
	case <-d.refused:
		return d.waiting()
	case <-ctx.Done():
		return kiln.Errorf(kiln.CodeUnavailable, "kiln status "+d.rollout.Environment+" shows how far it is",
			"the rollout of release %d goes on without you: %w", d.record.To, ctx.Err())
	case <-c.stopping():
		return kiln.Errorf(kiln.CodeUnavailable, "it goes on when the control plane is back",
			"the control plane stops; the rollout of release %d is journalled", d.record.To)
	}
	return d.failed("")
}

// notUndone is added to a failure whose undoing does not work.
const notUndone = "; it is not undone yet, and that is tried until it works; the control plane log says why it does not"

// waiting is the error for those who asked for a rollout that cannot go on.
func (d *drive) waiting() error {
	return kiln.Errorf(kiln.CodeRefused, "kiln ledger verify says what is damaged, kiln ledger accept goes on with what is left",
		"the rollout of release %d waits: the ledger is damaged, and no history is written over it", d.record.To)
}

// failed is the failure of a rollout for those who asked for it; nil when it
// did not fail.
func (d *drive) failed(more string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.state.Failure
	if f == nil {
		return nil
	}
	return &kiln.Error{Code: f.Code, Message: d.outcome(*f) + more, Hint: f.Hint, Evidence: f.Evidence}
}

// outcome says what a failure left.
func (d *drive) outcome(f rollout.Failure) string {
	text := fmt.Sprintf("release %d did not go live (%s): %s", d.record.To, f.Step, f.Message)
	if d.record.From > 0 {
		return text + fmt.Sprintf("; release %d serves as before", d.record.From)
	}
	return text
}

// events are what a state's journal entry tells.
func (d *drive) events(s rollout.State, marks []kiln.ReleaseMark) []kiln.Event {
	var out []kiln.Event
	add := func(kind, subject, message string, data map[string]string) {
		out = append(out, kiln.Event{
			At: d.c.now().UTC(), Environment: d.rollout.Environment, Kind: kind, Subject: subject,
			Message: message, Actor: d.record.Actor, Data: data,
		})
	}
	if len(s.Trail) == 0 {
		add("rollout.begun", subject(d.record.To), course(string(d.rollout.Kind), d.record.From, d.record.To),
			map[string]string{"rollout": d.record.ID})
	}
	for _, m := range marks {
		if m.State == kiln.ReleasePending {
			continue
		}
		add("release."+string(m.State), subject(m.Number), standing(m), d.evidence(s, m))
	}
	if s.Step == rollout.Failed && d.rollout.Kind == rollout.Rollback {
		add("rollout.failed", subject(d.record.To), d.outcome(*s.Failure), nil)
	}
	return out
}

// course says what a rollout is to do; from is 0 where nothing was live.
func course(kind string, from, to int) string {
	if from == 0 {
		return fmt.Sprintf("%s to release %d", kind, to)
	}
	return fmt.Sprintf("%s from release %d to %d", kind, from, to)
}

func subject(release int) string { return fmt.Sprintf("release %d", release) }

// standing says where a release stands now.
func standing(m kiln.ReleaseMark) string {
	name := fmt.Sprintf("release %d", m.Number)
	switch m.State {
	case kiln.ReleaseLive:
		return name + " has the traffic"
	case kiln.ReleaseParked:
		return name + " is parked until " + m.ParkedUntil.UTC().Format("2006-01-02 15:04:05 UTC")
	case kiln.ReleaseRetired:
		return name + " is retired"
	case kiln.ReleaseCondemned:
		return name + " was rolled back and is condemned"
	case kiln.ReleaseFailed:
		return name + " did not go live"
	case kiln.ReleasePending:
	}
	return name + " is pending"
}

// evidence is what a mark's event carries.
func (d *drive) evidence(s rollout.State, m kiln.ReleaseMark) map[string]string {
	data := map[string]string{"rollout": d.record.ID}
	if s.Failure != nil && m.Number == d.record.To {
		data["step"], data["cause"] = string(s.Failure.Step), s.Failure.Message
		for i, line := range s.Failure.Evidence {
			data[fmt.Sprintf("evidence_%02d", i+1)] = line
		}
	}
	return data
}

// announce tells the caller that a step begins, and that the one before it is
// done.
func (d *drive) announce(s rollout.State) {
	if n := len(s.Trail); n > 0 {
		done := s.Trail[n-1]
		d.feed.send(kiln.Progress{
			Stage: stage(done.Step), Subject: subject(d.record.To), Step: string(done.Step),
			Took: done.Took, Done: s.Failure == nil || s.Failure.Step != done.Step, Error: failedAt(s, done.Step),
		})
	}
	if !s.Ended() {
		d.feed.send(kiln.Progress{Stage: stage(s.Step), Subject: subject(d.record.To), Step: string(s.Step)})
	}
}

// failedAt is the failure's message when it happened at a step.
func failedAt(s rollout.State, step rollout.Step) string {
	if s.Failure == nil || s.Failure.Step != step {
		return ""
	}
	return s.Failure.Message
}

// tell says how many instances of the new release are ready, where that
// changed.
func (d *drive) tell(seen kiln.Observation) {
	if d.state.Step == rollout.Vacate {
		return
	}
	for _, s := range d.rollout.To.Services {
		if s.Template.Worker() != (d.state.Step == rollout.Settle) {
			continue
		}
		fleet, _ := seen.Fleet(kiln.FleetIDOf(d.rollout.Environment, s.Template))
		p := kiln.Progress{
			Stage: stage(d.state.Step), Subject: s.Template.Service, Step: string(d.state.Step) + " " + s.Template.Service,
			Message: fmt.Sprintf("%d of %d ready", fleet.Ready(), s.Count), Done: fleet.Ready() >= s.Count,
		}
		if d.told[p.Step] != p.Message {
			d.told[p.Step] = p.Message
			d.feed.send(p)
		}
	}
}

// stage is the progress stage of a step.
func stage(s rollout.Step) string {
	if p := phase(s); p != "bake" {
		return p
	}
	return "start"
}
