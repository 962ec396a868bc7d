package kilntest

import (
	"fmt"
	"slices"
	"time"

	"github.com/kilnproject/kiln"
)

// converge takes an environment one step nearer to what is desired; timers
// take the next ones. f.mu is held, as in everything in this file.
func (f *Fake) converge(e *fakeEnvironment) {
	for id, fleet := range e.fleets {
		f.convergeFleet(fleet)
		if !fleet.desired && len(fleet.instances) == 0 {
			delete(e.fleets, id)
		}
	}
}

func (f *Fake) convergeFleet(fleet *fakeFleet) {
	want := fleet.Count
	if !fleet.desired {
		want = 0
		for _, i := range slices.Clone(fleet.instances) {
			f.stop(i, kiln.Cause{Kind: kiln.CauseStopped})
		}
		return
	}
	var staying, leaving []*fakeInstance
	for _, i := range fleet.instances {
		switch {
		case i.State == kiln.InstanceDraining, i.State == kiln.InstanceQuarantined:
		case i.leaving != nil:
			leaving = append(leaving, i)
		default:
			staying = append(staying, i)
		}
	}
	for n := len(staying); n < want && !fleet.waiting && !f.broken[NoReplacement]; n++ {
		f.start(fleet)
	}
	for _, i := range surplus(staying, want) {
		f.stop(i, kiln.Cause{Kind: kiln.CauseStopped, Detail: "count is " + fmt.Sprint(want)})
	}
	ready := 0
	for _, i := range staying {
		if i.State == kiln.InstanceReady {
			ready++
		}
	}
	for _, i := range leaving {
		if ready >= want || i.State == kiln.InstanceStarting {
			f.stop(i, *i.leaving)
		}
	}
}

// surplus picks which instances a lower count ends: those that are not ready
// first, then the newest.
func surplus(staying []*fakeInstance, want int) []*fakeInstance {
	if len(staying) <= want {
		return nil
	}
	order := slices.Clone(staying)
	slices.SortStableFunc(order, func(a, b *fakeInstance) int {
		ra, rb := a.State == kiln.InstanceReady, b.State == kiln.InstanceReady
		switch {
		case ra == rb:
			return b.CreatedAt.Compare(a.CreatedAt)
		case ra:
			return 1
		default:
			return -1
		}
	})
	return order[:len(staying)-want]
}

func (f *Fake) start(fleet *fakeFleet) {
	reason := fleet.reason
	if n := len(fleet.deaths); n > 0 && fleet.failures > 0 {
		last := fleet.deaths[n-1]
		reason = fmt.Sprintf("replaces %s: %s", last.ID, last.Cause.Kind)
	}
	i := f.newInstance(fleet.Environment, fleet.Template, reason)
	i.fleet = fleet
	fleet.instances = append(fleet.instances, i)
	f.report(i)
	for _, text := range i.Output {
		f.log(i.ID, "stdout", text)
	}
	after := func(d time.Duration, do func()) {
		time.AfterFunc(d, func() {
			f.mu.Lock()
			defer f.mu.Unlock()
			if i.State != kiln.InstanceDead {
				do()
			}
		})
	}
	switch {
	case i.StartFailed != "":
		after(0, func() { f.die(i, kiln.Cause{Kind: kiln.CauseStartFailed, Detail: i.StartFailed}) })
		return
	case i.NeverReady:
		i.Note = "connect: connection refused"
		limit := fleet.Template.Config.StartTimeout
		if limit == 0 {
			limit = 30 * time.Second
		}
		after(limit, func() { f.die(i, kiln.Cause{Kind: kiln.CauseNeverReady, Detail: i.Note}) })
	default:
		after(max(i.Start, time.Millisecond), func() { f.becomeReady(i) })
	}
	if i.Exits {
		after(i.ExitAfter, func() { f.die(i, kiln.Cause{Kind: kiln.CauseExited, ExitCode: i.ExitCode}) })
	}
}

func (f *Fake) becomeReady(i *fakeInstance) {
	if i.State != kiln.InstanceStarting {
		return
	}
	i.ReadyAt = time.Now()
	i.fleet.failures = 0
	f.setState(i, kiln.InstanceReady)
	f.converge(f.environments[i.Environment])
}

func (f *Fake) stop(i *fakeInstance, cause kiln.Cause) {
	if i.State == kiln.InstanceDraining || i.State == kiln.InstanceDead {
		return
	}
	f.setState(i, kiln.InstanceDraining)
	took := i.Stop
	if i.IgnoresTerm {
		took = i.template.Config.Grace
	}
	time.AfterFunc(took, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if i.State != kiln.InstanceDead {
			f.die(i, cause)
		}
	})
}

// maxDeaths is how many deaths an observation shows.
const maxDeaths = 20

func (f *Fake) die(i *fakeInstance, cause kiln.Cause) {
	early := i.ReadyAt.IsZero()
	cause.LastLog = f.lastLog(i.ID)
	if f.broken[NoCause] {
		cause = kiln.Cause{}
	}
	i.DiedAt, i.Cause = time.Now(), &cause
	f.setState(i, kiln.InstanceDead)
	fleet := i.fleet
	if fleet == nil {
		return
	}
	fleet.instances = slices.DeleteFunc(fleet.instances, func(o *fakeInstance) bool { return o == i })
	if cause.Kind != kiln.CauseStopped {
		fleet.deaths = append(fleet.deaths, i.Instance)
		fleet.deaths = fleet.deaths[max(0, len(fleet.deaths)-maxDeaths):]
	}
	if cause.Failure() {
		fleet.failures++
		f.hold(fleet, early)
	}
	f.converge(f.environments[i.Environment])
}

// hold keeps a fleet whose instances die before they are ready from starting
// others at once: 100 ms, doubled with each death, up to 5 s.
func (f *Fake) hold(fleet *fakeFleet, early bool) {
	if !early || fleet.failures < 2 || fleet.waiting {
		return
	}
	fleet.waiting = true
	wait := min(100*time.Millisecond<<min(fleet.failures-2, 10), 5*time.Second)
	time.AfterFunc(wait, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		fleet.waiting = false
		if e := f.environments[fleet.Environment]; e != nil {
			f.converge(e)
		}
	})
}

func (f *Fake) setState(i *fakeInstance, s kiln.InstanceState) {
	if i.State == s {
		return
	}
	i.State = s
	f.report(i)
}
