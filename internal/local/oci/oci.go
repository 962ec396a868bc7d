// Package oci says to an OCI runtime how an instance is to be run
// (runtime-spec 1.0.2, which runc and crun both accept), and finds a runtime
// that can. It starts nothing itself but the trial of a runtime.
package oci

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/moby/profiles/seccomp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
)

const (
	version    = "1.0.2"
	initTarget = "/dev/init"
	idCount    = 65536

	// Sizes of the writable paths that every instance has, in bytes. What is
	// in them counts as the instance's memory.
	tmpSize = 16 << 20
	runSize = 4 << 20
	shmSize = 8 << 20
	devSize = 64 << 10
)

// Options is what the instances of one template have in common.
type Options struct {
	Template kiln.Template
	Image    ocispec.ImageConfig
	Sealed   string // the sealed root, for reading what the image says
	Root     string // the same as the runtime gets it: translated for the namespace
	UIDBase  uint32 // first ID of the user namespace on the host; unused with HostRoot
	Init     string // the init's executable on the host
	Swap     bool   // the kernel can bound swap
}

// Template writes the configurations of one template's instances.
type Template struct {
	spec specs.Spec
	stop syscall.Signal
	init bool
}

// Instance is what one instance has for itself.
type Instance struct {
	ID      string
	Network string // path of the network namespace; empty for a new one
	Cgroup  string // path in the hierarchies
	Dir     string // holds hosts, resolv.conf and hostname; empty for none
}

// MountPoints lists the directories that the sealed root of a template must
// have for its writable paths, sorted.
func MountPoints(t kiln.Template) []string {
	out := []string{"/run", "/tmp"}
	for _, w := range t.Config.Writable {
		if !strings.HasPrefix(w.Path, "/dev/") && !slices.Contains(out, w.Path) {
			out = append(out, w.Path)
		}
	}
	slices.Sort(out)
	return out
}

// Prepare reads the image and composes what the template's instances share.
func Prepare(o Options) (*Template, error) {
	root, err := os.OpenRoot(o.Sealed)
	if err != nil {
		return nil, fmt.Errorf("open sealed root: %w", err)
	}
	defer func() { _ = root.Close() }()
	c := o.Template.Config
	user := c.User
	if user == "" {
		user = o.Image.User
	}
	who, err := resolve(root, user)
	if err != nil {
		return nil, err
	}
	if err := who.check(c.HostRoot); err != nil {
		return nil, err
	}
	process, err := process(o, who)
	if err != nil {
		return nil, err
	}
	if err := checkDir(root, process.Cwd, c.Writable); err != nil {
		return nil, err
	}
	stop, err := stopSignal(c.StopSignal, o.Image.StopSignal)
	if err != nil {
		return nil, err
	}
	t := &Template{stop: stop, init: !c.NoInit}
	t.spec = specs.Spec{
		Version: version, Process: process,
		Root:   &specs.Root{Path: o.Root, Readonly: true},
		Mounts: mounts(root, o, who),
		Linux:  linux(o),
	}
	t.spec.Linux.Seccomp, err = seccomp.GetDefaultProfile(&t.spec)
	if err != nil {
		return nil, fmt.Errorf("make the seccomp profile: %w", err)
	}
	return t, nil
}

// StopSignal is what asks an instance to end.
func (t *Template) StopSignal() syscall.Signal { return t.stop }

// Init says whether process 1 is the init, whose exit code 128 and up stands
// for a signal.
func (t *Template) Init() bool { return t.init }

// Config returns config.json for one instance.
func (t *Template) Config(i Instance) ([]byte, error) {
	spec, linux := t.spec, *t.spec.Linux
	spec.Hostname = i.ID
	linux.CgroupsPath = i.Cgroup
	linux.Namespaces = append(slices.Clone(linux.Namespaces), specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: i.Network})
	spec.Linux = &linux
	if i.Dir != "" {
		spec.Mounts = slices.Clone(spec.Mounts)
		for _, name := range []string{"hosts", "resolv.conf", "hostname"} {
			spec.Mounts = append(spec.Mounts, bind(path.Join(i.Dir, name), "/etc/"+name, "noexec"))
		}
	}
	b, err := json.Marshal(spec)
	if err != nil {
		return nil, fmt.Errorf("encode the configuration of %s: %w", i.ID, err)
	}
	return b, nil
}

func (a account) check(hostRoot bool) error {
	for _, id := range append([]uint32{a.uid, a.gid}, a.groups...) {
		if !hostRoot && id >= idCount {
			return kiln.Errorf(kiln.CodeInvalid, "use numbers below 65536, or host_root = true", "user or group %d does not exist in an instance's user namespace", id)
		}
	}
	return nil
}

