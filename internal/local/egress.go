package local

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/kilnproject/kiln"
)

const (
	// resolveEvery is how often names of declared egress are resolved anew.
	resolveEvery = 30 * time.Second
	// keepResolved is how long an address stays allowed after a name no
	// longer resolved to it: callers may have kept it.
	keepResolved = 10 * time.Minute
	// resolveLimit bounds one resolution.
	resolveLimit = 5 * time.Second
)

// resolver knows the addresses of the names that egress was declared to. A
// name that cannot be resolved any more keeps its last addresses.
type resolver struct {
	e      *Engine
	lookup func(ctx context.Context, host string) ([]netip.Addr, error)
	wake   chan struct{}

	mu    sync.Mutex
	hosts map[string]*host
}

type host struct {
	now  []netip.Addr             // sorted
	seen map[netip.Addr]time.Time // when last
}

func newResolver(e *Engine) *resolver {
	return &resolver{e: e, lookup: lookup, wake: make(chan struct{}, 1), hosts: map[string]*host{}}
}

func lookup(ctx context.Context, name string) ([]netip.Addr, error) {
	return net.DefaultResolver.LookupNetIP(ctx, "ip4", name)
}

func (r *resolver) stir() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// current is what a name resolves to.
func (r *resolver) current(name string) []netip.Addr {
	r.mu.Lock()
	defer r.mu.Unlock()
	if h, ok := r.hosts[hostKey(name)]; ok {
		return slices.Clone(h.now)
	}
	return nil
}

// allowed is what a name resolves to or did a short while ago, sorted.
func (r *resolver) allowed(name string) []netip.Addr {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []netip.Addr
	if h, ok := r.hosts[hostKey(name)]; ok {
		for a := range h.seen {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

func (r *resolver) run(ctx context.Context) {
	timer := time.NewTicker(resolveEvery)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			r.refresh(ctx, true)
		case <-r.wake:
			r.refresh(ctx, false)
		}
	}
}

// refresh resolves the declared names, all or only those that are new.
func (r *resolver) refresh(ctx context.Context, all bool) {
	var wanted []string
	r.e.mu.Lock()
	for name := range r.e.environments {
		wanted = append(wanted, r.e.hostsOf(name)...)
	}
	r.e.mu.Unlock()
	slices.Sort(wanted)
	wanted = slices.Compact(wanted)
	r.forget(wanted)
	changed := false
	for _, name := range wanted {
		if !all && len(r.current(name)) > 0 {
			continue
		}
		changed = r.resolve(ctx, name) || changed
	}
	if changed {
		r.e.filter.mark()
		r.e.traffic.mark()
	}
}

// resolve asks for one name and says whether something changed.
func (r *resolver) resolve(ctx context.Context, name string) bool {
	limited, cancel := context.WithTimeout(ctx, resolveLimit)
	defer cancel()
	found, err := r.lookup(limited, name)
	if err != nil {
		if ctx.Err() == nil {
			r.e.Log.Warn("resolve a name of declared egress", "host", name, "error", err)
		}
		return false
	}
	for i := range found {
		found[i] = found[i].Unmap()
	}
	slices.SortFunc(found, netip.Addr.Compare)
	return r.learn(name, slices.Compact(found), time.Now())
}

func (r *resolver) learn(name string, found []netip.Addr, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	h, ok := r.hosts[name]
	if !ok {
		h = &host{seen: map[netip.Addr]time.Time{}}
		r.hosts[name] = h
	}
	changed := !slices.Equal(h.now, found)
	h.now = found
	for _, a := range found {
		h.seen[a] = now
	}
	for a, at := range h.seen {
		if now.Sub(at) > keepResolved {
			delete(h.seen, a)
			changed = true
		}
	}
	return changed
}

// forget drops the names that nobody declares any more.
func (r *resolver) forget(wanted []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name := range r.hosts {
		if !slices.Contains(wanted, name) {
			delete(r.hosts, name)
		}
	}
}

// resolveNow resolves the names of a template that are not known yet.
func (r *resolver) resolveNow(ctx context.Context, t kiln.Template) {
	for _, g := range t.Config.Egress {
		if g.Host != "" && len(r.current(g.Host)) == 0 {
			r.resolve(ctx, hostKey(g.Host))
		}
	}
}
