package spec

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"

	"github.com/kilnproject/kiln"
)

// services reads all service blocks, sorted by name.
func (l *loader) services() []kiln.Service {
	var out []kiln.Service
	instances := l.all("service")
	names := map[string]bool{}
	for _, i := range instances {
		names[i.name] = true
	}
	for _, i := range instances {
		out = append(out, l.service(i, names))
	}
	slices.SortFunc(out, func(a, b kiln.Service) int { return compare(a.Name, b.Name) })
	return out
}

func (l *loader) service(i *instance, services map[string]bool) kiln.Service {
	d := l.scope.decode(i.block.Body, i)
	s := kiln.Service{Name: i.name, Image: d.block("image", "image"), Count: int(d.number("count", 1, 0, 1000))}
	ports, portsOK := l.scope.ports(i)
	s.Ports = ports
	s.Config = kiln.Config{
		Entrypoint: d.strings("entrypoint"),
		Command:    d.strings("command"),
		Env:        env(d),
		User:       d.checked("user", "Invalid user", badUser),
		WorkingDir: d.checked("working_dir", "Invalid path", badAbsolute),
		Limits:     limits(d),
		Egress:     egress(d, services),
		HostRoot:   d.bool("host_root", false),
		NoInit:     !d.bool("init", true),
		StopSignal: d.checked("stop_signal", "Invalid signal", badSignal),
		Drain:      d.duration("drain", 30*time.Second, 0, 24*time.Hour),
		Grace:      d.duration("grace", 10*time.Second, 0, time.Hour),
	}
	s.Config.StartTimeout = d.duration("start_timeout", time.Minute, time.Second, time.Hour)
	s.Config.Capabilities = capabilities(d)
	s.Config.Writable = writable(d, s.Config.Limits.Memory)
	if portsOK { // else what is said of them would be said twice
		s.Config.Ready = ready(d, s.Ports)
		s.Rollout = rollout(d, s.Ports)
	}
	return s
}

// ports reads a service's port blocks, in their order. It keeps no result:
// repeated reports of the same problem are one.
func (s *scope) ports(i *instance) ([]kiln.Port, bool) {
	var out []kiln.Port
	before := s.report.errors
	d := s.decode(i.block.Body, i)
	for _, b := range d.blocks("port", 1) {
		inner := d.decode(b.Body, i)
		p := kiln.Port{Name: b.Labels[0], Number: uint16(inner.number("number", 0, 1, 65535)), Protocol: kiln.ProtocolHTTP}
		if v := inner.checked("protocol", "Unknown protocol", badProtocol); v != "" {
			p.Protocol = kiln.Protocol(v)
		}
		for _, other := range out {
			if other.Name == p.Name {
				s.report.error(b.DefRange(), "Duplicate port", "There is a port %q already.", p.Name)
			}
			if other.Number == p.Number && p.Number != 0 {
				s.report.error(inner.at("number"), "Duplicate port", "Port %q has the number %d already.", other.Name, p.Number)
			}
		}
		out = append(out, p)
	}
	return out, s.report.errors == before
}

func badProtocol(s string) string {
	switch kiln.Protocol(s) {
	case kiln.ProtocolHTTP, kiln.ProtocolH2C, kiln.ProtocolTCP:
		return ""
	}
	return "is not a protocol of a port." + suggest(s, []string{"http", "h2c", "tcp"})
}

func env(d *decoder) map[string]string {
	var out map[string]string
	for _, i := range d.table("env", "a map of strings") {
		switch {
		case !matches(`[A-Za-z_][A-Za-z0-9_.-]*`, i.key):
			d.report.error(i.at, "Invalid name", "%q is not the name of an environment variable.", i.key)
		case hasNUL(i.value):
			d.report.error(i.at, "Unsuitable value", "The value of %s holds a NUL byte.", i.key)
		case len(i.key)+len(i.value) > 128*1024-2:
			d.report.error(i.at, "Unsuitable value", "The value of %s is longer than Linux allows (128 KiB).", i.key)
		default:
			if out == nil {
				out = map[string]string{}
			}
			out[i.key] = i.value
		}
	}
	return out
}

func badUser(s string) string {
	part := `([a-z_][a-z0-9_-]{0,31}|[0-9]{1,9})`
	if !matches(part+`(:`+part+`)?`, s) {
		return "is not a user. Write \"1000\", \"1000:1000\" or names of the image."
	}
	return ""
}

func badAbsolute(s string) string {
	if !path.IsAbs(s) || path.Clean(s) != s || hasNUL(s) || len(s) > 4000 {
		return "is not an absolute path without \"..\", doubled or final slashes."
	}
	return ""
}

func badSignal(s string) string {
	known := []string{
		"SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGABRT", "SIGALRM", "SIGPWR", "SIGKILL",
	}
	if slices.Contains(known, s) || matches(`SIGRTMIN(\+([1-9]|1[0-5]))?`, s) {
		return ""
	}
	if full := "SIG" + strings.ToUpper(s); slices.Contains(known, full) {
		return fmt.Sprintf("is not a signal that ends a process. Did you mean %q?", full)
	}
	return "is not a signal that ends a process." + suggest(s, known)
}

