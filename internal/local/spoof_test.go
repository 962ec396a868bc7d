package local_test

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
)

// within runs f with the rights of root in an instance's network.
func within(t *testing.T, i kiln.Instance, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread dies in that network
		space, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", i.PID))
		if err == nil {
			defer space.Close()
			if err = unix.Setns(int(space.Fd()), unix.CLONE_NEWNET); err == nil {
				err = f()
			}
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestNobodySpeaksForAnother: a packet with the address of a neighbour is
// dropped, also when it looks like part of a connection that the neighbour
// has. An instance has no rights to send one; should it get them, this is the
// last guard.
func TestNobodySpeaksForAnother(t *testing.T) {
	b := newBed(t)
	o := b.ready(web(2))
	honest, liar := o.Fleets[0].Instances[0], o.Fleets[0].Instances[1]
	table := b.gateway.wait(t, "the resolver", func(tr kiln.Traffic) bool { return len(tr.DNS) == 1 })
	resolver := netip.AddrPortFrom(table.DNS[0].Address, 53)
	server, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(resolver))
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	next := func() (string, netip.AddrPort) {
		t.Helper()
		buffer := make([]byte, 100)
		n, from, err := server.ReadFromUDPAddrPort(buffer)
		if err != nil {
			t.Fatal(err)
		}
		return string(buffer[:n]), from
	}
	var client *net.UDPConn
	within(t, honest, func() (err error) {
		client, err = net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(resolver))
		return err
	})
	defer client.Close()
	if _, err := client.Write([]byte("question")); err != nil {
		t.Fatal(err)
	}
	_, from := next()
	if _, err := server.WriteToUDPAddrPort([]byte("answer"), from); err != nil {
		t.Fatal(err)
	}
	if n, err := client.Read(make([]byte, 100)); err != nil || n != len("answer") {
		t.Fatal(n, err)
	}
	within(t, liar, func() error {
		for _, p := range []struct {
			from netip.AddrPort
			text string
		}{{from, "lie"}, {netip.AddrPortFrom(honest.Address, 999), "another lie"}, {netip.AddrPortFrom(liar.Address, 999), "the truth"}} {
			if err := sendAs(p.from, resolver, p.text); err != nil {
				return err
			}
		}
		return nil
	})
	if text, from := next(); text != "the truth" {
		t.Errorf("%q came from %s", text, from)
	}
}

// sendAs sends a UDP packet with any source.
func sendAs(from, to netip.AddrPort, text string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	source, target := from.Addr().As4(), to.Addr().As4()
	packet := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0} // the kernel fills in the sums
	packet = append(append(packet, source[:]...), target[:]...)
	for _, n := range []uint16{from.Port(), to.Port(), uint16(8 + len(text)), 0} {
		packet = binary.BigEndian.AppendUint16(packet, n)
	}
	return unix.Sendto(fd, append(packet, text...), 0, &unix.SockaddrInet4{Addr: target})
}
