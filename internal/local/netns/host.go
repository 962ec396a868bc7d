package netns

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Shelf is the link without a wire that holds the virtual addresses of one
// data directory.
type Shelf struct{ name string }

// OpenShelf makes the link or finds it.
func OpenShelf(name string) (*Shelf, error) {
	link, err := netlink.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		if err := netlink.LinkAdd(&netlink.Dummy{LinkAttrs: attrs}); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("add link %s: %w", name, err)
		}
		link, err = netlink.LinkByName(name)
	}
	if err != nil {
		return nil, fmt.Errorf("find link %s: %w", name, err)
	}
	if err := netlink.LinkSetIP6AddrGenMode(link, 1); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
		return nil, fmt.Errorf("switch off IPv6 on %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("raise link %s: %w", name, err)
	}
	return &Shelf{name: name}, nil
}

// Set makes the link hold exactly these addresses.
func (s *Shelf) Set(want []netip.Addr) error {
	link, err := netlink.LinkByName(s.name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", s.name, err)
	}
	have, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", s.name, err)
	}
	missing := map[netip.Addr]bool{}
	for _, a := range want {
		missing[a] = true
	}
	for _, a := range have {
		ip, _ := netip.AddrFromSlice(a.IP.To4())
		if missing[ip] {
			delete(missing, ip)
			continue
		}
		if err := netlink.AddrDel(link, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("take %s from %s: %w", ip, s.name, err)
		}
	}
	for a := range missing {
		if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: host32(a)}); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("give %s to %s: %w", a, s.name, err)
		}
	}
	return nil
}

// Remove deletes the link with its addresses.
func (s *Shelf) Remove() error { return remove(s.name) }

// Sweep deletes the host ends that start with prefix and are not in keep, and
// returns how many there were.
func Sweep(prefix string, keep map[string]bool) (int, error) {
	links, err := netlink.LinkList()
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

// Taken returns the IPv4 prefixes that the host's addresses and routes use,
// without default routes and without what links with the given prefix hold.
func Taken(own string) ([]netip.Prefix, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	ours := map[int]bool{}
	for _, l := range links {
		ours[l.Attrs().Index] = strings.HasPrefix(l.Attrs().Name, own)
	}
	var out []netip.Prefix
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst == nil || ours[r.LinkIndex] {
			continue
		}
		if p, ok := prefix(r.Dst.IP.To4(), r.Dst.Mask); ok && p.Bits() > 0 {
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
