package netns

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Bindable tries whether a listener could be opened on an address, over TCP
// and UDP, also when the host does not have the address. The error wraps
// unix.EADDRINUSE when another process has a socket there: addresses that no
// route and no link shows may be in use all the same.
func Bindable(a netip.AddrPort) error {
	for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
		if err := bind(a, kind); err != nil {
			return fmt.Errorf("try to listen on %s: %w", a, err)
		}
	}
	return nil
}

func bind(a netip.AddrPort, kind int) error {
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if kind == unix.SOCK_STREAM { // connections that fade away are in nobody's way
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return err
		}
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_FREEBIND, 1); err != nil {
		return err
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}); err != nil {
		return err
	}
	if kind == unix.SOCK_STREAM { // with SO_REUSEADDR a bind alone is no proof
		return unix.Listen(fd, 1)
	}
	return nil
}
