package fence

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/kilnproject/kiln"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Private returns the ranges that a RUN may not reach unless they are allowed:
// all that is not the public Internet (IANA's special-purpose registries),
// without the ranges for documentation, which nobody routes.
func Private() []netip.Prefix {
	var out []netip.Prefix
	for _, s := range []string{
		"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
		"192.0.0.0/24", "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4",
		"::/127", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2002::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8",
	} {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// Links get their addresses from 198.18.0.0/15, the range for benchmarks of
// network devices (RFC 2544), which no network in use routes.
const (
	rangeBits = 15
	blockBits = 20 // 2,048 links
)

// freeBlock returns a block that no route of this machine overlaps, starting
// the search at a place that the tag decides.
func freeBlock(tag string) (netip.Prefix, error) {
	seed, err := strconv.ParseUint(tag, 16, 32)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("tag %q: %w", tag, err)
	}
	taken, err := routed()
	if err != nil {
		return netip.Prefix{}, err
	}
	start := netip.AddrFrom4([4]byte{198, 18, 0, 0})
	const count = 1 << (blockBits - rangeBits)
	for i := range uint32(count) {
		at := (uint32(seed) + i) % count
		b := netip.PrefixFrom(offset(start, at<<(32-blockBits)), blockBits)
		free := true
		for _, t := range taken {
			free = free && !t.Overlaps(b)
		}
		if free {
			return b, nil
		}
	}
	return netip.Prefix{}, kiln.Errorf(kiln.CodeNoRoom, "Remove a route below 198.18.0.0/15.", "no addresses are left for the network of a RUN")
}

// routed lists what this machine has routes to, other than by default.
func routed() ([]netip.Prefix, error) {
	routes, err := whole(routesV4)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var out []netip.Prefix
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		addr, ok := netip.AddrFromSlice(r.Dst.IP.To4())
		if ones, _ := r.Dst.Mask.Size(); ok && ones > 0 {
			out = append(out, netip.PrefixFrom(addr, ones))
		}
	}
	return out, nil
}

func routesV4() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_V4) }

// whole asks the kernel for a list again when it changed while it was read.
func whole[T any](list func() ([]T, error)) ([]T, error) {
	for range 50 {
		all, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
	return nil, netlink.ErrDumpInterrupted
}

func offset(a netip.Addr, n uint32) netip.Addr {
	b := a.As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+n)
	return netip.AddrFrom4(b)
}

// uplinkMTU is the MTU of the link that the default route uses; 1500 when
// there is none.
func uplinkMTU() int {
	routes, err := whole(routesV4)
	if err != nil {
		return 1500
	}
	for _, r := range routes {
		if ones := -1; r.Dst != nil {
			if ones, _ = r.Dst.Mask.Size(); ones != 0 {
				continue
			}
		}
		if l, err := netlink.LinkByIndex(r.LinkIndex); err == nil && l.Attrs().MTU >= 576 {
			return min(l.Attrs().MTU, 1500)
		}
	}
	return 1500
}

// enableForwarding lets this machine forward IPv4. It is one switch for the
// whole machine; the rules keep it from being more than a RUN needs.
func enableForwarding(log *slog.Logger) error {
	const file = "/proc/sys/net/ipv4/ip_forward"
	b, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read whether this machine forwards IPv4: %w", err)
	}
	if strings.TrimSpace(string(b)) == "1" {
		return nil
	}
	log.Info("enabled IPv4 forwarding for the network of RUN", "from", "0", "to", "1")
	if err := os.WriteFile(file, []byte("1\n"), 0); err != nil {
		return fmt.Errorf("let this machine forward IPv4: %w", err)
	}
	return nil
}

// denied says whether an address is out of reach for what a Dockerfile names.
func denied(a netip.Addr, allow []netip.Prefix) bool {
	a = a.Unmap()
	for _, p := range allow {
		if p.Contains(a) {
			return false
		}
	}
	for _, p := range Private() {
		if p.Contains(a) {
			return true
		}
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		return true
	}
	for _, o := range own {
		if n, ok := o.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok && ip.Unmap() == a {
				return true
			}
		}
	}
	return false
}

func isNoDevice(err error) bool { return errors.Is(err, unix.ENODEV) }