// process is the first process: command, user, environment, limits.
func process(o Options, who account) (*specs.Process, error) {
	c := o.Template.Config
	args := command(c, o.Image)
	if len(args) == 0 {
		return nil, kiln.Errorf(kiln.CodeInvalid, `add command = ["..."] to the service`,
			"service %q has no command, and its image says none", o.Template.Service)
	}
	if !c.NoInit {
		args = append([]string{initTarget, "--"}, args...)
	}
	cwd := firstOf(c.WorkingDir, o.Image.WorkingDir, "/")
	umask := c.Limits.Umask
	score := oomScore()
	return &specs.Process{
		User: specs.User{UID: who.uid, GID: who.gid, AdditionalGids: who.groups, Umask: &umask},
		Args: args, Cwd: path.Clean("/" + cwd), Env: environment(o.Image.Env, c.Env, who.home),
		Capabilities: capabilities(c.Capabilities), NoNewPrivileges: true,
		Rlimits: rlimits(c.Limits), OOMScoreAdj: &score,
	}, nil
}

// command follows the OCI image's rules: an entrypoint of the template
// replaces the image's entrypoint and command.
func command(c kiln.Config, image ocispec.ImageConfig) []string {
	entrypoint, cmd := image.Entrypoint, image.Cmd
	if len(c.Entrypoint) > 0 {
		entrypoint, cmd = c.Entrypoint, nil
	}
	if len(c.Command) > 0 {
		cmd = c.Command
	}
	return append(slices.Clone(entrypoint), cmd...)
}

// environment is the image's variables, the template's over them, and what
// every program expects, sorted by name.
func environment(image []string, own map[string]string, home string) []string {
	all := map[string]string{
		"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME": home, "TZ": "UTC",
	}
	for _, e := range image {
		if name, value, ok := strings.Cut(e, "="); ok && name != "" {
			all[name] = value
		}
	}
	maps.Copy(all, own)
	out := make([]string, 0, len(all))
	for name, value := range all {
		out = append(out, name+"="+value)
	}
	slices.Sort(out)
	return out
}

func capabilities(granted []string) *specs.LinuxCapabilities {
	caps := make([]string, 0, len(granted))
	for _, name := range granted {
		caps = append(caps, "CAP_"+name)
	}
	return &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
}

// rlimits never asks for more than this process may have: a machine may lack
// the capability to raise a limit.
func rlimits(l kiln.Limits) []specs.POSIXRlimit {
	out := []specs.POSIXRlimit{
		rlimit("RLIMIT_NOFILE", unix.RLIMIT_NOFILE, l.Files),
		rlimit("RLIMIT_CORE", unix.RLIMIT_CORE, l.CoreSize),
	}
	if l.FileSize > 0 {
		out = append(out, rlimit("RLIMIT_FSIZE", unix.RLIMIT_FSIZE, l.FileSize))
	}
	return out
}

func rlimit(name string, resource int, want uint64) specs.POSIXRlimit {
	var have unix.Rlimit
	if err := unix.Getrlimit(resource, &have); err == nil {
		want = min(want, have.Max)
	}
	return specs.POSIXRlimit{Type: name, Soft: want, Hard: want}
}

// oomScore makes instances die before the processes that look after them, and
// is never below this process's own, which would need a capability.
func oomScore() int {
	const instances = 300
	own := 0
	if b, err := os.ReadFile("/proc/self/oom_score_adj"); err == nil {
		_, _ = fmt.Sscan(string(b), &own)
	}
	return max(instances, own)
}

func stopSignal(own, image string) (syscall.Signal, error) {
	name := firstOf(own, image, "SIGTERM")
	if n := unix.SignalNum(name); n != 0 {
		return n, nil
	}
	if n := unix.SignalNum("SIG" + name); n != 0 {
		return n, nil
	}
	var n int
	if _, err := fmt.Sscanf(name, "%d", &n); err == nil && n > 0 && n < 65 {
		return syscall.Signal(n), nil
	}
	return 0, kiln.Errorf(kiln.CodeInvalid, `use a name such as "SIGTERM"`, "%q is not a signal", name)
}

func firstOf(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// checkDir refuses a working directory that the runtime could not enter,
// which it would only say in words of its own.
func checkDir(root *os.Root, cwd string, writable []kiln.Writable) error {
	for _, w := range append(slices.Clone(writable), kiln.Writable{Path: "/tmp"}, kiln.Writable{Path: "/run"}) {
		if cwd == w.Path || strings.HasPrefix(cwd, w.Path+"/") {
			return nil // made there by the runtime
		}
	}
	info, err := root.Stat("." + cwd)
	if err == nil && info.IsDir() {
		return nil
	}
	return kiln.Errorf(kiln.CodeInvalid, "make it in the image (WORKDIR), or set working_dir to one that is there",
		"the image has no directory %s to work in", cwd)
}
