package local

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/kilnproject/kiln"
)

// generations is how many tables are made before the disk is told again.
const generations = 1000

// gatewayLimit bounds the wait for a gateway that is being started again.
const gatewayLimit = 10 * time.Second

// Route implements kiln.Engine.
func (e *Engine) Route(ctx context.Context, table kiln.RouteTable) error {
	e.applying.Lock()
	defer e.applying.Unlock()
	e.mu.Lock()
	old := e.table
	e.mu.Unlock()
	if err := e.certificates.check(table.Public, old.Public); err != nil {
		return err
	}
	e.mu.Lock()
	err := e.shareServices(table)
	if err == nil {
		e.table = table
	}
	e.mu.Unlock()
	if err != nil {
		return err
	}
	if err = e.filter.publish(ctx); err == nil {
		err = e.publishPatiently(ctx)
	}
	if err == nil {
		err = e.saveRoutes(table)
	}
	if err != nil {
		// All or nothing: what was refused must not come back with the next
		// change of an instance.
		e.mu.Lock()
		e.table = old
		e.mu.Unlock()
		e.traffic.mark()
		return err
	}
	e.mu.Lock()
	for _, env := range e.environments {
		env.stir()
	}
	e.mu.Unlock()
	return nil
}

// publishPatiently brings the gateway up to date. One that is away is being
// started again by the keeper; it gets a while.
func (e *Engine) publishPatiently(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, gatewayLimit)
	defer cancel()
	for {
		err := e.traffic.publish(ctx)
		var known *kiln.Error
		if !errors.As(err, &known) || known.Code != kiln.CodeUnavailable || ctx.Err() != nil {
			return err
		}
		pause(ctx, 10*time.Millisecond)
	}
}

// saveRoutes records the table after the gateway took it.
func (e *Engine) saveRoutes(table kiln.RouteTable) error {
	e.recording.Lock()
	defer e.recording.Unlock()
	e.mu.Lock()
	r := routes{Table: table, Reserved: e.reserved}
	e.mu.Unlock()
	return writeDurable(e.routesFile(), r)
}

// reserve makes sure that the disk knows of the next generation as used, so
// that no later engine makes an older table.
func (e *Engine) reserve() error {
	e.recording.Lock()
	defer e.recording.Unlock()
	e.mu.Lock()
	enough := e.generation < e.reserved
	r := routes{Table: e.table, Reserved: e.generation + generations}
	e.mu.Unlock()
	if enough {
		return nil
	}
	if err := writeDurable(e.routesFile(), r); err != nil {
		return err
	}
	e.mu.Lock()
	e.reserved = r.Reserved
	e.mu.Unlock()
	return nil
}

func (e *Engine) routesFile() string { return filepath.Join(e.paths.root, "routes.json") }

// shareServices gives every private service its virtual address. e.mu is
// held.
func (e *Engine) shareServices(table kiln.RouteTable) error {
	changed := false
	for _, p := range table.Private {
		if !safeName.MatchString(p.Environment) || !safeName.MatchString(p.Service) {
			return kiln.Errorf(kiln.CodeInvalid, "", "%q of %q is not a service", p.Service, p.Environment)
		}
		share, more, err := e.share(p.Environment)
		if err != nil {
			return err
		}
		_, given, err := e.plan.Service(share, p.Service)
		if err != nil {
			return err
		}
		changed = changed || more || given
	}
	if !changed {
		return nil
	}
	return e.savePlan()
}

// publishTraffic brings the gateway up to date.
func (e *Engine) publishTraffic(ctx context.Context) error {
	e.listening.Lock()
	defer e.listening.Unlock()
	err := e.publishTable(ctx)
	if err != nil {
		e.Failed(ctx, err)
	}
	return err
}

