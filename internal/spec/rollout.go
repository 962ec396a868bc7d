package spec

import (
	"time"

	"github.com/kilnproject/kiln"
)

// rollout reads a service's rollout block.
func rollout(d *decoder, ports []kiln.Port) kiln.Strategy {
	out := kiln.Strategy{Kind: "blue-green", Park: 30 * time.Minute}
	inner := d.single("rollout")
	if inner == nil {
		return out
	}
	out.Park = inner.Duration("park", out.Park, 0, 168*time.Hour)
	seen := map[string]bool{}
	for _, b := range inner.Blocks("verify", 1) {
		if seen[b.Labels[0]] {
			d.report.Error(b.DefRange(), "Duplicate check", "There is a verify block %q already.", b.Labels[0])
		}
		seen[b.Labels[0]] = true
		out.Verify = append(out.Verify, verify(d.decode(b.Body, d.each), b.Labels[0], ports))
	}
	return out
}

func verify(d *decoder, name string, ports []kiln.Port) kiln.Verify {
	out := kiln.Verify{
		Name:    name,
		HTTP:    d.Checked("http", "Invalid path", badRequestPath),
		Status:  int(d.Number("status", 0, 100, 599)),
		Command: d.strings("command"),
		Image:   d.block("image", "image"),
		Timeout: d.Duration("timeout", time.Minute, time.Second, time.Hour),
	}
	_, out.Body, _ = d.Text("body")
	switch {
	case d.Has("http") == d.Has("command"):
		d.report.Error(d.At("http"), "Which kind of check?", "A verify block has exactly one of http and command.")
		return out
	case d.Has("command"):
		if a, ok := d.Value("command"); ok && a.CanIterateElements() && a.LengthInt() == 0 {
			d.report.Error(d.At("command"), "Unsuitable value", "The command is empty.")
		}
		d.refuse("command", "port", "status", "body")
		return out
	}
	d.refuse("http", "image")
	port, ok := d.port("port", ports, kiln.ProtocolTCP)
	out.Port = port.Name
	if ok && port.Protocol == kiln.ProtocolTCP {
		d.report.Error(d.At("port"), "Wrong protocol", "Port %q speaks tcp, so it cannot answer an http check.", port.Name)
	}
	return out
}

// refuse reports arguments that make no sense beside another.
func (d *decoder) refuse(beside string, names ...string) {
	for _, name := range names {
		if d.Has(name) {
			d.report.Error(d.At(name), "Conflicting arguments", "%s has no meaning beside %s.", name, beside)
		}
	}
}
