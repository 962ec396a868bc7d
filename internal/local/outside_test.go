package local_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// outside makes a machine beyond the host: a network namespace with a link to
// the host and a listener in it, and returns the listener's address, which is
// a private one.
func outside(t *testing.T) netip.AddrPort {
	t.Helper()
	const forward = "/proc/sys/net/ipv4/ip_forward" // the engine switches it on for egress
	before, err := os.ReadFile(forward)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.WriteFile(forward, before, 0) })
	type result struct {
		l   net.Listener
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread dies in its namespace
		l, err := listenOutside()
		done <- result{l, err}
	}()
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	go func() {
		for {
			conn, err := r.l.Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() {
		_ = r.l.Close()
		if l, err := netlink.LinkByName(beyond); err == nil {
			_ = netlink.LinkDel(l)
		}
	})
	link, err := netlink.LinkByName(beyond)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipnet(beyondAddress(1) + "/30")}); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
	return netip.MustParseAddrPort(beyondAddress(2) + ":8443")
}

// beyond is the host's end of the link; several processes may have theirs.
var beyond = fmt.Sprintf("kto%d", os.Getpid())

// beyondAddress is an address of that link's /30: 1 the host's, 2 the other's.
func beyondAddress(n int) string { return fmt.Sprintf("10.254.%d.%d", os.Getpid()%250, n) }

func listenOutside() (net.Listener, error) {
	host, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	defer host.Close()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "eth0"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: beyond, PeerNamespace: netlink.NsFd(int(host.Fd()))}); err != nil {
		return nil, err
	}
	own, err := netlink.LinkByName("eth0")
	if err != nil {
		return nil, err
	}
	if err := netlink.AddrAdd(own, &netlink.Addr{IPNet: ipnet(beyondAddress(2) + "/30")}); err != nil {
		return nil, err
	}
	if err := netlink.LinkSetUp(own); err != nil {
		return nil, err
	}
	return net.Listen("tcp", beyondAddress(2)+":8443")
}

func ipnet(s string) *net.IPNet {
	ip, n, err := net.ParseCIDR(s)
	if err != nil {
		panic(err)
	}
	n.IP = ip
	return n
}
