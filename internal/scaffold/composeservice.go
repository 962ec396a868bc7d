package scaffold

import (
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
)

// ports declares what a service listens on: what it publishes and exposes,
// what its image is known for, and what other services call.
func (c *composition) ports(in types.ServiceConfig, s *service) {
	for _, p := range in.Ports {
		protocol := ""
		if p.Protocol == "udp" || p.Protocol == "sctp" {
			protocol = "/" + p.Protocol
		}
		s.expose(strconv.Itoa(int(p.Target)) + protocol)
	}
	for _, e := range in.Expose {
		s.expose(e)
	}
	if k, ok := knownImage(in.Image); ok {
		if len(s.ports) == 0 {
			s.addPort(k.port, k.protocol)
			s.notes = append(s.notes, fmt.Sprintf("Chosen: port %d, which this image is known for.", k.port))
		}
		s.capabilities = k.capabilities
		for _, path := range k.writable {
			s.write(path, 64)
		}
		if len(k.capabilities) > 0 {
			s.notes = append(s.notes, "Chosen: this image starts as root and steps down, for which it needs these capabilities.")
		}
	}
	for _, number := range c.called(in.Name) {
		if s.port(number) < 0 {
			s.addPort(number, guessProtocol(number))
			s.notes = append(s.notes, fmt.Sprintf("Chosen: port %d, because another service's environment names %s:%d.", number, in.Name, number))
		}
	}
}

// called returns the ports that other services' environments name for a host.
func (c *composition) called(host string) []int {
	pattern := regexp.MustCompile(`(?:^|[/@,=\s])` + regexp.QuoteMeta(host) + `:([0-9]{1,5})\b`)
	var out []int
	for _, name := range c.serviceNames() {
		for _, v := range c.project.Services[name].Environment {
			if v == nil {
				continue
			}
			for _, m := range pattern.FindAllStringSubmatch(*v, -1) {
				if n, err := strconv.Atoi(m[1]); err == nil && n > 0 && n < 65536 && !slices.Contains(out, n) {
					out = append(out, n)
				}
			}
		}
	}
	slices.Sort(out)
	return out
}

// process takes the command and what surrounds it.
func (c *composition) process(in types.ServiceConfig, s *service) {
	s.entrypoint, s.command = in.Entrypoint, in.Command
	if validUser(in.User) {
		s.user = in.User
	} else if in.User != "" {
		s.notes = append(s.notes, fmt.Sprintf("The user %q is not carried over: it is neither a number nor a plain name.", in.User))
	}
	if in.WorkingDir != "" && validWritable(in.WorkingDir) {
		s.workingDir = strings.TrimSuffix(in.WorkingDir, "/")
	}
	if in.StopSignal != "" {
		s.signal(in.StopSignal)
	}
	if in.StopGracePeriod != nil {
		s.grace = min(max(time.Duration(*in.StopGracePeriod), 0), time.Hour).String()
	}
	replicas := 1
	if in.Scale != nil {
		replicas = *in.Scale
	}
	if in.Deploy != nil && in.Deploy.Replicas != nil {
		replicas = *in.Deploy.Replicas
	}
	if s.count != 0 {
		s.count = min(max(replicas, 0), 1000)
	}
}

func (s *service) signal(name string) {
	name = strings.ToUpper(name)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	switch name {
	case "SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGABRT", "SIGALRM", "SIGPWR", "SIGKILL":
		s.stopSignal = name
	default:
		s.notes = append(s.notes, fmt.Sprintf("The stop signal %s is not carried over.", name))
	}
}

// environment takes the variables. One without a value came from the machine:
// it becomes a variable of the definition.
func (c *composition) environment(in types.ServiceConfig, s *service) {
	s.env = map[string]string{}
	for k, v := range in.Environment {
		if !regexp.MustCompile(`\A[A-Za-z_][A-Za-z0-9_.-]*\z`).MatchString(k) {
			continue
		}
		if v != nil {
			s.env[k] = quote(*v)
			continue
		}
		name := variableName(k)
		c.vars[name] = true
		s.env[k] = "var." + name
	}
	for _, f := range in.EnvFiles {
		s.notes = append(s.notes, fmt.Sprintf("The environment file %s was not read, because such files often hold secrets. Name here what the program needs, and give secrets as variables.", f.Path))
	}
	for _, k := range slices.Sorted(maps.Keys(s.env)) {
		for other, name := range c.services {
			if other != name && strings.Contains(s.env[k], other) {
				s.notes = append(s.notes, fmt.Sprintf("%s may name %s, which is called %s here.", k, other, name))
			}
		}
	}
	slices.Sort(s.notes[len(s.notes):])
}

// variableName makes an identifier of an environment variable's name.
func variableName(k string) string {
	name := regexp.MustCompile(`[^a-z0-9_]+`).ReplaceAllString(strings.ToLower(k), "_")
	return name[:min(len(name), 64)]
}

