package gateway

import (
	"errors"
	"io"
	"syscall"
)

// asker writes a request and waits for its answer in one wait for the socket.
// A read right after a write finds nothing nearly always, and costs a system
// call; the poller is armed before the write instead, so that no answer can be
// missed.
type asker struct {
	raw     syscall.RawConn
	step    func(fd uintptr) bool // stepped once and kept, not to allocate
	request []byte                // what is still to be written
	wrote   bool                  // some of it was
	waiting bool
	err     error
}

// ask writes b and reads the first bytes of the answer into u.in. The error is
// errUnsent when not a byte of b went.
func (u *upstream) ask(b []byte) error {
	a := &u.asker
	if a.raw == nil {
		raw, err := u.SyscallConn()
		if err != nil {
			return errors.Join(errUnsent, err)
		}
		a.raw, a.step = raw, u.answered
	}
	a.request, a.wrote, a.waiting, a.err = b, false, false, nil
	u.in.floor = 0
	u.in.skip(0)
	err := a.raw.Read(a.step)
	if err == nil {
		err = a.err
	}
	if err == nil && len(a.request) > 0 { // the socket's buffer was full
		err = u.askSlowly()
	}
	a.request = nil
	if err != nil && !a.wrote {
		return errors.Join(errUnsent, err)
	}
	return err
}

// askSlowly writes the rest of the request as far as the instance takes it.
func (u *upstream) askSlowly() error {
	n, err := u.Write(u.asker.request)
	u.asker.wrote = u.asker.wrote || n > 0
	if err != nil {
		return err
	}
	return u.receive(len(u.in.b))
}

// answered is called by the poller: first to write, then when the socket may
// be read. It returns true when there is nothing more to wait for.
func (u *upstream) answered(fd uintptr) bool {
	a := &u.asker
	if !a.waiting {
		n, err := writeSome(int(fd), a.request)
		a.wrote = n > 0
		a.request = a.request[n:]
		a.err = err
		a.waiting = err == nil && len(a.request) == 0
		return !a.waiting
	}
	n, err := ignoreInterrupt(syscall.Read, int(fd), u.in.b[u.in.w:])
	switch {
	case errors.Is(err, syscall.EAGAIN):
		return false
	case err != nil:
		a.err = err
	case n == 0:
		a.err = io.EOF
	default:
		u.in.w += n
	}
	return true
}

// writeSome writes what the socket takes now.
func writeSome(fd int, b []byte) (int, error) {
	n, err := ignoreInterrupt(syscall.Write, fd, b)
	if errors.Is(err, syscall.EAGAIN) {
		return 0, nil
	}
	return max(n, 0), err
}

func ignoreInterrupt(call func(int, []byte) (int, error), fd int, b []byte) (int, error) {
	for {
		n, err := call(fd, b)
		if !errors.Is(err, syscall.EINTR) {
			return n, err
		}
	}
}