func capabilities(d *decoder) []string {
	known := []string{"CHOWN", "NET_BIND_SERVICE", "SETGID", "SETPCAP", "SETUID"}
	var out []string
	for _, i := range d.list("capabilities") {
		name := strings.TrimPrefix(i.value, "CAP_")
		if !slices.Contains(known, name) {
			d.report.error(i.at, "Capability refused", "%s cannot be granted.%s", i.show(i.value), suggest(name, known))
			continue
		}
		out = append(out, name)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func limits(d *decoder) kiln.Limits {
	out := kiln.Limits{Memory: 256 * mib, PIDs: 256, Files: 65536, LogBytes: 10 * mib, Umask: 0o022}
	inner := d.single("limits")
	if inner == nil {
		return out
	}
	out.Memory = inner.size("memory", out.Memory, 4*mib, tib)
	out.CPU = inner.float("cpu", 0, 0.01, 1024)
	out.PIDs = inner.number("pids", out.PIDs, 4, 1_000_000)
	out.Files = uint64(inner.number("files", int64(out.Files), 64, 1<<20))
	out.CoreSize = uint64(inner.size("core_size", 0, 0, tib))
	out.FileSize = uint64(inner.size("file_size", 0, 4*kib, tib))
	out.LogBytes = inner.size("log", out.LogBytes, 64*kib, 10*gib)
	out.Nice = int(inner.number("nice", 0, 0, 19))
	umask := inner.checked("umask", "Invalid umask", func(s string) string {
		if !matches(`0?[0-7]{3}`, s) {
			return "is not a umask. Write four octal digits: \"0022\"."
		}
		return ""
	})
	if n, err := strconv.ParseUint(umask, 8, 32); err == nil {
		out.Umask = uint32(n)
	}
	return out
}

func writable(d *decoder, memory int64) []kiln.Writable {
	var out []kiln.Writable
	var total int64
	for _, i := range d.table("writable", "a map of sizes by path") {
		size, ok := parseSize(i.value)
		if problem := badWritable(i.key); problem != "" {
			d.report.error(i.at, "Invalid writable path", "%q %s", i.key, problem)
			continue
		}
		if !ok || size < 4*kib || size > tib {
			d.report.error(i.at, "Invalid size", "%s is not a size from 4KiB to 1TiB. Write \"64MiB\".", i.show(i.value))
			continue
		}
		for _, other := range out {
			if strings.HasPrefix(i.key, other.Path+"/") {
				d.report.error(i.at, "Invalid writable path", "%q is inside of %q, which is writable already.", i.key, other.Path)
			}
		}
		total += size
		out = append(out, kiln.Writable{Path: i.key, Size: size})
	}
	if total > memory {
		d.report.warn(d.at("writable"), "More writable than memory", "The writable paths may hold %s and the memory limit is %s; what is written counts as memory, so the instance is killed before they are full.", formatSize(total), formatSize(memory))
	}
	return out
}

func badWritable(p string) string {
	if problem := badAbsolute(p); problem != "" {
		return problem
	}
	if p == "/" {
		return "is the root: name the paths below it that need writing."
	}
	for _, kernel := range []string{"/proc", "/sys", "/dev"} {
		if p == kernel || strings.HasPrefix(p, kernel+"/") && p != "/dev/shm" {
			return "is the kernel's."
		}
	}
	return ""
}

func ready(d *decoder, ports []kiln.Port) kiln.Probe {
	out := kiln.Probe{Interval: 2 * time.Second, Timeout: 2 * time.Second, Failures: 3}
	inner := d.single("ready")
	if inner == nil {
		return out
	}
	out.HTTP = inner.checked("http", "Invalid path", badRequestPath)
	out.TCP = inner.bool("tcp", false)
	out.Interval = inner.duration("interval", out.Interval, 100*time.Millisecond, time.Hour)
	out.Timeout = inner.duration("timeout", out.Timeout, 10*time.Millisecond, 5*time.Minute)
	out.Failures = int(inner.number("failures", int64(out.Failures), 1, 100))
	if inner.has("http") && out.TCP {
		d.report.error(inner.at("tcp"), "Conflicting arguments", "A probe has either http or tcp.")
	}
	if !inner.has("http") && !out.TCP && !inner.has("port") {
		return out
	}
	port, ok := inner.port("port", ports, "")
	out.Port = port.Name
	if ok && inner.has("http") && port.Protocol == kiln.ProtocolTCP {
		d.report.error(inner.at("http"), "Wrong protocol", "Port %q speaks tcp, so an http probe cannot ask it. Write tcp = true.", port.Name)
	}
	return out
}

// port reads the name of one of the service's ports: when the argument is
// absent the first whose protocol is not the excluded one.
func (d *decoder) port(argument string, ports []kiln.Port, not kiln.Protocol) (kiln.Port, bool) {
	if !d.has(argument) {
		for _, p := range ports {
			if p.Protocol != not {
				return p, true
			}
		}
		d.report.error(d.at(argument), "No port", "The service has no port that could be asked.")
		return kiln.Port{}, false
	}
	a, name, ok := d.text(argument)
	if !ok {
		return kiln.Port{}, false
	}
	return d.namedPort(a.at, name, ports)
}

func (d *decoder) namedPort(at hcl.Range, name string, ports []kiln.Port) (kiln.Port, bool) {
	var names []string
	for _, p := range ports {
		if p.Name == name {
			return p, true
		}
		names = append(names, p.Name)
	}
	d.report.error(at, "Unknown port", "The service has no port %q.%s", name, suggest(name, names))
	return kiln.Port{}, false
}

// badRequestPath accepts the path, and query, of a request.
func badRequestPath(s string) string {
	ok := strings.HasPrefix(s, "/") && len(s) <= 2000
	for _, r := range s {
		if r <= ' ' || r >= 0x7f || r == '#' {
			ok = false
		}
	}
	if !ok {
		return "is not the path of a request. It begins with / and holds neither spaces nor fragments; other characters are percent-encoded."
	}
	return ""
}
