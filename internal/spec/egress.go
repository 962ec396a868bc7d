package spec

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/kilnproject/kiln"
)

// egress reads the destinations that instances may reach, sorted and without
// repeats.
func egress(d *decoder, services map[string]bool) []kiln.Egress {
	var out []kiln.Egress
	for _, i := range d.List("egress") {
		e, problem := parseEgress(i.Text)
		if problem == "" && services[e.Host] {
			problem = "is a service of this definition. Services of an environment reach each other without egress."
		}
		if problem != "" {
			d.report.Error(i.At, "Invalid egress", "%s %s", i.Whole.Show(i.Text), problem)
			continue
		}
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b kiln.Egress) int {
		return cmp.Or(compare(a.Host, b.Host), compare(a.Prefix.String(), b.Prefix.String()), cmp.Compare(a.Port, b.Port), compare(a.Protocol, b.Protocol))
	})
	return slices.Compact(out)
}

const egressForm = "is not a destination. Write \"api.example.com:443\", \"192.0.2.0/24:5432\" or \"[2001:db8::/32]:443\", with /udp at the end for UDP."

// parseEgress returns a destination, or what is wrong with it.
func parseEgress(s string) (kiln.Egress, string) {
	e := kiln.Egress{Protocol: "tcp"}
	rest := s
	for _, protocol := range []string{"tcp", "udp"} {
		if cut, ok := strings.CutSuffix(s, "/"+protocol); ok {
			e.Protocol, rest = protocol, cut
		}
	}
	colon := strings.LastIndexByte(rest, ':')
	if colon <= 0 {
		return e, egressForm
	}
	port, err := strconv.ParseUint(rest[colon+1:], 10, 16)
	if err != nil || port == 0 || rest[colon+1] == '+' || rest[colon+1] == '0' {
		return e, egressForm
	}
	e.Port = uint16(port)
	host := rest[:colon]
	if inner, ok := strings.CutPrefix(host, "["); ok {
		if host, ok = strings.CutSuffix(inner, "]"); !ok || !strings.Contains(host, ":") {
			return e, egressForm
		}
	} else if strings.Contains(host, ":") {
		return e, "has an IPv6 address without brackets. Write \"[2001:db8::1]:443\"."
	}
	if prefix, ok := parsePrefix(host); ok {
		e.Prefix = prefix.Masked()
		return e, badPrefix(prefix)
	}
	e.Host = strings.ToLower(host)
	return e, badEgressHost(e.Host)
}

func parsePrefix(s string) (netip.Prefix, bool) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), true
	}
	p, err := netip.ParsePrefix(s)
	return p, err == nil
}

// forbidden are the destinations that no instance may reach, whatever it
// declares.
func forbidden() map[string]string {
	return map[string]string{
		"0.0.0.0/8": "this host", "127.0.0.0/8": "loopback", "169.254.0.0/16": "link-local, where clouds serve machines' credentials",
		"224.0.0.0/4": "multicast", "240.0.0.0/4": "reserved",
		"::/127": "loopback", "fe80::/10": "link-local", "ff00::/8": "multicast", "::ffff:0:0/96": "IPv4 in disguise; write it as IPv4",
		"fd00:ec2::/32": "where clouds serve machines' credentials",
	}
}

func badPrefix(p netip.Prefix) string {
	if p != p.Masked() {
		return fmt.Sprintf("has bits beyond its prefix. Write %s, or /%d for one address.", p.Masked(), p.Addr().BitLen())
	}
	for text, what := range forbidden() {
		f := netip.MustParsePrefix(text)
		if f.Addr().Is4() == p.Addr().Is4() && f.Bits() <= p.Bits() && f.Contains(p.Addr()) {
			return "is refused: it is " + what + "."
		}
	}
	return ""
}

func badEgressHost(host string) string {
	switch {
	case strings.HasPrefix(host, "*"):
		return "has a wildcard. Name each host: an address that is only known by a pattern cannot be allowed."
	case host == "localhost" || strings.HasSuffix(host, ".localhost") || host == "ip6-localhost":
		return "is refused: it is loopback."
	case host == "metadata.google.internal" || host == "instance-data" || host == "metadata":
		return "is refused: it is where clouds serve machines' credentials."
	}
	if problem := badHost(host); problem != "" {
		return egressForm
	}
	return ""
}

// badHost accepts DNS names: letters, digits and dashes, and underscores where
// no host name but a service has them.
func badHost(s string) string {
	if len(s) > 253 || !matches(`([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?`, s) {
		return "is not a DNS name: labels of letters, digits and dashes with dots between; international names in their xn-- form."
	}
	if last := s[strings.LastIndexByte(s, '.')+1:]; matches(`[0-9]+|0x[0-9a-f]*`, last) {
		return "is an address or looks like one, not a DNS name."
	}
	return ""
}
