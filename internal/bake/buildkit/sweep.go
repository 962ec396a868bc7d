package buildkit

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const cgroupRoot = "/sys/fs/cgroup"

// Sweep removes what an engine on root left when its process was killed: the
// processes of a RUN, the runtime's state, mounts, cgroups. It must not be
// called while an engine runs on root.
func Sweep(ctx context.Context, root, runtime, cgroup string) error {
	groups, err := cgroups(cgroup)
	if err != nil {
		return err
	}
	return errors.Join(
		killAll(ctx, groups),
		deleteBundles(ctx, executorDir(root), runtime),
		unmountBelow(root),
		removeBundles(executorDir(root)),
		removeCgroups(groups),
	)
}

// cgroups lists the folders of a cgroup in every mounted hierarchy, version 1,
// hybrid or version 2, deepest first.
func cgroups(name string) ([]string, error) {
	candidates := []string{filepath.Join(cgroupRoot, name)}
	hierarchies, err := os.ReadDir(cgroupRoot)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list cgroups: %w", err)
	}
	for _, h := range hierarchies {
		if h.IsDir() {
			candidates = append(candidates, filepath.Join(cgroupRoot, h.Name(), name))
		}
	}
	var found []string
	for _, c := range candidates {
		err := filepath.WalkDir(c, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				found = append(found, p)
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("list cgroups: %w", err)
		}
	}
	slices.SortFunc(found, func(a, b string) int { return strings.Count(b, "/") - strings.Count(a, "/") })
	return found, nil
}

// killAll kills what runs in the groups, again until nothing does: a process
// may fork while it is looked at.
func killAll(ctx context.Context, groups []string) error {
	for range 100 {
		var pids []int
		for _, g := range groups {
			pids = append(pids, members(g)...)
		}
		if len(pids) == 0 {
			return nil
		}
		slices.Sort(pids)
		for _, pid := range slices.Compact(pids) {
			if err := kill(ctx, pid); err != nil {
				return err
			}
		}
	}
	return errors.New("processes of an earlier bake do not end")
}

func members(group string) []int {
	b, err := os.ReadFile(filepath.Join(group, "cgroup.procs"))
	if err != nil {
		return nil // gone, or a group of threads
	}
	var pids []int
	for f := range strings.FieldsSeq(string(b)) {
		if pid, err := strconv.Atoi(f); err == nil && pid > 1 && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}

// kill ends a process and waits for its end, at most five seconds.
func kill(ctx context.Context, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("end process %d of an earlier bake: %w", pid, err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("end process %d of an earlier bake: %w", pid, err)
	}
	end := time.Now().Add(5 * time.Second)
	for time.Now().Before(end) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for process %d: %w", pid, err)
		}
		if n > 0 {
			return nil
		}
	}
	return fmt.Errorf("process %d of an earlier bake does not end", pid)
}

// deleteBundles makes the runtime forget the containers of left bundles.
func deleteBundles(ctx context.Context, dir, runtime string) error {
	for _, id := range bundles(dir) {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		out, err := exec.CommandContext(ctx, runtime, "delete", "--force", id).CombinedOutput()
		cancel()
		if errors.Is(err, exec.ErrNotFound) {
			return nil // without a runtime nothing can have run
		}
		if err != nil && !strings.Contains(string(out), "does not exist") {
			return fmt.Errorf("forget container %s: %w: %s", id, err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}

// bundles lists the containers that were running: BuildKit removes a bundle
// when its RUN ends.
func bundles(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var ids []string
	for _, e := range entries {
		if e.IsDir() {
			ids = append(ids, e.Name())
		}
	}
	return ids
}

func removeBundles(dir string) error {
	var errs []error
	for _, id := range bundles(dir) {
		// The root's mount is gone by now; should it not be, removing its
		// content must fail and not follow it.
		bundle := filepath.Join(dir, id)
		if mounted(filepath.Join(bundle, "rootfs")) {
			errs = append(errs, fmt.Errorf("%s is still mounted", bundle))
			continue
		}
		errs = append(errs, os.RemoveAll(bundle))
	}
	return errors.Join(errs...)
}

func mounted(path string) bool {
	points, err := mountPoints()
	return err != nil || slices.Contains(points, path)
}

// unmountBelow detaches every mount below dir, the newest first.
func unmountBelow(dir string) error {
	points, err := mountPoints()
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range slices.Backward(points) {
		if !strings.HasPrefix(p, dir+"/") {
			continue
		}
		if err := unix.Unmount(p, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", p, err))
		}
	}
	return errors.Join(errs...)
}

// mountPoints lists the mount points of this mount namespace in the order in
// which they were mounted (proc_pid_mountinfo(5), field 5).
func mountPoints() ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	defer func() { _ = f.Close() }()
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var points []string
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		if fields := strings.Fields(s.Text()); len(fields) > 4 {
			points = append(points, unescape.Replace(fields[4]))
		}
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	return points, nil
}

func removeCgroups(groups []string) error {
	var errs []error
	for _, g := range groups {
		if err := unix.Rmdir(g); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("remove cgroup %s: %w", g, err))
		}
	}
	return errors.Join(errs...)
}
