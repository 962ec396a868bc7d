package local_test

import (
	"context"
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/local/netns"
	"github.com/kilnproject/kiln/internal/local/subnet"
)

// squat holds the resolver's address of a subnet, as a foreign gateway does:
// without an address or a route that would show it.
func squat(t *testing.T, resolver netip.Addr) {
	t.Helper()
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var set error
		err := c.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1) })
		if err != nil {
			return err
		}
		return set
	}}
	l, err := config.Listen(t.Context(), "tcp4", netip.AddrPortFrom(resolver, 53).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
}

// planned is the plan on disk.
func planned(t *testing.T, dir string) subnet.Plan {
	t.Helper()
	var p subnet.Plan
	b, err := os.ReadFile(filepath.Join(dir, "local/subnets.json"))
	if err == nil {
		err = json.Unmarshal(b, &p)
	}
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestASubnetWithForeignSocketsIsNotChosen(t *testing.T) {
	b := newBed(t)
	first := planned(t, b.dir).Subnet
	b.stop()
	if err := b.Clear(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(b.dir, "local/subnets.json")); err != nil {
		t.Fatal(err)
	}
	squat(t, subnet.New(first, 0).Source().Next())
	b.boot()
	if second := planned(t, b.dir).Subnet; second == first {
		t.Errorf("%s was chosen again", second)
	}
}

func TestTheFirstEnvironmentEvadesForeignSockets(t *testing.T) {
	b := newBed(t)
	b.gateway.wait(t, "the first table", func(tr kiln.Traffic) bool { return tr.Generation > 0 })
	before := planned(t, b.dir).Subnet
	squat(t, subnet.New(before, 0).Source().Next())
	b.ready(web(1))
	after := planned(t, b.dir)
	if after.Subnet == before || !after.Subnet.Contains(after.Environments["test"].Resolver) {
		t.Errorf("from %s to %+v", before, after)
	}
}

// TestForeignSocketsAfterAMachineRestart: another data directory's gateway was
// quicker, and holds what the plan has. The environment comes up elsewhere.
func TestForeignSocketsAfterAMachineRestart(t *testing.T) {
	b := newRealBed(t)
	f := web(1)
	before := b.ready(f)
	old := planned(t, b.dir)
	b.stop()
	for _, i := range before.Fleets[0].Instances {
		if err := syscall.Kill(i.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		b.real.forget(t, i.ID)
	}
	if err := b.real.keeper.Listen(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(b.dir, "local/instances")); err != nil {
		t.Fatal(err)
	}
	squat(t, old.Environments["test"].Resolver)
	b.boot()
	b.wait("readiness", func(o kiln.Observation) bool { return allReady(o, []kiln.Fleet{f}) })
	now := planned(t, b.dir)
	if now.Subnet == old.Subnet || now.Environments["test"].UIDBase != old.Environments["test"].UIDBase {
		t.Errorf("from %+v to %+v", old, now)
	}
	if err := netns.Bindable(netip.AddrPortFrom(now.Environments["test"].Resolver, 53)); err == nil {
		t.Error("nobody listens for the environment's resolver")
	}
}

// forget drops a process from the keeper once it has ended.
func (p *processes) forget(t *testing.T, id string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), longest)
	defer cancel()
	for p.keeper.Forget(ctx, id) != nil {
		if ctx.Err() != nil {
			t.Fatalf("%s did not end", id)
		}
	}
}
