package oci

import (
	"fmt"
	"math"
	"os"
	"strings"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/kilnproject/kiln"
)

// linux is namespaces, limits, and the paths of the kernel that are hidden.
func linux(o Options) *specs.Linux {
	l := &specs.Linux{
		Namespaces: []specs.LinuxNamespace{
			{Type: specs.PIDNamespace},
			{Type: specs.MountNamespace},
			{Type: specs.IPCNamespace},
			{Type: specs.UTSNamespace},
			{Type: specs.CgroupNamespace},
		},
		Resources: resources(o.Template.Config.Limits, o.Swap),
		// What Docker hides. In a user namespace most of it could not be
		// used anyway.
		MaskedPaths: []string{
			"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
			"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi",
		},
		// With cgroup v1 the runtime leaves the tmpfs that holds the
		// hierarchies writable: a place outside of what was declared.
		ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger", "/sys/fs/cgroup"},
	}
	if o.Template.Config.HostRoot {
		// What root of the host may read of its memory and its users.
		l.MaskedPaths = append(l.MaskedPaths, "/proc/key-users", "/proc/kpagecgroup", "/proc/kpagecount", "/proc/kpageflags", "/proc/slabinfo", "/proc/vmallocinfo")
	} else {
		l.Namespaces = append(l.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		l.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: o.UIDBase, Size: idCount}}
		l.GIDMappings = l.UIDMappings
	}
	return l
}

// cpuPeriod is the kernel's default, in microseconds; minQuota its minimum.
const (
	cpuPeriod = 100_000
	minQuota  = 1_000
)

func resources(l kiln.Limits, swap bool) *specs.LinuxResources {
	r := &specs.LinuxResources{
		Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
		CPU:     &specs.LinuxCPU{},
	}
	if l.Memory > 0 {
		r.Memory = &specs.LinuxMemory{Limit: &l.Memory}
		if swap {
			r.Memory.Swap = &l.Memory
		}
	}
	if l.PIDs > 0 {
		r.Pids = &specs.LinuxPids{Limit: &l.PIDs}
	}
	shares := shares(l.Nice)
	r.CPU.Shares = &shares
	if l.CPU > 0 {
		period := uint64(cpuPeriod)
		quota := max(int64(l.CPU*cpuPeriod), minQuota)
		r.CPU.Period, r.CPU.Quota = &period, &quota
	}
	return r
}

// shares turns niceness into a weight as the scheduler does (nice 0 is 1024,
// each step a factor of 1.25), for the instance as a whole.
func shares(nice int) uint64 {
	return uint64(math.Round(1024 / math.Pow(1.25, float64(nice))))
}

// mounts is everything below the sealed root. Each costs the runtime time at
// every start.
func mounts(root *os.Root, o Options, who account) []specs.Mount {
	const restricted = "nosuid,noexec,nodev"
	m := []specs.Mount{
		mount("/proc", "proc", restricted),
		// The runtime makes it read-only once all is in it.
		mount("/dev", "tmpfs", fmt.Sprintf("nosuid,noexec,strictatime,ro,mode=755,size=%d", devSize)),
		mount("/dev/pts", "devpts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620"),
		mount("/dev/shm", "tmpfs", fmt.Sprintf("%s,mode=1777,size=%d", restricted, shmSize)),
		mount("/dev/mqueue", "mqueue", restricted),
		// Not sysfs: it belongs to the owner of the network namespace, which
		// is the host, and tells about the machine. Only the groups are there.
		mount("/sys", "tmpfs", restricted+",ro,mode=755,size=65536"),
		mount("/sys/fs/cgroup", "cgroup", restricted+",relatime,ro"),
	}
	if !o.Template.Config.NoInit {
		m = append(m, bind(o.Init, initTarget, ""))
	}
	writable := o.Template.Config.Writable
	for _, w := range []kiln.Writable{{Path: "/run", Size: runSize}, {Path: "/tmp", Size: tmpSize}} {
		if !has(writable, w.Path) {
			m = append(m, tmpfs(root, w, who))
		}
	}
	for _, w := range writable { // sorted: what contains comes before what it contains
		if w.Path == "/dev/shm" {
			m[3] = mount("/dev/shm", "tmpfs", fmt.Sprintf("%s,mode=1777,size=%d", restricted, w.Size))
			continue
		}
		m = append(m, tmpfs(root, w, who))
	}
	return m
}

func has(list []kiln.Writable, path string) bool {
	for _, w := range list {
		if w.Path == path {
			return true
		}
	}
	return false
}

// tmpfs has the owner and mode of the image's directory, so that a program
// finds it as its package made it; the instance's user gets it where that
// would leave the path unwritable for it. Some runtimes give a tmpfs the mode
// of the directory below it whatever is asked for, so the owner decides.
func tmpfs(root *os.Root, w kiln.Writable, who account) specs.Mount {
	uid, gid, mode := who.uid, who.gid, uint32(0o755)
	if info, err := root.Stat("." + w.Path); err == nil && info.IsDir() {
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			mode = st.Mode & 0o1777
			if who.uid == 0 && st.Uid < idCount && st.Gid < idCount || writes(st, who) {
				uid, gid = st.Uid, st.Gid
			}
		}
	}
	if mode |= 0o700; w.Path == "/tmp" {
		mode = 0o1777
	}
	return mount(w.Path, "tmpfs", fmt.Sprintf("nosuid,nodev,size=%d,mode=%o,uid=%d,gid=%d", w.Size, mode, uid, gid))
}

// writes says whether the account can write to a directory with that owner
// and mode.
func writes(st *syscall.Stat_t, who account) bool {
	switch {
	case st.Uid >= idCount || st.Gid >= idCount:
		return false
	case st.Uid == who.uid:
		return st.Mode&0o200 != 0
	case st.Gid == who.gid:
		return st.Mode&0o020 != 0
	}
	return st.Mode&0o002 != 0
}

func mount(target, kind, options string) specs.Mount {
	return specs.Mount{Destination: target, Type: kind, Source: kind, Options: strings.Split(options, ",")}
}

func bind(source, target, more string) specs.Mount {
	options := []string{"bind", "ro", "nosuid", "nodev"}
	if more != "" {
		options = append(options, more)
	}
	return specs.Mount{Destination: target, Type: "bind", Source: source, Options: options}
}
