package gateway

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kilnproject/kiln"
)

// fleet is what is remembered of a fleet from table to table.
type fleet struct {
	id kiln.FleetID
	// gone sums up instances that are no longer known, and requests that found
	// no instance.
	gone   stats
	absent time.Time // since when it is in no table; zero while it is in one
}

// instance is what is remembered of an instance from table to table.
type instance struct {
	id      string
	address netip.Addr
	fleet   *fleet
	stats   stats
	// leaving says that no new request may start and no connection is kept.
	leaving atomic.Bool
	// ended is cancelled when what is still in flight must end.
	ended context.Context
	end   context.CancelCauseFunc

	mu    sync.Mutex
	pools map[uint16]*pool
	idle  chan struct{} // closed when nothing is in flight; nil when nobody waits
}

func newInstance(e kiln.Endpoint, f *fleet) *instance {
	ended, end := context.WithCancelCause(context.Background())
	return &instance{id: e.Instance, address: e.Address, fleet: f, ended: ended, end: end, pools: map[uint16]*pool{}}
}

// start counts a request in, unless the instance is leaving. Whoever sets
// leaving and then finds nothing in flight can be sure that nothing follows.
func (i *instance) start() bool {
	i.stats.inFlight.Add(1)
	if i.leaving.Load() {
		i.finish()
		return false
	}
	return true
}

// finish counts a request out.
func (i *instance) finish() {
	if i.stats.inFlight.Add(-1) == 0 && i.leaving.Load() {
		i.settle()
	}
}

// settle wakes who waits, when nothing is in flight.
func (i *instance) settle() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.idle != nil && i.stats.inFlight.Load() == 0 {
		close(i.idle)
		i.idle = nil
	}
}

// pool returns the connections to one port.
func (i *instance) pool(port uint16, g *gateway) *pool {
	i.mu.Lock()
	defer i.mu.Unlock()
	p := i.pools[port]
	if p == nil {
		p = newPool(g, i, netip.AddrPortFrom(i.address, port))
		i.pools[port] = p
	}
	return p
}

// leave stops new requests and closes idle connections; arrive undoes it.
func (i *instance) leave() {
	i.leaving.Store(true)
	for _, p := range i.every() {
		p.closeIdle()
	}
}

func (i *instance) arrive() { i.leaving.Store(false) }

func (i *instance) every() []*pool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Collect(maps.Values(i.pools))
}

// wait returns a channel that is closed when nothing is in flight.
func (i *instance) wait() <-chan struct{} {
	i.mu.Lock()
	if i.idle == nil {
		i.idle = make(chan struct{})
	}
	idle := i.idle
	i.mu.Unlock()
	i.settle()
	return idle
}

// kill ends all that is in flight, and the instance's use.
func (i *instance) kill(cause error) {
	i.end(cause)
	for _, p := range i.every() {
		p.closeAll()
	}
}
