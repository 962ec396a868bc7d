package local

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/local/netns"
	"github.com/kilnproject/kiln/internal/local/subnet"
)

const dnsPort = 53

// held says whether another process has a socket where a resolver shall be.
// The engine's own listeners are no others.
func held(resolver netip.Addr) bool {
	return errors.Is(netns.Bindable(netip.AddrPortFrom(resolver, dnsPort)), unix.EADDRINUSE)
}

// move gives the data directory another subnet, in which nobody holds sockets
// yet. It says false when instances have addresses of the old one: they keep
// them. e.mu is held.
func (e *Engine) move() (bool, error) {
	if e.cleared || slices.ContainsFunc(living(e.instances), func(in *instance) bool { return in.Address.IsValid() }) {
		return false, nil
	}
	lock, err := lockMachine()
	if err != nil {
		return false, err
	}
	defer func() { _ = lock.Close() }()
	taken, err := netns.Taken(e.linkPrefix(), e.shelfName(), netip.Prefix{})
	if err != nil {
		return false, err
	}
	old := e.plan
	if err := e.choosePlan(append(taken, old.Subnet), old.Environments); err != nil {
		e.plan = old
		return false, err
	}
	e.plan.Group = old.Group // it is bound
	if err := e.settle(); err != nil {
		e.plan = old
		return false, err
	}
	e.Log.Warn("another process holds addresses of the instances' subnet, moved to another", "from", old.Subnet, "to", e.plan.Subnet)
	e.filter.mark()
	return true, netns.Unfence(old.Subnet)
}

// settle puts the plan's addresses and its fence on the host and records it.
// e.mu is held, except in New.
func (e *Engine) settle() error {
	if err := e.shelf.Set(e.virtuals()); err != nil {
		return err
	}
	if err := netns.Fence(e.plan.Subnet); err != nil {
		return err
	}
	return e.savePlan()
}

func living(instances map[string]*instance) []*instance {
	out := make([]*instance, 0, len(instances))
	for _, in := range instances {
		out = append(out, in)
	}
	return out
}

// share returns an environment's share of addresses. A new one whose resolver
// could not listen, because another process holds its address, is moved with
// the whole subnet while that is possible. e.mu is held.
func (e *Engine) share(environment string) (*subnet.Environment, bool, error) {
	share, changed, err := e.plan.Open(environment, e.foreign)
	if err != nil || !changed || e.listeners == nil || e.listensOn(share.Resolver) || !held(share.Resolver) {
		return share, changed, err
	}
	if moved, err := e.move(); err != nil || !moved {
		return share, changed, err
	}
	return e.plan.Environments[environment], true, nil
}

// listensOn says whether the keeper listens there for this engine. e.mu is
// held.
func (e *Engine) listensOn(a netip.Addr) bool {
	return slices.ContainsFunc(e.listeners, func(name string) bool { return strings.Contains(name, "://"+a.String()+":") })
}

// evade moves to another subnet when the first listeners of this engine could
// not be opened because others hold virtual addresses of it.
func (e *Engine) evade(cause error, listeners []string) (bool, error) {
	conflict := (*kiln.Error)(nil)
	if !errors.As(cause, &conflict) || conflict.Code != kiln.CodeConflict {
		return false, nil
	}
	text := strings.Join(append(conflict.Evidence, cause.Error()), "\n")
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.listeners != nil {
		return false, nil
	}
	for _, name := range listeners {
		_, address, _ := strings.Cut(name, "://")
		a, err := netip.ParseAddrPort(address)
		if err == nil && e.plan.Subnet.Contains(a.Addr()) && strings.Contains(text, name+":") {
			return e.move()
		}
	}
	return false, nil
}

// firstTraffic publishes once before anything is started, while the subnet
// can still be another. Its error is the publisher's to mend.
func (e *Engine) firstTraffic(ctx context.Context) {
	e.mu.Lock()
	needed := len(e.plan.Environments) > 0 && len(e.instances) == 0
	e.mu.Unlock()
	if !needed {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, gatewayLimit)
	defer cancel()
	_ = e.traffic.once(ctx)
}
