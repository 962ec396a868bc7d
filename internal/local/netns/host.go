package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Shelf is the virtual addresses of one data directory. They are on the
// loopback link, under a label of their own: that works on kernels without
// dummy links too, and costs no link.
type Shelf struct{ label string }

// OpenShelf returns the shelf of that name, 12 characters at most.
func OpenShelf(name string) *Shelf { return &Shelf{label: "lo:" + name} }

// Set makes the shelf hold exactly these addresses.
func (s *Shelf) Set(want []netip.Addr) error {
	link, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find link lo: %w", err)
	}
	have, err := whole(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_V4) })
	if err != nil {
		return fmt.Errorf("list addresses of lo: %w", err)
	}
	missing := map[netip.Addr]bool{}
	for _, a := range want {
		missing[a] = true
	}
	for _, a := range have {
		if a.Label != s.label {
			continue
		}
		ip, _ := netip.AddrFromSlice(a.IP.To4())
		if missing[ip] {
			delete(missing, ip)
			continue
		}
		if err := netlink.AddrDel(link, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("take %s from %s: %w", ip, s.label, err)
		}
	}
	for a := range missing {
		if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: host32(a), Label: s.label}); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("give %s to %s: %w", a, s.label, err)
		}
	}
	return nil
}

// Remove takes all its addresses away.
func (s *Shelf) Remove() error { return s.Set(nil) }

// Sweep deletes the host ends that start with prefix and are not in keep, and
// returns how many there were.
func Sweep(prefix string, keep map[string]bool) (int, error) {
	links, err := whole(netlink.LinkList)
	if err != nil {
		return 0, fmt.Errorf("list links: %w", err)
	}
	n := 0
	var errs []error
	for _, l := range links {
		name := l.Attrs().Name
		if !strings.HasPrefix(name, prefix) || keep[name] {
			continue
		}
		n++
		errs = append(errs, remove(name))
	}
	return n, errors.Join(errs...)
}

func remove(name string) error {
	link, err := netlink.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete link %s: %w", name, err)
	}
	return nil
}

// Exists says whether a link of that name is there.
func Exists(name string) bool {
	_, err := netlink.LinkByName(name)
	return err == nil
}

// Fence makes the host answer for every address of the subnet that no instance
// has: a connection to one that just died must fail, not leave the machine by
// the default route, where a stranger might answer.
func Fence(subnet netip.Prefix) error {
	if err := netlink.RouteReplace(fence(subnet)); err != nil {
		return fmt.Errorf("fence %s: %w", subnet, err)
	}
	return nil
}

// Unfence takes the fence away, if there is one.
func Unfence(subnet netip.Prefix) error {
	if err := netlink.RouteDel(fence(subnet)); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("take the fence from %s: %w", subnet, err)
	}
	return nil
}

func fence(subnet netip.Prefix) *netlink.Route {
	return &netlink.Route{
		Type: unix.RTN_UNREACHABLE, Table: unix.RT_TABLE_MAIN,
		Dst: &net.IPNet{IP: subnet.Addr().AsSlice(), Mask: net.CIDRMask(subnet.Bits(), 32)},
	}
}

// Taken returns the IPv4 prefixes that the host's addresses and routes use,
// without default routes, without what links with the given prefix hold,
// without the shelf of the given name, and without the fence of the subnet.
func Taken(links, shelf string, fenced netip.Prefix) ([]netip.Prefix, error) {
	list, err := whole(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	ours := map[int]bool{}
	for _, l := range list {
		ours[l.Attrs().Index] = strings.HasPrefix(l.Attrs().Name, links)
	}
	held, err := whole(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	own := map[netip.Prefix]bool{}
	for _, a := range held {
		if p, ok := prefix(a.IP.To4(), a.Mask); ok && a.Label == "lo:"+shelf {
			own[p] = true
		}
	}
	var out []netip.Prefix
	routes, err := whole(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst == nil || ours[r.LinkIndex] {
			continue
		}
		p, ok := prefix(r.Dst.IP.To4(), r.Dst.Mask)
		if ok && p.Bits() > 0 && !own[p] && (r.Type != unix.RTN_UNREACHABLE || p != fenced) {
			out = append(out, p)
		}
	}
	return out, nil
}

func prefix(ip, mask []byte) (netip.Prefix, bool) {
	a, ok := netip.AddrFromSlice(ip)
	if !ok {
		return netip.Prefix{}, false
	}
	ones := 0
	for _, b := range mask {
		for ; b&0x80 != 0; b <<= 1 {
			ones++
		}
	}
	return netip.PrefixFrom(a, ones), true
}

// Forwarding says whether the host forwards IPv4, and switches it on.
func Forwarding() (on bool, enable func() error, err error) {
	const path = "/proc/sys/net/ipv4/ip_forward"
	b, err := os.ReadFile(path)
	if err != nil {
		return false, nil, err
	}
	enable = func() error { return os.WriteFile(path, []byte("1"), 0) }
	return strings.TrimSpace(string(b)) == "1", enable, nil
}

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