// publishTable makes a table and publishes it: addresses and sockets first, so
// that the table finds them, and what it no longer needs after it. e.listening
// is held.
func (e *Engine) publishTable(ctx context.Context) error {
	if err := e.reserve(); err != nil {
		return err
	}
	e.mu.Lock()
	t := e.nextTraffic()
	addresses, cleared := e.virtuals(), e.cleared
	e.mu.Unlock()
	if cleared {
		return nil
	}
	t.Certificates = e.certificates.of(t.Public)
	want := slices.AppendSeq([]string{}, slices.Values(t.Listeners())) // not nil: nil is nothing published yet
	slices.Sort(want)
	both := slices.Compact(slices.Sorted(slices.Values(append(slices.Clone(want), e.listeners...))))
	changed := e.listeners == nil || !slices.Equal(want, e.listeners)
	if changed {
		if err := e.shelf.Set(addresses); err != nil {
			return err
		}
		if err := e.openSockets(ctx, both, want); err != nil {
			if moved, failed := e.evade(err, want); moved || failed != nil {
				return errors.Join(failed, e.publishTable(ctx))
			}
			// One socket that cannot be opened must not keep the others from
			// following what lives: the table goes out, and this is tried again.
			return errors.Join(err, e.Gateway.Set(ctx, t))
		}
	}
	if err := e.Gateway.Set(ctx, t); err != nil {
		return err
	}
	if changed && len(both) > len(want) {
		if err := e.Keeper.Listen(ctx, want); err != nil {
			return err
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.listeners = want // written with e.listening held, too
	e.public = e.public || len(t.HTTP) > 0
	return nil
}

// openSockets has the keeper listen on what is wanted and on what was before
// or, where that is in the way of what comes, on what is wanted alone.
func (e *Engine) openSockets(ctx context.Context, both, want []string) error {
	err := e.Keeper.Listen(ctx, both)
	if err != nil && len(both) > len(want) {
		err = e.Keeper.Listen(ctx, want)
	}
	return err
}

// nextTraffic is the table with the addresses of the moment. e.mu is held.
func (e *Engine) nextTraffic() kiln.Traffic {
	e.generation++
	t := kiln.Traffic{
		Generation: e.generation, HTTP: []string{}, HTTPS: []string{}, Public: e.table.Public, Private: []kiln.PrivateListener{},
		Fleets: map[kiln.FleetID][]kiln.Endpoint{}, Callers: map[netip.Addr]kiln.Caller{}, DNS: []kiln.Zone{},
	}
	for _, r := range e.table.Public {
		if r.Protocol == kiln.ProtocolTCP {
			continue
		}
		t.HTTP = e.Listen.HTTP
		if r.Route.TLS.Mode != "" && r.Route.TLS.Mode != "off" {
			t.HTTPS = e.Listen.HTTPS
		}
	}
	if e.public {
		t.HTTP = e.Listen.HTTP
	}
	for _, p := range e.table.Private {
		if share, ok := e.plan.Environments[p.Environment]; ok && share.Services[p.Service].IsValid() {
			t.Private = append(t.Private, kiln.PrivateListener{PrivateRoute: p, Address: share.Services[p.Service]})
		}
	}
	e.addInstances(&t)
	e.addZones(&t)
	return t
}

// addInstances puts in who takes traffic and who calls. e.mu is held.
func (e *Engine) addInstances(t *kiln.Traffic) {
	for _, in := range e.instances {
		if in.State == kiln.InstanceReady && !in.task && !in.template.Worker() {
			t.Fleets[in.Fleet] = append(t.Fleets[in.Fleet], kiln.Endpoint{Instance: in.ID, Address: in.Address})
		}
		if !in.Address.IsValid() || in.State == kiln.InstanceDead {
			continue
		}
		release, ok := e.table.Callers[in.Fleet]
		if in.task {
			release, ok = in.release, true
		}
		if ok {
			t.Callers[in.Address] = kiln.Caller{Environment: in.Environment, Release: release, Fleet: in.Fleet}
		}
	}
	for _, list := range t.Fleets {
		slices.SortFunc(list, func(a, b kiln.Endpoint) int { return strings.Compare(a.Instance, b.Instance) })
	}
}

// addZones puts in what each environment's resolver answers. e.mu is held.
func (e *Engine) addZones(t *kiln.Traffic) {
	for name, share := range e.plan.Environments {
		z := kiln.Zone{Environment: name, Address: share.Resolver, Names: map[string][]netip.Addr{}}
		for _, host := range e.hostsOf(name) {
			if found := e.names.current(host); len(found) > 0 {
				z.Names[host] = found
			}
		}
		for _, p := range e.table.Private {
			if a, ok := share.Services[p.Service]; ok && p.Environment == name {
				z.Names[strings.ToLower(p.Service)] = []netip.Addr{a}
			}
		}
		t.DNS = append(t.DNS, z)
	}
	slices.SortFunc(t.DNS, func(a, b kiln.Zone) int { return strings.Compare(a.Environment, b.Environment) })
}

// hostsOf lists the names of declared egress of an environment. e.mu is held.
func (e *Engine) hostsOf(environment string) []string {
	var out []string
	add := func(t kiln.Template) {
		for _, g := range t.Config.Egress {
			if g.Host != "" {
				out = append(out, hostKey(g.Host))
			}
		}
	}
	if env, ok := e.environments[environment]; ok {
		for _, f := range env.fleets {
			add(f.Template)
		}
	}
	for _, in := range e.instances {
		if in.Environment == environment && in.task {
			add(in.template)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func hostKey(host string) string { return strings.TrimSuffix(strings.ToLower(host), ".") }

// Check implements kiln.Engine.
func (e *Engine) Check(ctx context.Context, id kiln.FleetID, check kiln.Verify) error {
	e.mu.Lock()
	var ready []*instance
	for _, in := range e.instances {
		if in.Fleet == id && in.State == kiln.InstanceReady && !in.task {
			ready = append(ready, in)
		}
	}
	e.mu.Unlock()
	if len(ready) == 0 {
		return kiln.Errorf(kiln.CodeConflict, "", "no instance of %s is ready", id)
	}
	slices.SortFunc(ready, func(a, b *instance) int { return strings.Compare(a.ID, b.ID) })
	// A check may call other services: what became ready this moment must be in
	// the gateway's table. An error is the publisher's to mend.
	if err := e.traffic.publish(ctx); err != nil && ctx.Err() != nil {
		return err
	}
	for _, in := range ready {
		if err := e.checkOne(ctx, in, check); err != nil {
			return err
		}
	}
	return nil
}

func (e *Engine) checkOne(ctx context.Context, in *instance, check kiln.Verify) error {
	if check.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, check.Timeout)
		defer cancel()
	}
	port, ok := in.template.Port(check.Port)
	if !ok {
		return kiln.Errorf(kiln.CodeInvalid, "", "service %q has no port %q", in.Service, check.Port)
	}
	status, body, err := e.Prober.Get(ctx, netip.AddrPortFrom(in.Address, port.Number), check.HTTP, port.Protocol)
	wanted := status >= 200 && status < 400
	if check.Status != 0 {
		wanted = status == check.Status
	}
	var problem string
	switch {
	case err != nil:
		problem = err.Error()
	case !wanted:
		problem = fmt.Sprintf("GET %s: status %d", check.HTTP, status)
	case !strings.Contains(string(body), check.Body):
		problem = fmt.Sprintf("GET %s: the answer does not contain %q", check.HTTP, check.Body)
	default:
		return nil
	}
	return &kiln.Error{
		Code: kiln.CodeFailed, Message: fmt.Sprintf("check of %s: %s", in.ID, problem),
		Hint: "kiln logs " + in.ID, Evidence: excerpt(body), Err: err,
	}
}

// excerpt is the first lines of an answer.
func excerpt(body []byte) []string {
	const most = 5
	text := strings.ToValidUTF8(string(body[:min(len(body), 1024)]), "\uFFFD")
	if strings.TrimSpace(text) == "" {
		return nil
	}
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[:min(len(lines), most)]
}
