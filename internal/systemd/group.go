package systemd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Slice is where all that Kiln runs is in systemd's tree.
const Slice = "kiln.slice"

// GroupOptions describe a control group.
type GroupOptions struct {
	Name        string // of the unit, without ".service"
	Description string
	// Before are units that end before this one.
	Before []string
	// Stop is a command that ends what is in the group; what it leaves after
	// half a minute is ended by signals. Without one, or where its words have
	// characters that systemd reads otherwise, that is all.
	Stop []string
}

// GroupUnit is the unit whose control group Group makes for a name.
func GroupUnit(name string) string { return name + ".service" }

// GroupPath is that control group, below the root of each hierarchy.
func GroupPath(name string) string { return "/" + Slice + "/" + GroupUnit(name) }

// hold is below a group, and has the process that keeps it.
const hold = "hold"

// Group makes a control group that is the caller's, by systemd's contract of
// delegation (systemd.resource-control(5), Delegate=): systemd makes the group,
// keeps every controller on in it, and touches nothing below. Whoever made it
// puts groups below it and processes into those, never into the group itself.
// One that is there stays as it is.
//
// The group is that of a transient unit. systemd removes a group without
// processes, so the unit has one that sleeps. When that is killed the unit and
// all that is in its group go on.
func Group(ctx context.Context, o GroupOptions) error {
	unit := GroupUnit(o.Name)
	have, err := Show(ctx, unit, "ActiveState", "Delegate", "ControlGroup")
	switch {
	case err != nil:
		return err
	case have["ActiveState"] != "active":
		_, err = run(ctx, "systemd-run", groupArgs(o)...)
	case have["Delegate"] != "yes":
		err = fmt.Errorf("%s is a unit of somebody else's", unit)
	case have["ControlGroup"] == "": // its process was killed, and then all else ended
		_, err = run(ctx, "systemctl", "restart", "--", unit)
	}
	if err != nil {
		return err
	}
	return moveAside(ctx, o.Name)
}

func groupArgs(o GroupOptions) []string {
	properties := []string{
		"Type=exec", "Delegate=yes", "RemainAfterExit=yes",
		"SuccessExitStatus=SIGKILL SIGABRT SIGALRM SIGBUS SIGQUIT SIGSEGV SIGUSR1 SIGUSR2",
		"TasksMax=infinity", // who is below has limits of its own
		"OOMPolicy=continue",
		"TimeoutStopSec=30",
	}
	if len(o.Before) > 0 { // what starts after another ends before it
		properties = append(properties, "Before="+strings.Join(o.Before, " "))
	}
	if words := strings.Join(o.Stop, " "); words != "" && strings.Count(words, " ") == len(o.Stop)-1 && !strings.ContainsAny(words, "\t\n\"'\\$%;") {
		properties = append(properties, "ExecStop="+words)
	}
	args := []string{"--quiet", "--collect", "--unit=" + o.Name, "--slice=" + Slice, "--description=" + o.Description}
	for _, p := range properties {
		args = append(args, "--property="+p)
	}
	return append(args, "--", "sleep", "infinity")
}

// moveAside puts the unit's own process into a group of its own: version 2 has
// no controllers below a group that has processes itself (cgroups(7), "no
// internal processes").
func moveAside(ctx context.Context, name string) error {
	group := filepath.Join("/sys/fs/cgroup", GroupPath(name))
	if _, err := os.Stat(filepath.Join(group, "cgroup.subtree_control")); err != nil {
		return nil //nolint:nilerr // not version 2
	}
	unit, err := Show(ctx, GroupUnit(name), "MainPID")
	if err != nil || unit["MainPID"] == "0" {
		return err
	}
	if err := os.Mkdir(filepath.Join(group, hold), 0o755); err != nil && !errors.Is(err, fs.ErrExist) { //nolint:gosec // as all control groups are
		return err
	}
	return os.WriteFile(filepath.Join(group, hold, "cgroup.procs"), []byte(unit["MainPID"]), 0)
}

// Ungroup ends what is in a group of Group's and removes it.
func Ungroup(ctx context.Context, name string) error {
	_, err := run(ctx, "systemctl", "stop", "--", GroupUnit(name))
	return err
}
