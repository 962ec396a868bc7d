// Package cgroup knows where the kernel keeps the control groups of instances
// (version 1, version 2, or both side by side) and does what a runtime does
// not: tell whether memory killed, freeze, kill and remove.
package cgroup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Tree is the hierarchies of this machine and one parent group of ours in
// each.
type Tree struct {
	parent string            // "kiln-3fa92c", or more than one name deep; below the root of each
	mounts map[string]string // controller -> mount point; "" for the unified one
}

// Open finds the hierarchies. parent is the group that holds all instances.
func Open(parent string) (*Tree, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	t := &Tree{parent: parent, mounts: map[string]string{}}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		fields, tail := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(tail) < 3 || !strings.HasPrefix(fields[4], "/sys/fs/cgroup") {
			continue
		}
		switch tail[0] {
		case "cgroup2":
			t.mounts[""] = fields[4]
		case "cgroup":
			for option := range strings.SplitSeq(tail[2], ",") {
				if option != "rw" && option != "ro" {
					t.mounts[option] = fields[4]
				}
			}
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	if len(t.mounts) == 0 {
		return nil, errors.New("no control groups are mounted below /sys/fs/cgroup")
	}
	return t, nil
}

// Path is what a runtime's configuration says for an instance.
func (t *Tree) Path(instance string) string { return "/" + t.parent + "/" + instance }

// dir returns the instance's directory in the hierarchy that has the
// controller, which is the unified one where no version 1 hierarchy has it.
func (t *Tree) dir(controller, instance string) (dir string, v2 bool) {
	if m, ok := t.mounts[controller]; ok && controller != "" {
		return filepath.Join(m, t.parent, instance), false
	}
	return filepath.Join(t.mounts[""], t.parent, instance), true
}

// Swap says whether the kernel can bound memory and swap together.
func (t *Tree) Swap() bool {
	m, ok := t.mounts["memory"]
	if !ok {
		return t.swapV2()
	}
	_, err := os.Stat(filepath.Join(m, "memory.memsw.limit_in_bytes"))
	return err == nil
}

// swapV2 says so for version 2, where every group with the memory controller but
// the root has memory.swap.max when swap is accounted for. A runtime that is
// asked to write one that is not there fails.
func (t *Tree) swapV2() bool {
	counted := func(pattern string) bool {
		found, err := filepath.Glob(filepath.Join(t.mounts[""], pattern))
		return err == nil && len(found) > 0
	}
	switch {
	case counted("*/memory.swap.max"):
		return true
	case counted("*/memory.max"):
		return false
	}
	_, err := os.Stat("/proc/swaps") // no group has the controller yet
	return err == nil
}

// MemoryLimit returns the limit in force for an instance, in bytes; without one
// it is larger than any machine.
func (t *Tree) MemoryLimit(instance string) (int64, error) {
	dir, v2 := t.dir("memory", instance)
	name := "memory.limit_in_bytes"
	if v2 {
		name = "memory.max"
	}
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return 0, err
	}
	text := strings.TrimSpace(string(b))
	if v2 && text == "max" {
		return math.MaxInt64, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read %s of %s: %w", name, instance, err)
	}
	return n, nil
}

// ProcessesRefused says whether the instance ever wanted more processes than it
// may have. It must be asked before Remove.
func (t *Tree) ProcessesRefused(instance string) bool {
	dir, _ := t.dir("pids", instance)
	return count(filepath.Join(dir, "pids.events"), "max") > 0
}

// MemoryKilled says whether the memory limit killed a process of the
// instance. It must be asked before Remove.
func (t *Tree) MemoryKilled(instance string) bool {
	dir, v2 := t.dir("memory", instance)
	name := "memory.oom_control"
	if v2 {
		name = "memory.events"
	}
	return count(filepath.Join(dir, name), "oom_kill") > 0
}

