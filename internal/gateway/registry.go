package gateway

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/kilnproject/kiln"
)

// forgetFleet is how long the counts of a fleet are kept that left the table.
const forgetFleet = 15 * time.Minute

type instanceKey struct {
	fleet    kiln.FleetID
	endpoint kiln.Endpoint
}

// registry remembers fleets and instances across tables.
type registry struct {
	mu        sync.Mutex
	fleets    map[kiln.FleetID]*fleet
	instances map[instanceKey]*instance
}

func newRegistry() *registry {
	return &registry{fleets: map[kiln.FleetID]*fleet{}, instances: map[instanceKey]*instance{}}
}

// enter returns the fleet and its instances, known or new. They take no
// requests before keep.
func (r *registry) enter(id kiln.FleetID, endpoints []kiln.Endpoint) (*fleet, []*instance) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := r.fleets[id]
	if f == nil {
		f = &fleet{id: id}
		r.fleets[id] = f
	}
	var members []*instance
	for _, e := range endpoints {
		key := instanceKey{id, e}
		i := r.instances[key]
		if i == nil || i.ended.Err() != nil {
			if i != nil {
				r.fold(key, i)
			}
			i = newInstance(e, f)
			r.instances[key] = i
		}
		members = append(members, i)
	}
	return f, members
}

// arrive lets the instances of a table take requests, before the table is
// used.
func (r *registry) arrive(t kiln.Traffic) {
	r.mu.Lock()
	defer r.mu.Unlock()
	listed := listing(t)
	for key, i := range r.instances {
		if listed[key] {
			i.arrive()
		}
	}
	for id, f := range r.fleets {
		if _, ok := t.Fleets[id]; ok {
			f.absent = time.Time{}
		}
	}
}

// depart ends the use of instances that the table, which is used now, does not
// have, and forgets those that nothing uses.
func (r *registry) depart(t kiln.Traffic, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	listed, living := listing(t), map[*fleet]bool{}
	for key, i := range r.instances {
		if listed[key] {
			living[i.fleet] = true
			continue
		}
		i.leave()
		if i.stats.inFlight.Load() == 0 {
			r.fold(key, i)
		} else {
			living[i.fleet] = true
		}
	}
	for id, f := range r.fleets {
		if _, ok := t.Fleets[id]; ok || living[f] {
			continue
		}
		if f.absent.IsZero() {
			f.absent = now
		} else if now.Sub(f.absent) > forgetFleet {
			delete(r.fleets, id)
		}
	}
}

// listing is the set of a table's instances.
func listing(t kiln.Traffic) map[instanceKey]bool {
	set := map[instanceKey]bool{}
	for id, endpoints := range t.Fleets {
		for _, e := range endpoints {
			set[instanceKey{id, e}] = true
		}
	}
	return set
}

// fold adds an instance's counts to its fleet's and forgets it.
func (r *registry) fold(key instanceKey, i *instance) {
	var m kiln.Measurement
	i.stats.addTo(&m)
	s := &i.fleet.gone
	s.requests.Add(m.Requests)
	s.failures.Add(m.Failures)
	s.bytesIn.Add(m.BytesIn)
	s.bytesOut.Add(m.BytesOut)
	for n, c := range m.Status {
		s.status[n].Add(c)
	}
	for n, c := range m.Latency {
		s.latency[n].Add(c)
	}
	s.took.Add(int64(m.Took))
	i.kill(errGone)
	delete(r.instances, key)
}

// find returns the instances with an ID: one, or none, or two when it changed
// its address.
func (r *registry) find(id string) []*instance {
	r.mu.Lock()
	defer r.mu.Unlock()
	var found []*instance
	for _, i := range r.instances {
		if i.id == id {
			found = append(found, i)
		}
	}
	return found
}

// measure sums up: each fleet, followed by its instances.
func (r *registry) measure() []kiln.Measurement {
	r.mu.Lock()
	defer r.mu.Unlock()
	sums := map[*fleet]*kiln.Measurement{}
	for id, f := range r.fleets {
		m := &kiln.Measurement{Fleet: id}
		f.gone.addTo(m)
		sums[f] = m
	}
	out := make([]kiln.Measurement, 0, len(r.fleets)+len(r.instances))
	for _, i := range r.instances {
		m := kiln.Measurement{Fleet: i.fleet.id, Instance: i.id}
		i.stats.addTo(&m)
		if sum := sums[i.fleet]; sum != nil {
			addUp(sum, &m)
		}
		out = append(out, m)
	}
	for _, sum := range sums {
		out = append(out, *sum)
	}
	slices.SortFunc(out, func(a, b kiln.Measurement) int {
		return cmp.Or(cmp.Compare(a.Fleet, b.Fleet), cmp.Compare(a.Instance, b.Instance))
	})
	return out
}

// expire closes upstream connections that are idle for long.
func (r *registry) expire(now int64) {
	r.mu.Lock()
	var all []*instance
	for _, i := range r.instances {
		all = append(all, i)
	}
	r.mu.Unlock()
	for _, i := range all {
		for _, p := range i.every() {
			p.expire(now)
		}
	}
}

// close ends all upstream connections.
func (r *registry) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, i := range r.instances {
		i.leaving.Store(true)
		i.kill(errEnding)
	}
}
