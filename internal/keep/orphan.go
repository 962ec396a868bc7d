package keep

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// orphanLimit is how long an orphan may go on with what is in flight; it
	// ends by itself before.
	orphanLimit = 15 * time.Second
	orphanLook  = 100 // milliseconds between looks whether it ended
)

// orphans are gateways whose keeper died. They serve on until the gateway that
// follows has the same sockets, and are told to end then.
type orphans struct {
	mu   sync.Mutex
	all  []orphan
	told bool

	ending sync.WaitGroup
}

type orphan struct {
	started
	pidfd int
}

// adopt finds those that live.
func (o *orphans) adopt(known []started) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, one := range known {
		if pidfd, err := openProcess(one.PID, one.Ticks); err == nil {
			o.all = append(o.all, orphan{one, pidfd})
		}
	}
}

// list is for the journal.
func (o *orphans) list() []started {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := []started{}
	for _, one := range o.all {
		out = append(out, one.started)
	}
	return out
}

// sockets takes duplicates of the listening sockets that are wanted, as far as
// the orphans have them and this process may.
func (o *orphans) sockets(want map[string]endpoint) map[string]*os.File {
	o.mu.Lock()
	defer o.mu.Unlock()
	found := map[string]*os.File{}
	for _, one := range o.all {
		one.sockets(want, found)
	}
	return found
}

func (o orphan) sockets(want map[string]endpoint, found map[string]*os.File) {
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", o.PID))
	if err != nil {
		return
	}
	for _, link := range links {
		n, err := strconv.Atoi(filepath.Base(link))
		if err != nil {
			continue
		}
		fd, err := unix.PidfdGetfd(o.pidfd, n, 0)
		if err != nil {
			continue
		}
		name := nameOf(fd, want)
		if name == "" || found[name] != nil {
			_ = unix.Close(fd)
			continue
		}
		found[name] = os.NewFile(uintptr(fd), name)
	}
}

// nameOf is the name under which a socket is wanted, or empty.
func nameOf(fd int, want map[string]endpoint) string {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return "" // no socket
	}
	var address netip.AddrPort
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		address = netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		address = netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port))
	default:
		return ""
	}
	kind, kerr := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	listening, lerr := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	for name, e := range want {
		tcp := e.network == "tcp" && kind == unix.SOCK_STREAM && listening == 1
		udp := e.network == "udp" && kind == unix.SOCK_DGRAM
		if kerr == nil && lerr == nil && (tcp || udp) && e.is(address) {
			return name
		}
	}
	return ""
}

// is says whether a socket's own address is the endpoint's.
func (e endpoint) is(address netip.AddrPort) bool {
	if e.any && address.Addr().IsUnspecified() {
		return address.Port() == e.address.Port()
	}
	return address == e.address
}

// end tells the orphans to end, once, and calls done when they have. When ctx
// ends they are killed.
func (o *orphans) end(ctx context.Context, done func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.told || len(o.all) == 0 {
		return
	}
	o.told = true
	o.ending.Go(func() {
		for _, one := range o.take(unix.SIGTERM) {
			one.await(ctx)
		}
		o.mu.Lock()
		o.all = nil
		o.mu.Unlock()
		done()
	})
}

// kill ends them at once.
func (o *orphans) kill() {
	for _, one := range o.take(unix.SIGKILL) {
		one.gone()
		_ = unix.Close(one.pidfd)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.all = nil
}

// take sends all of them a signal.
func (o *orphans) take(signal unix.Signal) []orphan {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, one := range o.all {
		_ = unix.PidfdSendSignal(one.pidfd, signal, nil, 0)
	}
	return o.all
}

// await returns when an orphan has ended, which it must.
func (o orphan) await(ctx context.Context) {
	defer func() { _ = unix.Close(o.pidfd) }()
	limit := time.Now().Add(orphanLimit)
	for time.Now().Before(limit) && ctx.Err() == nil {
		if o.ended(orphanLook) {
			return
		}
	}
	_ = unix.PidfdSendSignal(o.pidfd, unix.SIGKILL, nil, 0)
	o.gone()
}

// gone waits for the end of one that was killed.
func (o orphan) gone() { awaitEnd(o.pidfd, 2*time.Second) }

func (o orphan) ended(milliseconds int) bool {
	n, _ := unix.Poll([]unix.PollFd{{Fd: int32(o.pidfd), Events: unix.POLLIN}}, milliseconds)
	return n > 0
}
