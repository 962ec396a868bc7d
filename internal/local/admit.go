package local

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/local/oci"
)

const (
	// leastMemory is what one more instance is counted with at least, in
	// bytes: the sum of the limits may be more than the machine has, because
	// few instances ever use theirs, but each costs something.
	leastMemory = 16 << 20
	// reserveMemory and reserveDisk stay free, in bytes.
	reserveMemory = 64 << 20
	reserveDisk   = 256 << 20
	// diskPerInstance is what one more instance is counted with: its log.
	diskPerInstance = 1 << 20
)

// Admit implements kiln.Engine.
func (e *Engine) Admit(ctx context.Context, fleets []kiln.Fleet) error {
	more := map[string]int64{}
	total, memory := int64(0), int64(0)
	for _, f := range fleets {
		if err := checkFleets(f.Environment, []kiln.Fleet{f}); err != nil {
			return err
		}
		if err := checkEgress(f.Template); err != nil {
			return err
		}
		n := int64(max(0, f.Count-e.countOf(f.ID())))
		more[f.Environment] += n
		total += n
		memory += n * min(max(f.Template.Config.Limits.Memory/8, 1<<20), leastMemory)
	}
	if err := e.room(total, memory, more); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(cap(e.starts))
	for _, f := range fleets {
		g.Go(func() error {
			e.names.resolveNow(ctx, f.Template)
			if _, err := e.prepare(ctx, f.Environment, f.Template); err != nil {
				return fmt.Errorf("admit %s: %w", f.ID(), err)
			}
			return nil
		})
	}
	return g.Wait()
}

// Prepare implements kiln.Preparer.
func (e *Engine) Prepare(ctx context.Context, templates []kiln.Template) error {
	if err := e.roomOnDisk(0); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(cap(e.starts))
	for _, t := range templates {
		g.Go(func() error { return e.Images.Seal(ctx, t.Image, oci.MountPoints(t)) })
	}
	return g.Wait()
}

// checkEgress refuses what would be declared in vain.
func checkEgress(t kiln.Template) error {
	for _, g := range t.Config.Egress {
		if g.Host == "" && !g.Prefix.Addr().Is4() {
			return kiln.Errorf(kiln.CodeInvalid, "name an IPv4 network, or a host that has an IPv4 address",
				"service %q declares egress to %s, and instances on this machine have no IPv6", t.Service, g.Prefix)
		}
	}
	return nil
}

// countOf counts a fleet's instances.
func (e *Engine) countOf(id kiln.FleetID) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.views(id))
}

// room checks memory, disk and addresses.
func (e *Engine) room(total, memory int64, more map[string]int64) error {
	if total == 0 {
		return nil
	}
	available, err := memoryAvailable()
	if err != nil {
		return err
	}
	if memory+reserveMemory > available {
		return kiln.Errorf(kiln.CodeNoRoom, "lower the counts, or free memory",
			"%d more instances need about %d MiB of memory, and %d MiB are available", total, (memory+reserveMemory)>>20, available>>20)
	}
	if err := e.roomOnDisk(total); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for name, n := range more {
		share, _, err := e.share(name)
		if err != nil {
			return err
		}
		if have := e.plan.Free(share); int64(have) < n {
			return kiln.Errorf(kiln.CodeNoRoom, "run fewer instances", "%d more instances need addresses, and %d are left in %s", n, have, e.plan.Subnet)
		}
	}
	return e.savePlan()
}

// roomOnDisk checks that there is room for more instances.
func (e *Engine) roomOnDisk(more int64) error {
	var disk unix.Statfs_t
	if err := unix.Statfs(e.paths.root, &disk); err != nil {
		return fmt.Errorf("ask for free disk: %w", err)
	}
	free := int64(disk.Bavail) * disk.Bsize // no disk is that large
	if need := more*diskPerInstance + reserveDisk; need > free {
		return kiln.Errorf(kiln.CodeNoRoom, "free disk space on the file system of the data directory",
			"%d more instances need about %d MiB of disk, and %d MiB are free", more, need>>20, free>>20)
	}
	return nil
}

// memoryAvailable is what the kernel thinks can be used without swapping, in
// bytes.
func memoryAvailable() (int64, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if rest, ok := strings.CutPrefix(lines.Text(), "MemAvailable:"); ok {
			var kib int64
			if _, err := fmt.Sscan(rest, &kib); err != nil {
				return 0, fmt.Errorf("read available memory: %w", err)
			}
			return kib << 10, nil
		}
	}
	return 0, fmt.Errorf("read available memory: not in /proc/meminfo: %w", lines.Err())
}
