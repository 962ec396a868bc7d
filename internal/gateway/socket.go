package gateway

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// unsent is how many bytes a socket takes beyond what is on its way. Without
// it the kernel takes megabytes at once and nothing for minutes after, and a
// slow peer cannot be told from one that stands still. It does not bound what
// is on its way, and so not the rate.
const unsent = 128 << 10

// boundUnsent sets unsent on a TCP socket. Connections do not inherit it from
// their listener.
func boundUnsent(c syscall.RawConn) error {
	var err error
	cerr := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsent)
	})
	return errors.Join(cerr, err)
}

// boundClient sets it on a client's connection.
func boundClient(nc net.Conn) {
	if c, ok := nc.(syscall.Conn); ok {
		if raw, err := c.SyscallConn(); err == nil {
			_ = boundUnsent(raw) // the client is gone already
		}
	}
}

// unheard is how long what was sent to an instance may go without the
// acknowledgement of its kernel, which answers also for a program that stands
// still. After it the instance cannot be reached, and the connection ends.
const unheard = 3 * time.Second

// boundUnheard sets it on a TCP socket.
func boundUnheard(c syscall.RawConn) error {
	var err error
	cerr := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(unheard.Milliseconds()))
	})
	return errors.Join(cerr, err)
}

// connectTo opens a connection to an instance.
func connectTo(ctx context.Context, address netip.AddrPort) (*net.TCPConn, error) {
	d := net.Dialer{Timeout: connectTimeout, Control: func(_, _ string, c syscall.RawConn) error {
		return errors.Join(boundUnsent(c), boundUnheard(c))
	}}
	return d.DialTCP(ctx, "tcp", netip.AddrPort{}, address)
}

// isOurs says of an error that it is for want of something of this machine's,
// and tells nothing of the peer.
func isOurs(err error) bool {
	for _, e := range []error{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.EADDRNOTAVAIL} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