// storage turns volumes into writable paths and says what that means.
func (c *composition) storage(in types.ServiceConfig, s *service) {
	for _, v := range in.Volumes {
		switch {
		case v.Type == "tmpfs":
			s.tmpfs(v.Target)
		case v.Type == "bind" || v.ReadOnly:
			s.notes = append(s.notes, fmt.Sprintf("%s was mounted at %s. Instances see nothing of the machine: bake it into the image.", v.Source, v.Target))
		case v.Type == "volume":
			s.volume(v.Target, "The volume at")
		default:
			s.notes = append(s.notes, fmt.Sprintf("The %s mount at %s is not carried over.", v.Type, v.Target))
		}
	}
	for _, t := range in.Tmpfs {
		path, _, _ := strings.Cut(t, ":")
		s.tmpfs(path)
	}
	if in.ShmSize > 0 {
		s.write("/dev/shm", toMebibytes(int64(in.ShmSize)))
	}
}

func (s *service) tmpfs(path string) {
	if path = strings.TrimSuffix(path, "/"); validWritable(path) {
		s.write(path, 64)
	}
}

// limits takes the limits that there are.
func (c *composition) limits(in types.ServiceConfig, s *service) {
	memory, cpus, pids := int64(in.MemLimit), float64(in.CPUS), in.PidsLimit
	if in.Deploy != nil && in.Deploy.Resources.Limits != nil {
		l := in.Deploy.Resources.Limits
		if l.MemoryBytes > 0 {
			memory = int64(l.MemoryBytes)
		}
		if l.NanoCPUs > 0 {
			cpus = float64(l.NanoCPUs)
		}
		if l.Pids > 0 {
			pids = l.Pids
		}
	}
	switch {
	case memory > 0:
		s.limits = append(s.limits, setting{"memory", quote(mebibytes(max(toMebibytes(memory), 4)))})
	case len(s.writable) > 0:
		sum := int64(256)
		for _, size := range s.writable {
			sum = min(sum+size, 1<<20)
		}
		s.limits = append(s.limits, setting{"memory", quote(mebibytes(sum))})
		s.notes = append(s.notes, fmt.Sprintf("Chosen: %s of memory, because the Compose file sets no limit and what is written to writable paths counts as memory.", mebibytes(sum)))
	}
	if cpus > 0 && !math.IsInf(cpus, 0) && !math.IsNaN(cpus) {
		s.limits = append(s.limits, setting{"cpu", strconv.FormatFloat(min(max(cpus, 0.01), 1024), 'f', -1, 64)})
	}
	if pids > 0 {
		s.limits = append(s.limits, setting{"pids", strconv.FormatInt(min(max(pids, 4), 1_000_000), 10)})
	}
	if u := in.Ulimits["nofile"]; u != nil {
		n := max(u.Single, u.Hard)
		if n > 0 {
			s.limits = append(s.limits, setting{"files", strconv.Itoa(min(max(n, 64), 1<<20))})
		}
	}
}

// unsupported names what has no counterpart.
func (c *composition) unsupported(in types.ServiceConfig, s *service) {
	var names []string
	add := func(is bool, name string) {
		if is {
			names = append(names, name)
		}
	}
	for _, capability := range in.CapAdd {
		name := strings.TrimPrefix(strings.ToUpper(capability), "CAP_")
		switch name {
		case "CHOWN", "SETUID", "SETGID", "SETPCAP", "NET_BIND_SERVICE":
			if !slices.Contains(s.capabilities, name) {
				s.capabilities = append(s.capabilities, name)
			}
		default:
			names = append(names, "cap_add "+name)
		}
	}
	slices.Sort(s.capabilities)
	add(in.Privileged, "privileged")
	add(len(in.Devices) > 0 || len(in.DeviceCgroupRules) > 0, "devices")
	add(in.NetworkMode != "", "network_mode")
	add(in.Pid != "", "pid")
	add(in.Ipc != "", "ipc")
	add(len(in.ExtraHosts) > 0, "extra_hosts")
	add(len(in.Sysctls) > 0, "sysctls")
	add(len(in.Secrets) > 0, "secrets")
	add(len(in.Configs) > 0, "configs")
	add(len(in.GroupAdd) > 0, "group_add")
	add(len(in.PostStart) > 0 || len(in.PreStop) > 0 || len(in.PreStart) > 0, "lifecycle hooks")
	add(len(in.DNS) > 0, "dns")
	add(in.Provider != nil, "provider")
	add(in.Extends != nil, "extends")
	add(len(in.Gpus) > 0, "gpus")
	if len(names) > 0 {
		s.notes = append(s.notes, "Not carried over: "+strings.Join(names, ", ")+".")
	}
}

// composeCheck returns the health check of a service.
func composeCheck(h *types.HealthCheckConfig) *check {
	if h == nil || h.Disable || len(h.Test) < 2 || h.Test[0] == "NONE" {
		return nil
	}
	out := &check{command: h.Test[1:]}
	if h.Interval != nil {
		out.interval = time.Duration(*h.Interval)
	}
	if h.Timeout != nil {
		out.timeout = time.Duration(*h.Timeout)
	}
	if h.StartPeriod != nil {
		out.start = time.Duration(*h.StartPeriod)
	}
	if h.Retries != nil {
		out.failures = int(min(*h.Retries, 100))
	}
	return out
}
