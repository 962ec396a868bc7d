package main

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln/internal/install"
	"github.com/kilnproject/kiln/internal/local"
	"github.com/kilnproject/kiln/internal/systemd"
)

// groups are the control groups of a data directory, as paths below the root
// of every hierarchy; empty where the engine and the baker choose.
type groups struct {
	instances, bakes string
	// name is that of the group which systemd made for them; empty for none.
	name string
}

// openGroups asks systemd, where it runs, for a group of Kiln's own: all of its
// tree is systemd's to change but what it delegated. Instances that are in a
// group already stay there, and others join them. program is the kiln executable.
func openGroups(ctx context.Context, data, program string, log *slog.Logger) groups {
	plain := local.Group(data)
	if !systemd.Running() || groupExists(plain) {
		return groups{}
	}
	name := filepath.Base(plain)
	below := systemd.GroupPath(name)
	err := systemd.Group(ctx, systemd.GroupOptions{
		Name: name, Description: "Kiln's instances of " + data,
		Before: []string{install.KeeperUnit, install.DaemonUnit}, Stop: []string{program, "end", below + "/instances"},
	})
	if err != nil {
		log.Warn("systemd gives no control group", "error", err)
		if !groupExists(below) {
			return groups{}
		}
	}
	return groups{instances: below + "/instances", bakes: below + "/bakes", name: name}
}

// groupExists says whether a group is in any hierarchy, version 1 or 2.
func groupExists(path string) bool {
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		if found, err := filepath.Glob(pattern + path); err == nil && len(found) > 0 {
			return true
		}
	}
	return false
}

// closeGroups removes the group after a shutdown, when bakes have ended too.
// Otherwise instances are in it, and it stays.
func (p *plane) closeGroups() error {
	if p.groups.name == "" || !p.stopping.Load() {
		return nil
	}
	if err := systemd.Ungroup(context.Background(), p.groups.name); err != nil {
		return fmt.Errorf("remove the control group: %w", err)
	}
	removeEmpty(systemd.GroupPath(p.groups.name))
	return nil
}

// removeEmpty removes what the runtime made of a group in hierarchies of
// version 1 that systemd does not look after, such as freezer.
func removeEmpty(path string) {
	for _, dir := range []string{path, filepath.Dir(path)} {
		found, err := filepath.Glob("/sys/fs/cgroup/*" + dir)
		if err != nil {
			return
		}
		for _, group := range found {
			_ = unix.Rmdir(group) // what is not empty stays
		}
	}
}
