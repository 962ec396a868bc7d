package buildkit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
)

// maxProcesses bounds the processes and threads of all RUNs together, so that
// one that forks without end does not take the machine's.
const maxProcesses = 16384

// limitProcesses makes the cgroup that every RUN is below, in the hierarchy
// that counts processes, and bounds it. It returns without an error where no
// hierarchy does.
func limitProcesses(name string) error {
	for _, hierarchy := range []string{filepath.Join(cgroupRoot, "pids"), cgroupRoot} {
		group := filepath.Join(hierarchy, name)
		if _, err := os.Stat(filepath.Join(hierarchy, "cgroup.procs")); err != nil {
			continue
		}
		if err := os.MkdirAll(group, 0o755); err != nil { //nolint:gosec // as all cgroups are
			return fmt.Errorf("make cgroup %s: %w", group, err)
		}
		// Where version 2 counts processes only in groups whose parent says so.
		_ = os.WriteFile(filepath.Join(filepath.Dir(group), "cgroup.subtree_control"), []byte("+pids"), 0)
		err := os.WriteFile(filepath.Join(group, "pids.max"), []byte(strconv.Itoa(maxProcesses)), 0)
		if err == nil {
			return nil
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) { // not counted here
			return fmt.Errorf("limit cgroup %s: %w", group, err)
		}
	}
	return nil
}
