package install

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
)

// RemoveOptions say what to uninstall.
type RemoveOptions struct {
	// Root is the root of an image or chroot; empty means this machine.
	Root string
	// Purge also removes the data directory, the configuration, accounts, and
	// files that were changed since they were installed.
	Purge bool
	// Run runs a program; nil means for real.
	Run func(ctx context.Context, program string, args ...string) error
}

// PlanRemoval says what Uninstall would do, the last made first.
func PlanRemoval(o RemoveOptions) ([]Step, error) {
	h, err := openHost(o.Root, o.Run)
	if err != nil {
		return nil, err
	}
	defer h.close()
	record, err := h.installed()
	if err != nil {
		return nil, err
	}
	return h.removal(*record, o.Purge, nil)
}

// installed is the record, which must be there.
func (h *host) installed() (*Record, error) {
	record, err := h.record()
	if err != nil || record != nil {
		return record, err
	}
	hint := "a package is removed by its manager: apt-get remove kiln"
	return nil, kiln.Errorf(kiln.CodeNotFound, hint, "kiln install has installed nothing here: there is no %s", RecordFile)
}

// removal plans; busy is what runs on this machine, nil where that does not
// matter.
func (h *host) removal(record Record, purge bool, busy processes) ([]Step, error) {
	var steps []Step
	for _, e := range slices.Backward(record.Items) {
		step, err := h.removalOf(e, record, purge, busy)
		if err != nil {
			return nil, fmt.Errorf("look at %s: %w", e.Name, err)
		}
		if step.Action != "" {
			steps = append(steps, step)
		}
	}
	if purge { // also what was there before the installation
		for _, dir := range []string{record.Data, ConfigDir} {
			if record.find(KindFolder, dir) == nil && h.there(dir) {
				steps = append(steps, whole(Step{Item: Item{Kind: KindFolder, Name: dir}}))
			}
		}
	}
	// The configuration's folder has the record, and goes last.
	isRecords := func(s Step) bool { return s.Item.Name == ConfigDir }
	at := slices.IndexFunc(steps, isRecords)
	if at < 0 {
		return steps, nil
	}
	last := steps[at]
	if len(kept(record, steps)) > 0 {
		last.Action, last.Why = Keep, "it says what is kept"
	}
	return append(slices.DeleteFunc(steps, isRecords), last), nil
}

func whole(s Step) Step {
	s.Action, s.Why, s.whole = Remove, "with all that is in it", true
	return s
}

// kept are the entries that a removal leaves.
func kept(record Record, steps []Step) []Entry {
	var out []Entry
	for _, e := range record.Items {
		if slices.ContainsFunc(steps, func(s Step) bool { return s.Action == Keep && s.Item.Kind == e.Kind && s.Item.Name == e.Name }) {
			out = append(out, e)
		}
	}
	return out
}

func (h *host) there(path string) bool {
	_, err := h.root.Lstat(h.at(path))
	return err == nil
}

// removalOf is the step for one entry; one without an action needs none.
func (h *host) removalOf(e Entry, record Record, purge bool, busy processes) (Step, error) {
	step := Step{Action: Remove, Item: Item{Kind: e.Kind, Name: e.Name, Target: e.Target}}
	keep := func(why string) (Step, error) {
		step.Action, step.Why = Keep, why
		return step, nil
	}
	switch e.Kind {
	case KindGroup, KindUser:
		id, found, err := h.account(e.Kind, e.Name)
		switch {
		case err != nil || !found:
			return Step{}, err
		case !purge:
			return keep("files in the data directory may be its own; --purge removes it")
		case e.Kind == KindUser && busy != nil:
			if who := busy.as(id); who != "" {
				return keep(who + " runs as it")
			}
		}
		return step, nil
	case KindFolder:
		return h.removalOfFolder(step, record, purge)
	case KindFile, KindLink: // below
	}
	if !h.there(e.Name) {
		return Step{}, nil
	}
	if e.Kind == KindLink {
		target, err := h.root.Readlink(h.at(e.Name))
		if err != nil || target != e.Target {
			return keep("it is another link now")
		}
		return step, nil
	}
	have, err := h.digestOf(e.Name)
	if err == nil && !slices.Contains(e.Digests, have) && !purge {
		return keep("it was changed since; --purge removes it")
	}
	return step, err
}

