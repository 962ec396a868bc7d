package doctor

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

func checkUser(context.Context, *host) []Finding {
	if os.Geteuid() == 0 {
		return ok("user", "root")
	}
	return warn("user", "not root: the control plane needs root, and some checks are left out", "sudo kiln doctor")
}

func checkDaemon(_ context.Context, h *host) []Finding {
	switch {
	case h.Running:
		return ok("kilnd", "runs on "+h.Data)
	case h.Daemon != "":
		return ok("kilnd", h.Daemon)
	default:
		return blocks("kilnd", "kilnd is neither beside kiln nor in PATH", "make build, and put bin/kiln and bin/kilnd into one directory")
	}
}

// The kernel's needs: EROFS takes idmapped mounts from 5.19 on.
const needMajor, needMinor = 5, 19

func checkKernel(_ context.Context, h *host) []Finding {
	release := h.read("/proc/sys/kernel/osrelease")
	var major, minor int
	_, _ = fmt.Sscanf(release, "%d.%d", &major, &minor)
	newer := "apt-get install -t bookworm-backports linux-image-amd64, and restart"
	var all []Finding
	if major < needMajor || major == needMajor && minor < needMinor {
		all = append(all, blocks("kernel", fmt.Sprintf("%s: idmapped mounts of sealed roots need %d.%d or later", release, needMajor, needMinor), newer)...)
	} else {
		all = append(all, ok("kernel", release)...)
	}
	all = append(all, checkFilesystem(h, "erofs", "sealed roots are EROFS files")...)
	all = append(all, checkFilesystem(h, "overlay", "bakes work on overlayfs")...)
	if limit := h.read("/proc/sys/user/max_user_namespaces"); limit == "" || limit == "0" {
		all = append(all, blocks("user namespaces", "are off: instances run in their own", "sysctl -w user.max_user_namespaces=100000")...)
	} else {
		all = append(all, ok("user namespaces", "at most "+limit)...)
	}
	return all
}

// checkFilesystem knows a filesystem that is registered, or whose module is
// there to be loaded.
func checkFilesystem(h *host, name, why string) []Finding {
	for line := range strings.Lines(h.read("/proc/filesystems")) {
		if fields := strings.Fields(line); len(fields) > 0 && fields[len(fields)-1] == name {
			return ok(name, "the kernel knows it")
		}
	}
	modules := h.read("/lib/modules/" + h.read("/proc/sys/kernel/osrelease") + "/modules.dep")
	if strings.Contains(modules, "/"+name+".ko") {
		return warn(name, "is a module that is not loaded", "modprobe "+name)
	}
	return blocks(name, "the kernel does not know it: "+why, "use a kernel that has "+name)
}

func checkCgroups(_ context.Context, h *host) []Finding {
	version, have := cgroups(h)
	var lacking []string
	for _, controller := range []string{"cpu", "memory", "pids"} {
		if !slices.Contains(have, controller) {
			lacking = append(lacking, controller)
		}
	}
	if version == "" {
		return blocks("cgroups", "are not mounted", "mount -t cgroup2 none /sys/fs/cgroup")
	}
	if len(lacking) > 0 {
		return blocks("cgroups", fmt.Sprintf("%s, without %s: limits cannot be set", version, strings.Join(lacking, ", ")),
			"add cgroup_enable="+lacking[0]+" to the kernel's command line, and restart")
	}
	return ok("cgroups", version+" with "+strings.Join(have, ", "))
}

// cgroups returns which version is mounted and the controllers it has.
func cgroups(h *host) (version string, controllers []string) {
	if controllers := strings.Fields(h.read("/sys/fs/cgroup/cgroup.controllers")); len(controllers) > 0 {
		return "v2", controllers
	}
	entries, err := os.ReadDir(h.path("/sys/fs/cgroup"))
	if err != nil {
		return "", nil
	}
	for _, e := range entries {
		for name := range strings.SplitSeq(e.Name(), ",") {
			if e.IsDir() && h.exists("/sys/fs/cgroup/"+e.Name()+"/cgroup.procs") && name != "unified" {
				controllers = append(controllers, name)
			}
		}
	}
	switch {
	case len(controllers) == 0:
		return "", nil
	case h.exists("/sys/fs/cgroup/unified"):
		return "hybrid", controllers
	default:
		return "v1", controllers
	}
}

func checkClock(_ context.Context, h *host) []Finding {
	if year := h.Now().Year(); year < 2026 {
		return blocks("clock", fmt.Sprintf("says %d: signatures and certificates will not verify", year), "timedatectl set-ntp true")
	}
	var state unix.Timex // modes 0: asks only
	if _, err := unix.Adjtimex(&state); err != nil {
		return warn("clock", "cannot be asked: "+err.Error(), "timedatectl")
	}
	if state.Status&unix.STA_UNSYNC != 0 {
		return warn("clock", "nothing keeps it right: the times in logs and events may be off", "apt-get install systemd-timesyncd, or chrony")
	}
	return ok("clock", "is kept right")
}

func checkDisk(_ context.Context, h *host) []Finding {
	dir := h.Data
	for dir != "/" && dir != "." && !h.exists(dir) {
		dir = parent(dir)
	}
	var stat unix.Statfs_t
	if err := unix.Statfs(h.path(dir), &stat); err != nil {
		return warn("disk", dir+": "+err.Error(), "--data names another directory")
	}
	free := int64(stat.Bavail) * stat.Bsize
	const gib = 1 << 30
	message := fmt.Sprintf("%.1f GiB free for %s", float64(free)/gib, h.Data)
	switch {
	case free < gib:
		return blocks("disk", message+", at least 1 GiB is needed", "free some, or --data names a directory on another disk")
	case free < 5*gib:
		return warn("disk", message, "free some, or give kilnd --storage-max")
	default:
		return ok("disk", message)
	}
}

func parent(path string) string {
	i := strings.LastIndexByte(strings.TrimRight(path, "/"), '/')
	if i <= 0 {
		return "/"
	}
	return path[:i]
}

func checkMemory(_ context.Context, h *host) []Finding {
	var available int64
	for line := range bytes.Lines([]byte(h.read("/proc/meminfo"))) {
		_, _ = fmt.Sscanf(string(line), "MemAvailable: %d kB", &available)
	}
	message := fmt.Sprintf("%d MiB available", available>>10)
	switch {
	case available < 256<<10:
		return blocks("memory", message+", at least 256 MiB are needed", "end something, or use a larger machine")
	case available < 1<<20:
		return warn("memory", message+": bakes may be killed", "end something, or use a larger machine")
	default:
		return ok("memory", message)
	}
}
