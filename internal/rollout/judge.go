package rollout

import (
	"fmt"
	"time"

	"github.com/kilnproject/kiln"
)

const (
	// startSlack is added to a service's StartTimeout, after which the engine
	// itself gives an instance up and says why.
	startSlack = 5 * time.Second
	// defaultStart is for templates that say no StartTimeout.
	defaultStart = 60 * time.Second
	// steady is how long a worker must have run to count: nothing but its
	// process can be asked, and one that dies at once ran too.
	steady = time.Second
	// settled is how long a server must have been ready: one that daemonizes
	// listens before its command returns, which ends it.
	settled = 150 * time.Millisecond
)

// judge says whether all fleets are ready, or why they cannot become so, or
// how long to wait at most before asking again.
func judge(s State, fleets []kiln.Fleet, seen kiln.Observation, now time.Time) (bool, *Failure, time.Duration) {
	ready := true
	left := time.Hour
	for _, f := range fleets {
		status, _ := seen.Fleet(f.ID())
		if status.Ready() >= f.Count {
			rest := unsteady(f, status, now)
			if rest <= 0 {
				continue
			}
			left = min(left, rest)
		}
		ready = false
		if failure := gaveUp(s, f, status); failure != nil {
			return false, failure, 0
		}
		limit := f.Template.Config.StartTimeout
		if limit <= 0 {
			limit = defaultStart
		}
		rest := progress(s, status, now).Add(limit + startSlack).Sub(now)
		if rest <= 0 {
			return false, tooSlow(f, status, limit), 0
		}
		left = min(left, rest)
	}
	return ready, nil, left
}

// unsteady is how long it takes until all of a fleet has been ready for long
// enough, at most as long as that is: a clock that was set back in between
// makes nobody wait for it to catch up.
func unsteady(f kiln.Fleet, status kiln.FleetStatus, now time.Time) time.Duration {
	enough := settled
	if f.Template.Worker() {
		enough = steady
	}
	var rest time.Duration
	for _, i := range status.Instances {
		if i.State == kiln.InstanceReady && !i.ReadyAt.IsZero() && !i.ReadyAt.After(now) {
			rest = max(rest, i.ReadyAt.Add(enough).Sub(now))
		}
	}
	return rest
}

// progress is when the fleet last came nearer to being ready.
func progress(s State, status kiln.FleetStatus, now time.Time) time.Time {
	last := s.Began
	for _, i := range status.Instances {
		for _, t := range []time.Time{i.CreatedAt, i.ReadyAt} {
			if t.After(last) && !t.After(now) { // the clock may have been set back
				last = t
			}
		}
	}
	return last
}

// gaveUp decides by the deaths since the rollout began: one instance that
// never became ready in its time, two when none was ever ready, or three (more
// in a large fleet) in any case.
func gaveUp(s State, f kiln.Fleet, status kiln.FleetStatus) *Failure {
	deaths, everReady := 0, false
	var last *kiln.Instance
	for i, d := range status.Deaths {
		if d.CreatedAt.Before(s.Since) || d.Cause == nil || !d.Cause.Failure() {
			continue
		}
		deaths++
		everReady = everReady || !d.ReadyAt.IsZero()
		last = &status.Deaths[i]
		if d.Cause.Kind == kiln.CauseNeverReady {
			return died(f, d, deaths)
		}
	}
	for _, i := range status.Instances {
		everReady = everReady || !i.ReadyAt.IsZero()
	}
	if deaths >= 3+f.Count/20 || (deaths >= 2 && !everReady) {
		return died(f, *last, deaths)
	}
	return nil
}

func died(f kiln.Fleet, d kiln.Instance, deaths int) *Failure {
	out := &Failure{
		Code:    kiln.CodeFailed,
		Message: fmt.Sprintf("service %s: instance %s %s", f.Template.Service, d.ID, Death(*d.Cause)),
		Hint:    "mend it and run kiln up again; kiln logs -e " + f.Environment + " " + f.Template.Service + " shows more",
	}
	switch {
	case d.Cause.Hint != "":
		out.Hint = d.Cause.Hint
	case d.Cause.Kind == kiln.CauseExited && d.Cause.ExitCode == 0:
		out.Hint = "a service's command must go on for as long as it is to serve: let it stay in the foreground"
	}
	if deaths > 1 {
		out.Message += fmt.Sprintf(" (%d instances died)", deaths)
	}
	asked := d.Cause.Kind == kiln.CauseNeverReady || d.Cause.Kind == kiln.CauseUnready
	if asked && d.Note != "" { // else it is what the dead answered to the last check
		out.Evidence = append(out.Evidence, "probe: "+d.Note)
	}
	for _, line := range d.Cause.LastLog {
		out.Evidence = append(out.Evidence, "log: "+line)
	}
	return out
}

func tooSlow(f kiln.Fleet, status kiln.FleetStatus, limit time.Duration) *Failure {
	out := &Failure{
		Code: kiln.CodeFailed,
		Message: fmt.Sprintf("service %s: %d of %d instances were ready, and no other became so within %s",
			f.Template.Service, status.Ready(), f.Count, limit),
		Hint: "check the ready block of the service, or raise its start_timeout",
	}
	for _, i := range status.Instances {
		if i.State != kiln.InstanceReady && i.Note != "" && len(out.Evidence) < 5 {
			out.Evidence = append(out.Evidence, i.ID+": probe: "+i.Note)
		}
	}
	return out
}

// Death says how an instance ended: "exited with code 1".
func Death(c kiln.Cause) string {
	text := string(c.Kind)
	switch c.Kind {
	case kiln.CauseExited:
		text = fmt.Sprintf("exited with code %d", c.ExitCode)
	case kiln.CauseSignalled:
		text = "was ended by " + c.Signal
	case kiln.CauseOutOfMemory:
		text = "was killed because it needed more memory than it may have"
	case kiln.CauseNeverReady:
		text = "did not become ready in time"
	case kiln.CauseUnready:
		text = "stopped answering its probe"
	case kiln.CauseStartFailed:
		text = "could not be started"
	case kiln.CauseStopped:
		text = "was stopped"
	case kiln.CauseBurned:
		text = "was ended on purpose"
	case kiln.CauseLost:
		text = "is gone, and nobody saw how it ended"
	}
	if c.Detail != "" {
		text += ": " + c.Detail
	}
	return text
}
