package main

import (
	"iter"
	"math/rand/v2"
	"time"
)

// event is one thing that goes wrong. What it does to whom follows from the
// seed alone; when its victim is there depends on the machine.
type event struct {
	Kind  string
	Pause time.Duration // before it
	For   time.Duration // how long it lasts, where it lasts
	Pick  float64       // which of several victims, from 0 to below 1
}

// kind is a kind of event.
type kind struct {
	name   string
	weight int
	// costly events take an instance out of traffic: before one, all
	// instances that are desired must be ready, or what fails would be the
	// harness's fault.
	costly bool
	do     func(*chaos, event) error
}

func kinds() []kind {
	return []kind{
		{"kill control plane", 6, false, killControl},
		{"kill gateway", 6, false, killGateway},
		{"kill keeper", 4, false, killKeeper},
		{"kill instance", 6, true, killInstance},
		{"kill application", 4, true, killApplication},
		{"kill runtime in a start", 3, true, killRuntime},
		{"kill RUN of a bake", 2, false, killBake},
		{"freeze control plane", 3, false, freezeControl},
		{"freeze gateway", 3, false, freezeGateway},
		{"freeze keeper", 3, false, freezeKeeper},
		{"freeze instance", 4, true, freezeInstance},
		{"up", 8, false, up},
		{"rollback", 3, false, rollback},
		{"write into an instance", 2, false, writeInto},
		{"enter an instance", 2, false, enter},
		{"delete a rule", 2, false, deleteRule},
		{"remove a link", 2, true, removeLink},
		{"unlock a sealed file", 2, false, unlockSeal},
		{"fill the disk", 2, false, fillDisk},
		{"use up an instance's memory", 2, true, useMemory},
	}
}

// The bounds of what is random.
const (
	minPause, maxPause = 300 * time.Millisecond, 2500 * time.Millisecond
	minLast, maxLast   = 100 * time.Millisecond, 3 * time.Second
)

// plan is the endless sequence of events of a seed.
func plan(seed uint64) iter.Seq[event] {
	random := rand.New(rand.NewPCG(seed, 0))
	between := func(low, high time.Duration) time.Duration {
		return low + time.Duration(random.Int64N(int64(high-low)))
	}
	total := 0
	for _, k := range kinds() {
		total += k.weight
	}
	return func(yield func(event) bool) {
		for {
			at := random.IntN(total)
			for _, k := range kinds() {
				if at -= k.weight; at < 0 {
					e := event{Kind: k.name, Pause: between(minPause, maxPause), For: between(minLast, maxLast), Pick: random.Float64()}
					if !yield(e) {
						return
					}
					break
				}
			}
		}
	}
}