func (h *host) removalOfFolder(step Step, record Record, purge bool) (Step, error) {
	if !h.there(step.Item.Name) {
		return Step{}, nil
	}
	switch name := step.Item.Name; {
	case purge && (name == record.Data || name == ConfigDir):
		return whole(step), nil
	case name == record.Data:
		step.Action, step.Why = Keep, "--purge removes it, with all that Kiln knows"
	default:
		step.Why = "if it is empty"
	}
	return step, nil
}

// Uninstall does what PlanRemoval says and tells each step before it is taken.
// Nothing of Kiln may run on the data directory; what else runs the executables
// is a conflict.
func Uninstall(ctx context.Context, o RemoveOptions, tell func(Step) error) error {
	h, err := openHost(o.Root, o.Run)
	if err != nil {
		return err
	}
	defer h.close()
	record, err := h.installed()
	if err != nil {
		return err
	}
	var busy processes
	if h.live {
		if busy, err = running(); err != nil {
			return err
		}
	}
	if err := busy.refuse(*record); err != nil {
		return err
	}
	steps, err := h.removal(*record, o.Purge, busy)
	if err != nil {
		return err
	}
	left := kept(*record, steps)
	for _, s := range steps {
		if s.Item.Name == ConfigDir && len(left) == 0 {
			// It would keep the folder from being empty. What is not done yet
			// is done without it.
			if err := ignoreMissing(h.root.Remove(h.at(RecordFile))); err != nil {
				return err
			}
		}
		if err := tell(s); err != nil {
			return err
		}
		if err := h.undo(ctx, s); err != nil {
			return fmt.Errorf("remove %s %s: %w", s.Item.Kind, s.Item.Name, err)
		}
	}
	if len(left) == 0 {
		return ignoreMissing(h.root.Remove(h.at(RecordFile)))
	}
	record.Items = left
	return h.writeRecord(*record)
}

func (h *host) undo(ctx context.Context, s Step) error {
	i := s.Item
	switch {
	case s.Action != Remove:
		return nil
	case i.Kind == KindGroup || i.Kind == KindUser:
		return h.removeAccount(ctx, i)
	case s.whole:
		return h.removeAll(i.Name)
	case i.Kind == KindFolder:
		err := ignoreMissing(h.root.Remove(h.at(i.Name)))
		if errors.Is(err, unix.ENOTEMPTY) {
			return nil
		}
		return err
	default:
		return ignoreMissing(h.root.Remove(h.at(i.Name)))
	}
}

// removeAccount removes a user, with the group of the same name, which some
// systems leave, or a group.
func (h *host) removeAccount(ctx context.Context, i Item) error {
	if err := h.change(ctx, RemoveAccount(i.Kind, i.Name)); err != nil || i.Kind == KindGroup {
		return err
	}
	_, left, err := h.account(KindGroup, i.Name)
	if err != nil || !left {
		return err
	}
	return h.change(ctx, RemoveAccount(KindGroup, i.Name))
}

// removeAll removes a folder with all that is in it. Mounts below it are
// somebody's, and refused.
func (h *host) removeAll(dir string) error {
	path := h.at(dir)
	if h.live {
		if below, err := mountsBelow("/" + path); err != nil || len(below) > 0 {
			return errors.Join(err, kiln.Errorf(kiln.CodeConflict, "umount "+strings.Join(below, " "), "there are mounts in %s", dir))
		}
	}
	if err := h.makeMutable(path); err != nil {
		return err
	}
	err := h.root.RemoveAll(path)
	if errors.Is(err, unix.EBUSY) { // it is a file system of its own
		return nil
	}
	return err
}

// mountsBelow lists the mount points below a folder, from
// /proc/self/mountinfo (proc_pid_mountinfo(5)).
func mountsBelow(dir string) ([]string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			out = append(out, fields[4])
		}
	}
	return out, nil
}

// immutableFlag is FS_IMMUTABLE_FL of linux/fs.h, which sealed roots have.
const immutableFlag = 0x10

// makeMutable takes the flag from every file below a folder.
func (h *host) makeMutable(dir string) error {
	return fs.WalkDir(h.root.FS(), dir, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		f, err := h.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
		if err != nil || flags&immutableFlag == 0 {
			return nil // a file system without flags has not set one
		}
		return unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags&^immutableFlag)
	})
}
