package local

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/local/netns"
	"github.com/kilnproject/kiln/internal/local/nflog"
	"github.com/kilnproject/kiln/internal/local/nft"
	"github.com/kilnproject/kiln/internal/local/subnet"
)

// machineLock keeps two engines of one machine from choosing the same network
// at the same moment.
const machineLock = "/run/kiln.lock"

func (e *Engine) linkPrefix() string { return "k" + e.tag + "-" }
func (e *Engine) shelfName() string  { return "k" + e.tag + "v" }
func (e *Engine) tableName() string  { return "kiln_" + e.tag }

// lockMachine holds machineLock until the file is closed.
func lockMachine() (*os.File, error) {
	lock, err := os.OpenFile(machineLock, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", machineLock, err), lock.Close())
	}
	return lock, nil
}

// openPlan reads the plan of addresses, or makes one: a subnet that no route
// of the host overlaps and nobody holds sockets in, and an nflog group that
// nobody listens to.
func (e *Engine) openPlan() error {
	lock, err := lockMachine()
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	var plan subnet.Plan
	known, err := readJSON(e.planFile(), &plan)
	if err != nil {
		return err
	}
	taken, err := netns.Taken(e.linkPrefix(), e.shelfName(), plan.Subnet)
	if err != nil {
		return err
	}
	conflict := slices.ContainsFunc(taken, func(p netip.Prefix) bool { return known && plan.Subnet.Overlaps(p) })
	living, err := os.ReadDir(e.paths.instances)
	if err != nil {
		return err
	}
	if conflict && len(living) > 0 {
		// Instances keep their addresses; routes to them are more specific
		// than the one that came later.
		e.Log.Warn("a route of the host overlaps with the instances' subnet", "subnet", plan.Subnet)
	}
	if known && (!conflict || len(living) > 0) {
		plan.Init()
		e.plan = &plan
	} else if err := e.choosePlan(taken, plan.Environments); err != nil {
		return err
	}
	if err := e.listenAttempts(); err != nil {
		return err
	}
	// Address and fence are on the host before the lock is given up, so that
	// the next engine sees this subnet as taken.
	e.shelf = netns.OpenShelf(e.shelfName())
	return e.settle()
}

// choosePlan picks a subnet in which a resolver can listen. The shares of a
// plan whose subnet is no longer free keep their user IDs and services and get
// new addresses.
func (e *Engine) choosePlan(taken []netip.Prefix, old map[string]*subnet.Environment) error {
	seed := subnet.Seed(e.tag)
	for {
		chosen, err := subnet.Choose(seed, taken)
		if err != nil {
			return err
		}
		e.plan = subnet.New(chosen, uint16(1000+seed%60000)) // below 61,000
		if first, err := e.plan.Next(); err == nil && !held(first) {
			break
		}
		e.Log.Info("another process holds addresses of a free subnet, trying the next", "subnet", chosen)
		taken = append(taken, chosen)
	}
	for _, name := range slices.Sorted(maps.Keys(old)) {
		share, _, err := e.plan.Open(name, e.foreign)
		if err != nil {
			return err
		}
		share.UIDBase = old[name].UIDBase
		for _, service := range slices.Sorted(maps.Keys(old[name].Services)) {
			if _, _, err := e.plan.Service(share, service); err != nil {
				return err
			}
		}
	}
	return nil
}

