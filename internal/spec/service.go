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
	"github.com/kilnproject/kiln/internal/hclfile"
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
	s := kiln.Service{Name: i.name, Image: d.block("image", "image"), Count: int(d.Number("count", 1, 0, 1000))}
	ports, portsOK := l.scope.ports(i)
	s.Ports = ports
	s.Config = kiln.Config{
		Entrypoint: d.strings("entrypoint"),
		Command:    d.strings("command"),
		Env:        env(d),
		User:       d.Checked("user", "Invalid user", badUser),
		WorkingDir: d.Checked("working_dir", "Invalid path", badAbsolute),
		Limits:     limits(d),
		Egress:     egress(d, services),
		HostRoot:   d.Bool("host_root", false),
		NoInit:     !d.Bool("init", true),
		StopSignal: d.Checked("stop_signal", "Invalid signal", badSignal),
		Drain:      d.Duration("drain", 30*time.Second, 0, 24*time.Hour),
		Grace:      d.Duration("grace", 10*time.Second, 0, time.Hour),
	}
	s.Config.StartTimeout = d.Duration("start_timeout", time.Minute, time.Second, time.Hour)
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
	before := s.report.Errors()
	d := s.decode(i.block.Body, i)
	for _, b := range d.Blocks("port", 1) {
		inner := d.decode(b.Body, i)
		p := kiln.Port{Name: b.Labels[0], Number: uint16(inner.Number("number", 0, 1, 65535)), Protocol: kiln.ProtocolHTTP}
		if v := inner.Checked("protocol", "Unknown protocol", badProtocol); v != "" {
			p.Protocol = kiln.Protocol(v)
		}
		for _, other := range out {
			if other.Name == p.Name {
				s.report.Error(b.DefRange(), "Duplicate port", "There is a port %q already.", p.Name)
			}
			if other.Number == p.Number && p.Number != 0 {
				s.report.Error(inner.At("number"), "Duplicate port", "Port %q has the number %d already.", other.Name, p.Number)
			}
		}
		out = append(out, p)
	}
	return out, s.report.Errors() == before
}

func badProtocol(s string) string {
	switch kiln.Protocol(s) {
	case kiln.ProtocolHTTP, kiln.ProtocolH2C, kiln.ProtocolTCP:
		return ""
	}
	return "is not a protocol of a port." + hclfile.Suggest(s, []string{"http", "h2c", "tcp"})
}

