package keep

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
)

// backlog is how many connections wait while no gateway accepts.
const backlog = 4096

// endpoint is a listener's name in parts.
type endpoint struct {
	network string // "tcp" or "udp"
	address netip.AddrPort
	// any is true for an address without a host: all addresses of both
	// families.
	any bool
}

// parseEndpoint reads "tcp://address:port" or "udp://address:port". The
// address is an IP address, in brackets when it is IPv6, or empty.
func parseEndpoint(name string) (endpoint, error) {
	network, address, ok := strings.Cut(name, "://")
	if !ok || network != "tcp" && network != "udp" {
		return endpoint{}, badEndpoint(name)
	}
	e := endpoint{network: network}
	if strings.HasPrefix(address, ":") {
		e.any = true
		address = "[::]" + address
	}
	var err error
	e.address, err = netip.ParseAddrPort(address)
	if err != nil || e.address.Port() == 0 || e.address.Addr().Zone() != "" {
		return endpoint{}, badEndpoint(name)
	}
	return e, nil
}

func badEndpoint(name string) error {
	return kiln.Errorf(kiln.CodeInvalid, `write it like "tcp://0.0.0.0:8080" or "tcp://[::1]:8080"`, "%q is not an address to listen on", name)
}

// open makes the socket, bound and, for TCP, listening. Sockets of our own on
// the same port are not in its way: all addresses of a port can be listened on
// beside single ones, to which what is addressed to them goes.
func (e endpoint) open(own []*os.File) (*os.File, error) {
	f, err := e.bind(false)
	if e.any && (errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL)) { // without IPv6
		e.address = netip.AddrPortFrom(netip.IPv4Unspecified(), e.address.Port())
		f, err = e.bind(false)
	}
	if errors.Is(err, unix.EADDRINUSE) && e.network == "tcp" && len(own) > 0 {
		f, err = e.bindBeside(own)
	}
	if err != nil {
		return nil, e.explain(err)
	}
	return f, nil
}

// bindBeside shares the port with sockets of our own. From then on other
// programs of root's that share ports themselves may listen there, too; one
// that does not, such as another keeper, is refused as before.
func (e endpoint) bindBeside(own []*os.File) (*os.File, error) {
	for _, f := range own {
		if err := control(f, sharePort); err != nil {
			return nil, err
		}
	}
	return e.bind(true)
}

func sharePort(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) }

// control does something with a file's descriptor and leaves its mode alone.
func control(f *os.File, do func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var done error
	if err := raw.Control(func(fd uintptr) { done = do(int(fd)) }); err != nil {
		return err
	}
	return done
}

func (e endpoint) bind(beside bool) (*os.File, error) {
	family, kind := unix.AF_INET, unix.SOCK_STREAM
	if e.address.Addr().Is6() {
		family = unix.AF_INET6
	}
	if e.network == "udp" {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	err = e.prepare(fd)
	if err == nil && beside {
		err = sharePort(fd)
	}
	if err == nil {
		err = unix.Bind(fd, sockaddr(e.address))
	}
	if err == nil && e.network == "tcp" {
		err = unix.Listen(fd, backlog)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), e.network+"://"+e.address.String()), nil
}

// prepare sets the options of a socket before it is bound: it may be bound
// while old connections fade away, and to an address that is not there yet.
func (e endpoint) prepare(fd int) error {
	var errs []error
	set := func(level, option, value int) { errs = append(errs, unix.SetsockoptInt(fd, level, option, value)) }
	if e.network == "tcp" { // with UDP it would let another process share the port
		set(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	if !e.address.Addr().Is6() {
		set(unix.SOL_IP, unix.IP_FREEBIND, 1)
		return errors.Join(errs...)
	}
	set(unix.SOL_IPV6, unix.IPV6_FREEBIND, 1)
	only := 1
	if e.address.Addr().IsUnspecified() {
		only = 0
	}
	set(unix.SOL_IPV6, unix.IPV6_V6ONLY, only)
	return errors.Join(errs...)
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// explain says why an address cannot be listened on, and what to do.
func (e endpoint) explain(err error) error {
	name := fmt.Sprintf("%s://%s", e.network, e.address)
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		hint := fmt.Sprintf("see `ss -lnp 'sport = :%d'`; stop what holds it, or choose another port", e.address.Port())
		if who := holder(e.network, e.address.Port()); who != "" {
			return kiln.Errorf(kiln.CodeConflict, hint, "listen on %s: %s holds it: %w", name, who, err)
		}
		return kiln.Errorf(kiln.CodeConflict, hint, "listen on %s: %w", name, err)
	case errors.Is(err, unix.EACCES):
		hint := "ports below 1024 are for root; run Kiln as root, or choose another port"
		return kiln.Errorf(kiln.CodeRefused, hint, "listen on %s: %w", name, err)
	default:
		return kiln.Errorf(kiln.CodeFailed, "", "listen on %s: %w", name, err)
	}
}