// count reads a number from a file of "name number" lines, 0 when it is not
// there.
func count(path, name string) int64 {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == name {
			n, _ := strconv.ParseInt(f[1], 10, 64)
			return n
		}
	}
	return 0
}

// Freeze stops every process of the instance where it is; Thaw lets them go
// on.
func (t *Tree) Freeze(instance string) error { return t.freeze(instance, "FROZEN", "1") }

// Thaw is the opposite of Freeze.
func (t *Tree) Thaw(instance string) error { return t.freeze(instance, "THAWED", "0") }

func (t *Tree) freeze(instance, v1, v2 string) error {
	dir, unified := t.dir("freezer", instance)
	name, value := "freezer.state", v1
	if unified {
		name, value = "cgroup.freeze", v2
	}
	if err := os.WriteFile(filepath.Join(dir, name), []byte(value), 0); err != nil {
		return fmt.Errorf("set %s of %s: %w", name, instance, err)
	}
	return nil
}

// Kill ends every process of the instance, frozen ones too. It does not wait.
func (t *Tree) Kill(instance string) error {
	if dir, v2 := t.dir("pids", instance); v2 {
		err := os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0)
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	pids, err := t.Processes(instance)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill process %d of %s: %w", pid, instance, err)
		}
	}
	if err := t.Thaw(instance); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Processes lists the processes of the instance, none when it is gone.
func (t *Tree) Processes(instance string) ([]int, error) {
	dir, _ := t.dir("pids", instance)
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list processes of %s: %w", instance, err)
	}
	var pids []int
	for field := range strings.FieldsSeq(string(b)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			return nil, fmt.Errorf("list processes of %s: %w", instance, err)
		}
		if pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// Remove deletes the instance's groups in every hierarchy. A group whose last
// process is still being torn down is busy for some milliseconds; Remove
// tries until ctx ends.
func (t *Tree) Remove(ctx context.Context, instance string) error {
	return t.remove(ctx, filepath.Join(t.parent, instance))
}

// RemoveAll deletes the parent group with all that is in it.
func (t *Tree) RemoveAll(ctx context.Context) error { return t.remove(ctx, t.parent) }

func (t *Tree) remove(ctx context.Context, below string) error {
	var errs []error
	for _, mount := range t.distinct() {
		errs = append(errs, removeTree(ctx, filepath.Join(mount, below)))
	}
	return errors.Join(errs...)
}

func (t *Tree) distinct() []string {
	var out []string
	for _, m := range t.mounts {
		if !slices.Contains(out, m) {
			out = append(out, m)
		}
	}
	return out
}

// removeTree removes a group and those below it, deepest first.
func removeTree(ctx context.Context, dir string) error {
	for delay := time.Millisecond; ; delay = min(2*delay, 50*time.Millisecond) {
		err := unix.Rmdir(dir)
		switch {
		case err == nil, errors.Is(err, fs.ErrNotExist):
			return nil
		case !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY):
			return fmt.Errorf("remove group %s: %w", dir, err)
		}
		entries, readErr := os.ReadDir(dir)
		if readErr != nil && !errors.Is(readErr, fs.ErrNotExist) {
			return fmt.Errorf("remove group %s: %w", dir, readErr)
		}
		for _, e := range entries {
			if e.IsDir() {
				if err := removeTree(ctx, filepath.Join(dir, e.Name())); err != nil {
					return err
				}
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("remove group %s: %w", dir, errors.Join(err, ctx.Err()))
		case <-time.After(delay):
		}
	}
}

// Instances lists the groups that are there below the parent.
func (t *Tree) Instances() ([]string, error) {
	var out []string
	for _, mount := range t.distinct() {
		entries, err := os.ReadDir(filepath.Join(mount, t.parent))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list groups: %w", err)
		}
		for _, e := range entries {
			if e.IsDir() && !slices.Contains(out, e.Name()) {
				out = append(out, e.Name())
			}
		}
	}
	slices.Sort(out)
	return out, nil
}