func env(d *decoder) map[string]string {
	var out map[string]string
	for _, i := range d.Table("env", "a map of strings") {
		switch {
		case !matches(`[A-Za-z_][A-Za-z0-9_.-]*`, i.Key):
			d.report.Error(i.At, "Invalid name", "%q is not the name of an environment variable.", i.Key)
		case hasNUL(i.Text):
			d.report.Error(i.At, "Unsuitable value", "The value of %s holds a NUL byte.", i.Key)
		case len(i.Key)+len(i.Text) > 128*1024-2:
			d.report.Error(i.At, "Unsuitable value", "The value of %s is longer than Linux allows (128 KiB).", i.Key)
		default:
			if out == nil {
				out = map[string]string{}
			}
			out[i.Key] = i.Text
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
	return "is not a signal that ends a process." + hclfile.Suggest(s, known)
}

func capabilities(d *decoder) []string {
	known := []string{"CHOWN", "NET_BIND_SERVICE", "SETGID", "SETPCAP", "SETUID"}
	var out []string
	for _, i := range d.List("capabilities") {
		name := strings.TrimPrefix(i.Text, "CAP_")
		if !slices.Contains(known, name) {
			d.report.Error(i.At, "Capability refused", "%s cannot be granted.%s", i.Whole.Show(i.Text), hclfile.Suggest(name, known))
			continue
		}
		out = append(out, name)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func limits(d *decoder) kiln.Limits {
	out := kiln.Limits{Memory: 256 * hclfile.MiB, PIDs: 256, Files: 65536, LogBytes: 10 * hclfile.MiB, Umask: 0o022}
	inner := d.single("limits")
	if inner == nil {
		return out
	}
	out.Memory = inner.Size("memory", out.Memory, 4*hclfile.MiB, hclfile.TiB)
	out.CPU = inner.Float("cpu", 0, 0.01, 1024)
	out.PIDs = inner.Number("pids", out.PIDs, 4, 1_000_000)
	out.Files = uint64(inner.Number("files", int64(out.Files), 64, 1<<20))
	out.CoreSize = uint64(inner.Size("core_size", 0, 0, hclfile.TiB))
	out.FileSize = uint64(inner.Size("file_size", 0, 4*hclfile.KiB, hclfile.TiB))
	out.LogBytes = inner.Size("log", out.LogBytes, 64*hclfile.KiB, 10*hclfile.GiB)
	out.Nice = int(inner.Number("nice", 0, 0, 19))
	umask := inner.Checked("umask", "Invalid umask", func(s string) string {
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
	for _, i := range d.Table("writable", "a map of sizes by path") {
		size, ok := hclfile.ParseSize(i.Text)
		if problem := badWritable(i.Key); problem != "" {
			d.report.Error(i.At, "Invalid writable path", "%q %s", i.Key, problem)
			continue
		}
		if !ok || size < 4*hclfile.KiB || size > hclfile.TiB {
			d.report.Error(i.At, "Invalid size", "%s is not a size from 4KiB to 1TiB. Write \"64MiB\".", i.Whole.Show(i.Text))
			continue
		}
		for _, other := range out {
			if strings.HasPrefix(i.Key, other.Path+"/") {
				d.report.Error(i.At, "Invalid writable path", "%q is inside of %q, which is writable already.", i.Key, other.Path)
			}
		}
		total += size
		out = append(out, kiln.Writable{Path: i.Key, Size: size})
	}
	if total > memory {
		d.report.Warn(d.At("writable"), "More writable than memory", "The writable paths may hold %s and the memory limit is %s; what is written counts as memory, so the instance is killed before they are full.", hclfile.FormatSize(total), hclfile.FormatSize(memory))
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
	out.HTTP = inner.Checked("http", "Invalid path", badRequestPath)
	out.TCP = inner.Bool("tcp", false)
	out.Interval = inner.Duration("interval", out.Interval, 100*time.Millisecond, time.Hour)
	out.Timeout = inner.Duration("timeout", out.Timeout, 10*time.Millisecond, 5*time.Minute)
	out.Failures = int(inner.Number("failures", int64(out.Failures), 1, 100))
	if inner.Has("http") && out.TCP {
		d.report.Error(inner.At("tcp"), "Conflicting arguments", "A probe has either http or tcp.")
	}
	if !inner.Has("http") && !out.TCP && !inner.Has("port") {
		return out
	}
	port, ok := inner.port("port", ports, "")
	out.Port = port.Name
	if ok && inner.Has("http") && port.Protocol == kiln.ProtocolTCP {
		d.report.Error(inner.At("http"), "Wrong protocol", "Port %q speaks tcp, so an http probe cannot ask it. Write tcp = true.", port.Name)
	}
	return out
}

// port reads the name of one of the service's ports: when the argument is
// absent the first whose protocol is not the excluded one.
func (d *decoder) port(argument string, ports []kiln.Port, not kiln.Protocol) (kiln.Port, bool) {
	if !d.Has(argument) {
		for _, p := range ports {
			if p.Protocol != not {
				return p, true
			}
		}
		d.report.Error(d.At(argument), "No port", "The service has no port that could be asked.")
		return kiln.Port{}, false
	}
	a, name, ok := d.Text(argument)
	if !ok {
		return kiln.Port{}, false
	}
	return d.namedPort(a.At, name, ports)
}

func (d *decoder) namedPort(at hcl.Range, name string, ports []kiln.Port) (kiln.Port, bool) {
	var names []string
	for _, p := range ports {
		if p.Name == name {
			return p, true
		}
		names = append(names, p.Name)
	}
	d.report.Error(at, "Unknown port", "The service has no port %q.%s", name, hclfile.Suggest(name, names))
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
