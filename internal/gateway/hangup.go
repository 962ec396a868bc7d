package gateway

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// hangups tells when a peer closes its side of a connection on which nobody
// reads just now: an idle upstream, or a client that waits for its answer. A
// connection is registered once (edge-triggered, for the close alone), so that
// it costs nothing per request and no goroutine per connection.
type hangups struct {
	file *os.File // an epoll instance
	fd   int
	// closed tells an end from an error.
	closed atomic.Bool

	mu      sync.Mutex
	next    uint64
	watched map[uint64]func()
}

func newHangups() (*hangups, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make an epoll instance: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("make an epoll instance: %w", err)
	}
	return &hangups{file: os.NewFile(uintptr(fd), "hangups"), fd: fd, watched: map[uint64]func(){}}, nil
}

// add has f called, on one goroutine for all and at most once, when c's peer
// closes. It returns 0 when c is no socket.
func (h *hangups) add(c any, f func()) uint64 {
	s, ok := c.(syscall.Conn)
	if !ok {
		return 0
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return 0
	}
	h.mu.Lock()
	h.next++
	id := h.next
	h.watched[id] = f
	h.mu.Unlock()
	e := unix.EpollEvent{Events: unix.EPOLLRDHUP | unix.EPOLLET, Fd: int32(uint32(id)), Pad: int32(uint32(id >> 32))}
	var ctl error
	err = raw.Control(func(fd uintptr) { ctl = unix.EpollCtl(h.fd, unix.EPOLL_CTL_ADD, int(fd), &e) })
	if err != nil || ctl != nil {
		h.remove(id)
		return 0
	}
	return id
}

// remove forgets a registration; the kernel's ends when the socket is closed.
func (h *hangups) remove(id uint64) {
	h.mu.Lock()
	delete(h.watched, id)
	h.mu.Unlock()
}

// run calls back until close.
func (h *hangups) run() error {
	raw, err := h.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("watch for hang-ups: %w", err)
	}
	events := make([]unix.EpollEvent, 64)
	for {
		n := 0
		var wait error
		err := raw.Read(func(fd uintptr) bool {
			n, wait = unix.EpollWait(int(fd), events, 0)
			return n != 0
		})
		if h.closed.Load() {
			return nil
		}
		if err != nil {
			return fmt.Errorf("watch for hang-ups: %w", err)
		}
		if wait != nil && !errors.Is(wait, unix.EINTR) {
			return fmt.Errorf("watch for hang-ups: %w", wait)
		}
		for _, e := range events[:max(n, 0)] {
			h.call(uint64(uint32(e.Fd)) | uint64(uint32(e.Pad))<<32)
		}
	}
}

func (h *hangups) call(id uint64) {
	h.mu.Lock()
	f := h.watched[id]
	delete(h.watched, id)
	h.mu.Unlock()
	if f != nil {
		f()
	}
}

func (h *hangups) close() {
	h.closed.Store(true)
	_ = h.file.Close()
}
