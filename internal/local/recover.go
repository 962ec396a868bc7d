package local

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/local/netns"
)

// recover takes over from the engine before: what lives is adopted, what died
// meanwhile is told of, what is half made or left over is removed.
func (e *Engine) recover(ctx context.Context) error {
	list, err := e.Keeper.List(ctx)
	if err != nil {
		return err
	}
	known := map[string]kiln.ProcessStatus{}
	for _, s := range list {
		known[s.ID] = s
	}
	entries, err := os.ReadDir(e.paths.instances)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		var r record
		ok, err := readJSON(filepath.Join(e.paths.instance(entry.Name()), "state.json"), &r)
		if err != nil || !ok || r.Instance.ID != entry.Name() {
			e.Log.Warn("remove an instance without a readable record", "instance", entry.Name(), "error", err)
			continue // the sweep removes it
		}
		e.adopt(r, known)
	}
	return e.sweep(ctx, list)
}

// adopt takes over one instance, or buries it.
func (e *Engine) adopt(r record, known map[string]kiln.ProcessStatus) {
	in := wrapInstance(r.Instance, r.Template)
	in.task, in.release, in.leave = r.Task, r.Release, r.Leave
	in.link, in.root, in.stop = r.Link, r.Root, r.Stop
	status, listed := known[in.ID]
	if listed {
		in.PID = status.PID
	}
	alive := in.PID != 0 && e.owns(in.ID, in.PID) && (!listed || status.Exit == nil)
	if !alive && !listed && r.Phase == phaseMaking {
		return // half made: the sweep removes it
	}
	env := e.environment(in.Environment)
	e.instances[in.ID] = in
	if !in.task {
		e.fleetOf(env, in) // also one that is no longer desired, so that it ends
	}
	e.plan.Claim(in.Address)
	switch {
	case !alive:
		exit := kiln.Exit{At: time.Now(), Lost: true}
		if status.Exit != nil {
			exit = *status.Exit
		}
		in.exit = &exit
		in.DiedAt = exit.At
		if r.End == nil {
			in.State = kiln.InstanceDead
		}
		close(in.exited)
	case r.Phase == phaseQuarantined:
		close(in.hold)
	case in.task:
		in.timeout = 0 // nobody waits for it any more
	case r.Phase == phaseEnding:
	case in.ReadyAt.IsZero():
		in.State = kiln.InstanceStarting
	default:
		// It was ready and has the traffic; its next check is at once.
		in.State = kiln.InstanceReady
	}
	if r.End != nil {
		in.ended, in.cause = true, *r.End
		in.State = kiln.InstanceDraining
		close(in.end)
	}
}

// sweep removes whatever carries the tag and belongs to no instance.
func (e *Engine) sweep(ctx context.Context, list []kiln.ProcessStatus) error {
	stale := map[string]bool{}
	add := func(names []string) {
		for _, name := range names {
			if _, ours := e.instances[name]; !ours {
				stale[name] = true
			}
		}
	}
	for _, s := range list {
		add([]string{s.ID})
	}
	groups, err := e.groups.Instances()
	if err != nil {
		return err
	}
	add(groups)
	for _, dir := range []string{e.paths.instances, e.paths.runtime} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, entry := range entries {
			add([]string{entry.Name()})
		}
	}
	for id := range stale {
		if err := e.remove(ctx, id); err != nil {
			e.Log.Warn("remove what is left over", "instance", id, "error", err)
		}
	}
	return e.sweepMachine()
}

// sweepMachine removes links and mounts that no instance uses.
func (e *Engine) sweepMachine() error {
	links, roots := map[string]bool{}, map[string]bool{}
	for _, in := range e.instances {
		links[in.link] = true
		roots[in.root] = true
	}
	if _, err := netns.Sweep(e.linkPrefix(), links); err != nil {
		return err
	}
	for _, base := range e.roots.bases() {
		used := map[string]bool{}
		for root := range roots {
			if strings.HasPrefix(root, e.roots.parent(base)+"/") {
				used[root] = true
			}
		}
		e.roots.collect(base, theseRoots(used), e.Log)
	}
	return nil
}

// owns says whether a process is in an instance's control group.
func (e *Engine) owns(id string, pid int) bool {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cgroup"))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if strings.HasSuffix(strings.TrimSpace(line), e.groups.Path(id)) {
			return true
		}
	}
	return false
}

// awaitOrphan waits for the end of an instance that the keeper does not know,
// because it is a new keeper: how it ends, nobody will see.
func (e *Engine) awaitOrphan(ctx context.Context, in *instance) {
	fd, err := unix.PidfdOpen(in.PID, 0)
	if err == nil {
		defer func() { _ = unix.Close(fd) }()
		for ctx.Err() == nil {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 200) // a descriptor
			if n > 0 || (err != nil && !errors.Is(err, unix.EINTR)) {
				break
			}
		}
	}
	if ctx.Err() == nil {
		e.exited(in.ID, kiln.Exit{At: time.Now(), Lost: true})
	}
}