// listenAttempts binds the nflog group of the plan, or the next one that is
// free.
func (e *Engine) listenAttempts() error {
	const tries = 100
	for range tries {
		tap, err := nflog.Listen(e.plan.Group)
		if err == nil {
			e.tap = tap
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		e.plan.Group++
	}
	return fmt.Errorf("find a free nflog group: %w", unix.EBUSY)
}

func (e *Engine) planFile() string { return filepath.Join(e.paths.root, "subnets.json") }

// savePlan records what was given out. e.mu is held, except in New.
func (e *Engine) savePlan() error { return writeDurable(e.planFile(), e.plan) }

// virtuals are all virtual addresses. e.mu is held, except in New.
func (e *Engine) virtuals() []netip.Addr {
	out := []netip.Addr{e.plan.Source()}
	for _, name := range slices.Sorted(maps.Keys(e.plan.Environments)) {
		share := e.plan.Environments[name]
		out = append(out, share.Resolver)
		for _, service := range slices.Sorted(maps.Keys(share.Services)) {
			out = append(out, share.Services[service])
		}
	}
	return out
}

// publishFilter brings the packet filter up to date.
func (e *Engine) publishFilter(context.Context) error {
	e.publishing.Lock() // Clear comes before or after, not in between
	defer e.publishing.Unlock()
	e.mu.Lock()
	r, cleared := e.ruleset(), e.cleared
	e.mu.Unlock()
	if cleared {
		return nil
	}
	if len(r.Fleets) > 0 {
		on, enable, err := netns.Forwarding()
		if err == nil && !on {
			e.Log.Info("switching on IPv4 forwarding for declared egress")
			err = enable()
		}
		if err != nil {
			return fmt.Errorf("switch on IPv4 forwarding: %w", err)
		}
		e.warnOfBlockers()
	}
	return nft.Apply(r)
}

// warnOfBlockers tells of foreign chains that stop declared egress, whenever
// they are others than before. e.publishing is held.
func (e *Engine) warnOfBlockers() {
	chains, err := nft.Blockers(e.tableName())
	text := strings.Join(chains, ", ")
	switch {
	case err != nil:
		e.Log.Warn("look for other firewalls", "error", err)
	case text != e.blockers && text != "":
		e.Log.Warn("another firewall drops what is forwarded: declared egress does not work; kiln doctor says what mends it", "chains", text)
	}
	e.blockers = text
}

// ruleset says what may be reached by whom. e.mu is held.
func (e *Engine) ruleset() nft.Ruleset {
	r := nft.Ruleset{Table: e.tableName(), Links: e.linkPrefix(), Subnet: e.plan.Subnet, Group: e.plan.Group}
	for _, name := range slices.Sorted(maps.Keys(e.plan.Environments)) {
		share := e.plan.Environments[name]
		env := nft.Environment{Blocks: e.plan.Prefixes(share), Open: []nft.Endpoint{
			{Address: share.Resolver, Protocol: unix.IPPROTO_UDP, Port: 53},
			{Address: share.Resolver, Protocol: unix.IPPROTO_TCP, Port: 53},
		}}
		for _, p := range e.table.Private {
			if a, ok := share.Services[p.Service]; ok && p.Environment == name {
				env.Open = append(env.Open, nft.Endpoint{Address: a, Protocol: unix.IPPROTO_TCP, Port: p.Port.Number})
			}
		}
		r.Environments = append(r.Environments, env)
	}
	callers := map[kiln.FleetID][]netip.Addr{}
	templates := map[kiln.FleetID]kiln.Template{}
	for _, in := range e.instances {
		if len(in.template.Config.Egress) > 0 && in.Address.IsValid() {
			callers[in.Fleet] = append(callers[in.Fleet], in.Address)
			templates[in.Fleet] = in.template
		}
	}
	for _, id := range slices.Sorted(maps.Keys(callers)) {
		r.Fleets = append(r.Fleets, e.egressOf(templates[id], callers[id]))
	}
	return r
}

func (e *Engine) egressOf(t kiln.Template, instances []netip.Addr) nft.Fleet {
	f := nft.Fleet{Instances: instances}
	for _, g := range t.Config.Egress {
		protocol := uint8(unix.IPPROTO_TCP)
		if g.Protocol == "udp" {
			protocol = unix.IPPROTO_UDP
		}
		if g.Host == "" {
			if g.Prefix.Addr().Is4() {
				f.Prefixes = append(f.Prefixes, nft.PrefixPort{Prefix: g.Prefix.Masked(), Protocol: protocol, Port: g.Port})
			}
			continue
		}
		for _, a := range e.names.allowed(g.Host) {
			f.Hosts = append(f.Hosts, nft.Endpoint{Address: a, Protocol: protocol, Port: g.Port})
		}
	}
	return f
}

// clear removes what the machine has of this engine.
func (e *Engine) clear(ctx context.Context) error {
	e.publishing.Lock()
	defer e.publishing.Unlock()
	e.pool.close()
	for _, base := range e.roots.bases() {
		e.roots.collect(base, theseRoots(nil), e.Log)
	}
	_, swept := netns.Sweep(e.linkPrefix(), nil)
	errs := []error{nft.Remove(e.tableName()), swept, e.shelf.Remove(), netns.Unfence(e.plan.Subnet), e.groups.RemoveAll(ctx), e.tap.Close()}
	if err := os.Remove(e.RunDir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// foreignIDs reads the ranges of IDs that /etc/subuid and /etc/subgid give to
// users of this machine.
func foreignIDs() ([]subnet.Range, error) {
	var out []subnet.Range
	for _, name := range []string{"/etc/subuid", "/etc/subgid"} {
		f, err := os.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			fields := strings.Split(lines.Text(), ":")
			if len(fields) != 3 {
				continue
			}
			first, err1 := strconv.ParseUint(fields[1], 10, 32)
			count, err2 := strconv.ParseUint(fields[2], 10, 32)
			if err1 == nil && err2 == nil && count > 0 {
				out = append(out, subnet.Range{First: uint32(first), Last: uint32(min(first+count-1, 1<<32-1))})
			}
		}
		if err := errors.Join(lines.Err(), f.Close()); err != nil {
			return nil, err
		}
	}
	return out, nil
}
