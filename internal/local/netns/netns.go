// Package netns makes the network of one instance: a namespace with one
// routed link to the host. The link is a pair of ends with the same hardware
// address and without ARP, so no neighbour is ever resolved and none can be
// spoofed; the instance has one /32 address, a default route into the link,
// and no IPv6. Filtering is not here.
//
// A link made ahead has no address yet; Connect gives it one. Nothing deletes
// links one by one: a namespace whose last process and descriptor are gone
// takes its link with it, and the kernel collects many at once.
package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// inside is the name of an instance's end of its link.
const inside = "eth0"

// Link is a namespace and its link, not yet given to an instance or just
// given. It is used once.
type Link struct {
	Name  string   // of the host's end
	space *os.File // the namespace
	conn  *netlink.Handle
	index int // of the host's end
	peer  int // of the instance's end, in the namespace
}

// Path names the namespace for a runtime, as long as the link is not closed
// and this process lives.
func (l *Link) Path() string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), l.space.Fd())
}

// Close gives up this process's hold on the namespace: where no process of an
// instance is in it, it goes away with its link.
func (l *Link) Close() error {
	if l.conn != nil {
		l.conn.Close()
		l.conn = nil
	}
	return l.space.Close()
}

// Prepare makes a namespace with a link whose host end is called name (15
// characters at most). The namespace lets unprivileged processes bind every
// port and has no IPv6.
func Prepare(name string) (*Link, error) {
	type result struct {
		link *Link
		err  error
	}
	done := make(chan result, 1)
	go func() {
		// The thread enters the new namespace and is not unlocked when it
		// cannot go back, so that the runtime of Go throws it away.
		runtime.LockOSThread()
		link, home, err := prepare(name)
		if home {
			runtime.UnlockOSThread()
		}
		done <- result{link, err}
	}()
	r := <-done
	if r.err != nil {
		return nil, fmt.Errorf("prepare link %s: %w", name, r.err)
	}
	return r.link, nil
}

// prepare runs on a locked thread; home says that the thread is back in the
// host's namespace.
func prepare(name string) (l *Link, home bool, err error) {
	host, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, true, err
	}
	defer func() { _ = host.Close() }()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, true, fmt.Errorf("unshare: %w", err)
	}
	l, err = build(name, host)
	if back := unix.Setns(int(host.Fd()), unix.CLONE_NEWNET); back != nil {
		if l != nil {
			_ = l.Close()
		}
		return nil, false, errors.Join(err, fmt.Errorf("return to the host's namespace: %w", back))
	}
	if err != nil {
		return nil, true, err
	}
	if err := l.raiseHost(); err != nil {
		_ = l.Close()
		return nil, true, err
	}
	return l, true, nil
}

// build makes the link from inside the new namespace.
func build(name string, host *os.File) (*Link, error) {
	if err := writeSysctls(); err != nil {
		return nil, err
	}
	space, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	l := &Link{Name: name, space: space}
	l.conn, err = netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		_ = space.Close()
		return nil, err
	}
	if err := l.addPair(host); err != nil {
		_ = l.Close()
		return nil, err
	}
	return l, nil
}

func (l *Link) addPair(host *os.File) error {
	// One locally administered address serves all: each pair is alone on its
	// wire, and both ends having it is what lets NOARP work.
	wire := net.HardwareAddr{0x02, 'k', 'i', 'l', 'n', 0x01}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = inside
	attrs.HardwareAddr = wire
	attrs.TxQLen = 1000
	pair := &netlink.Veth{
		LinkAttrs: attrs, PeerName: l.Name, PeerHardwareAddr: wire,
		PeerNamespace: netlink.NsFd(int(host.Fd())), // a descriptor
	}
	if err := l.conn.LinkAdd(pair); err != nil {
		return fmt.Errorf("add link: %w", err)
	}
	own, err := l.conn.LinkByName(inside)
	if err != nil {
		return err
	}
	l.peer = own.Attrs().Index
	if err := l.conn.LinkSetARPOff(own); err != nil {
		return fmt.Errorf("switch off ARP: %w", err)
	}
	if err := l.conn.LinkSetUp(own); err != nil {
		return err
	}
	lo, err := l.conn.LinkByName("lo")
	if err != nil {
		return err
	}
	return l.conn.LinkSetUp(lo)
}

// raiseHost brings the host's end up, in the host's namespace.
func (l *Link) raiseHost() error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	end, err := h.LinkByName(l.Name)
	if err != nil {
		return err
	}
	l.index = end.Attrs().Index
	if err := h.LinkSetARPOff(end); err != nil {
		return fmt.Errorf("switch off ARP: %w", err)
	}
	// No fe80:: on the host's end: an instance has nobody to talk IPv6 with.
	// Kernels without IPv6 have nothing to switch off.
	if err := h.LinkSetIP6AddrGenMode(end, 1); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("switch off IPv6: %w", err)
	}
	// What an instance sends beyond the host must reach the filter to be
	// refused in words, also where the host forwards nothing else.
	if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+l.Name+"/forwarding", []byte("1"), 0); err != nil {
		return err
	}
	return h.LinkSetUp(end)
}

// Connect gives the link its address and routes. source is the address that
// the host's own connections to the instance come from.
func (l *Link) Connect(address, source netip.Addr) error {
	addr := &netlink.Addr{IPNet: host32(address)}
	if err := l.conn.AddrAdd(linkAt(l.peer), addr); err != nil {
		return fmt.Errorf("give link %s its address %s: %w", l.Name, address, err)
	}
	def := &netlink.Route{LinkIndex: l.peer, Scope: netlink.SCOPE_LINK, Dst: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, Src: address.AsSlice()}
	if err := l.conn.RouteAdd(def); err != nil {
		return fmt.Errorf("route out of %s: %w", l.Name, err)
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	to := &netlink.Route{LinkIndex: l.index, Scope: netlink.SCOPE_LINK, Dst: host32(address), Src: source.AsSlice()}
	if err := h.RouteReplace(to); err != nil {
		return fmt.Errorf("route to %s by %s: %w", address, l.Name, err)
	}
	l.conn.Close()
	l.conn = nil
	return nil
}

// writeSysctls sets what must hold in a namespace before a process is in it.
func writeSysctls() error {
	set := map[string]string{
		"net/ipv4/ip_unprivileged_port_start": "0",
		"net/ipv6/conf/all/disable_ipv6":      "1",
		"net/ipv6/conf/default/disable_ipv6":  "1",
	}
	for name, value := range set {
		err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0)
		if errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(name, "net/ipv6/") {
			continue // no IPv6 in this kernel
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func host32(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(32, 32)}
}

func linkAt(index int) netlink.Link {
	attrs := netlink.NewLinkAttrs()
	attrs.Index = index
	return &netlink.Device{LinkAttrs: attrs}
}
