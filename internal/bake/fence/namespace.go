package fence

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	resources "github.com/moby/buildkit/executor/resources/types"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// namespace is the network of one RUN.
type namespace struct {
	handle *os.File // of the namespace; it lives as long as this or a process in it
	relay  *relay
	close  func() error
}

// Set puts a container into the namespace. The runtime opens it through this
// process's descriptor, so that nothing needs a name in the file system.
func (n *namespace) Set(s *specs.Spec) error {
	if s.Linux == nil {
		s.Linux = &specs.Linux{}
	}
	path := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.handle.Fd())
	for i := range s.Linux.Namespaces {
		if s.Linux.Namespaces[i].Type == specs.NetworkNamespace {
			s.Linux.Namespaces[i].Path = path
			return nil
		}
	}
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: path})
	return nil
}

// Sample is not kept.
func (*namespace) Sample() (*resources.NetworkSample, error) { return nil, nil }

// Close ends the resolver and lets the namespace go. The kernel removes the
// link with it, in its own time and many at once.
func (n *namespace) Close() error { return n.close() }

// open makes namespace n and its link.
func (p *Provider) open(n uint32) (_ *namespace, err error) {
	ns := &namespace{}
	defer func() {
		if err != nil {
			err = errors.Join(err, ns.release())
		}
	}()
	if err := onThread(func() error { return ns.enter() }); err != nil {
		return nil, err
	}
	host := offset(p.block.Addr(), 2*n)
	name := fmt.Sprintf("%s%04x", linkPrefix(p.opts.Tag), n)
	if err := p.link(name, ns.handle, host, host.Next()); err != nil {
		return nil, err
	}
	ns.relay.start()
	ns.close = sync.OnceValue(func() error {
		defer p.give(n)
		return ns.release()
	})
	return ns, nil
}

// enter makes the namespace on the calling thread, which must not be used for
// anything else afterwards, and opens the resolver's sockets in it.
func (n *namespace) enter() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("make a network namespace: %w", err)
	}
	fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("hold a network namespace: %w", err)
	}
	n.handle = os.NewFile(uintptr(fd), "netns")
	h, err := netlink.NewHandle()
	if err != nil {
		return err
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := h.LinkSetUp(lo); err != nil {
		return err
	}
	if err := h.AddrAdd(lo, &netlink.Addr{IPNet: ipNet(Nameserver(), 32)}); err != nil {
		return err
	}
	n.relay, err = listenRelay()
	return err
}

// link makes the pair of links, one end in the namespace, and the default
// route over it.
func (p *Provider) link(name string, handle *os.File, host, guest netip.Addr) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, p.mtu
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerMTU: uint32(p.mtu), PeerNamespace: netlink.NsFd(int(handle.Fd()))}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("add link %s: %w", name, err)
	}
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if err := harden(name); err != nil {
		return err
	}
	if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: ipNet(host, 31)}); err != nil {
		return fmt.Errorf("address link %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("raise link %s: %w", name, err)
	}
	h, err := netlink.NewHandleAt(netns.NsHandle(int(handle.Fd())))
	if err != nil {
		return err
	}
	defer h.Close()
	inner, err := h.LinkByName("eth0")
	if err != nil {
		return err
	}
	if err := h.AddrAdd(inner, &netlink.Addr{IPNet: ipNet(guest, 31)}); err != nil {
		return err
	}
	if err := h.LinkSetUp(inner); err != nil {
		return err
	}
	return h.RouteAdd(&netlink.Route{LinkIndex: inner.Attrs().Index, Gw: host.AsSlice()})
}

// harden makes the host's end drop forged sources and ignore IPv6.
func harden(name string) error {
	for file, value := range map[string]string{
		"/proc/sys/net/ipv4/conf/" + name + "/rp_filter":        "1",
		"/proc/sys/net/ipv4/conf/" + name + "/accept_redirects": "0",
		"/proc/sys/net/ipv4/conf/" + name + "/route_localnet":   "0",
		"/proc/sys/net/ipv6/conf/" + name + "/disable_ipv6":     "1",
	} {
		err := os.WriteFile(file, []byte(value), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // a kernel without IPv6
			return fmt.Errorf("set %s: %w", filepath.Base(file), err)
		}
	}
	return nil
}

func (n *namespace) release() error {
	var err error
	if n.relay != nil {
		err = n.relay.stop()
	}
	if n.handle != nil {
		err = errors.Join(err, n.handle.Close())
	}
	return err
}

// onThread runs f on a thread of its own, which ends with it.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is in another namespace
		done <- f()
	}()
	return <-done
}

func ipNet(a netip.Addr, bits int) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, a.BitLen())}
}
