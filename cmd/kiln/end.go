package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
)

const (
	// endLimit is how long instances have when the machine ends; what is left
	// then is killed.
	endLimit = 20 * time.Second
	endPoll  = 50 * time.Millisecond
)

// endCommand ends the instances below a control group without a keeper and a
// control plane: systemd runs it when the machine ends.
func endCommand() *cobra.Command {
	return &cobra.Command{
		Use: "end GROUP", Hidden: true, Short: "End the instances below a control group; systemd runs it when the machine ends", Args: cobra.ExactArgs(1),
		RunE: func(command *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(command.Context(), endLimit)
			defer cancel()
			return endInstances(ctx, "/sys/fs/cgroup", args[0])
		},
	}
}

// endInstances asks process 1 of each instance to end, as a rollout does, and
// returns once no process is left below the group, or with ctx's error.
func endInstances(ctx context.Context, hierarchies, group string) error {
	if !filepath.IsAbs(group) || filepath.Clean(group) != group || group == "/" {
		return kiln.Errorf(kiln.CodeInvalid, "", "%q is not a control group", group)
	}
	asked := map[int]bool{}
	tick := time.NewTicker(endPoll)
	defer tick.Stop()
	for {
		all, err := membersBelow(hierarchies, group)
		if err != nil || len(all) == 0 {
			return err
		}
		for _, pid := range all {
			if !asked[pid] && leadsNamespace(pid) {
				asked[pid] = true
				if err := unix.Kill(pid, unix.SIGTERM); err != nil && !errors.Is(err, unix.ESRCH) {
					return err
				}
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// membersBelow lists the processes below a group: in version 2, or in the hierarchy of
// version 1 that counts processes, which every instance is in.
func membersBelow(hierarchies, group string) ([]int, error) {
	var all []int
	for _, root := range []string{hierarchies, filepath.Join(hierarchies, "pids")} {
		err := filepath.WalkDir(filepath.Join(root, group), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Name() == "cgroup.procs" {
				var members []int
				members, err = readMembers(path)
				all = append(all, members...)
			}
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) { // a group that goes away
				return nil
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

// readMembers reads a cgroup.procs.
func readMembers(path string) ([]int, error) {
	b, err := os.ReadFile(path)
	var all []int
	for field := range strings.FieldsSeq(string(b)) {
		if pid, err := strconv.Atoi(field); err == nil && pid > 1 {
			all = append(all, pid)
		}
	}
	return all, err
}

// leadsNamespace says whether a process is number 1 of a PID namespace
// (proc_pid_status(5), NSpid).
func leadsNamespace(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if numbers, ok := strings.CutPrefix(line, "NSpid:"); ok {
			fields := strings.Fields(numbers)
			return len(fields) > 1 && fields[len(fields)-1] == "1"
		}
	}
	return false
}
