package kilntest

import (
	"runtime"
	"slices"

	"github.com/kilnproject/kiln"
)

// Mutation is a defect that a fake can be given, to see that the engine suite
// finds it.
type Mutation string

// The defects.
const (
	IgnoreEmpty      Mutation = "an empty set ends nothing"
	RecreateOnCount  Mutation = "a change of count starts the fleet anew"
	RecreateOnApply  Mutation = "applying the same set again starts it anew"
	NoReplacement    Mutation = "what died is not replaced"
	NoCause          Mutation = "a death has no cause"
	StopBeforeStart  Mutation = "Replace ends the instance first"
	QuarantineServes Mutation = "a quarantined instance gets traffic"
	QuarantineEnds   Mutation = "Quarantine ends the body"
	Unsorted         Mutation = "Observe is not sorted"
	Incomplete       Mutation = "Observe leaves a fleet out"
	SilentDeaths     Mutation = "Watch does not report deaths"
	WatchNeverCloses Mutation = "Watch does not close at the end of its context"
	NeverMissed      Mutation = "Watch does not say that changes were missed"
	RouteIgnored     Mutation = "Route changes nothing"
	RouteTorn        Mutation = "Route has a moment without routes"
	MeasureStuck     Mutation = "Measure does not grow"
	CheckIsKind      Mutation = "Check finds nothing wrong"
	RunIsKind        Mutation = "Run reports success always"
)

// Mutations are all defects.
func Mutations() []Mutation {
	return []Mutation{
		IgnoreEmpty, RecreateOnCount, RecreateOnApply, NoReplacement, NoCause, StopBeforeStart, QuarantineServes,
		QuarantineEnds, Unsorted, Incomplete, SilentDeaths, WatchNeverCloses, NeverMissed, RouteIgnored, RouteTorn,
		MeasureStuck, CheckIsKind, RunIsKind,
	}
}

// Break gives the fake a defect.
func (f *Fake) Break(m Mutation) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.broken[m] = true
}

func (f *Fake) breakApply(fleet *fakeFleet, countChanged bool) {
	if f.broken[RecreateOnApply] || f.broken[RecreateOnCount] && countChanged {
		for _, i := range slices.Clone(fleet.instances) {
			f.stop(i, kiln.Cause{Kind: kiln.CauseStopped})
		}
	}
}

func (f *Fake) breakObservation(o *kiln.Observation) {
	if f.broken[Unsorted] {
		slices.Reverse(o.Fleets)
	}
	if f.broken[Incomplete] && len(o.Fleets) > 1 {
		o.Fleets = o.Fleets[:1]
	}
}

func (f *Fake) breakQuarantine(i *fakeInstance) {
	if f.broken[QuarantineEnds] {
		f.stop(i, kiln.Cause{Kind: kiln.CauseBurned})
	}
}

func (f *Fake) breakRoute(table kiln.RouteTable) {
	switch {
	case f.broken[RouteIgnored] && len(f.table.Public) > 0:
	case f.broken[RouteTorn] && len(f.table.Public) > 0:
		f.table = kiln.RouteTable{}
		for before, n := f.unrouted, 0; f.unrouted == before && n < 10_000; n++ {
			f.mu.Unlock() // let a request in between
			runtime.Gosched()
			f.mu.Lock()
		}
		f.table = table
	default:
		f.table = table
	}
}
