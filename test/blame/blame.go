// Package blame tells which failed requests were in flight on a process that
// somebody killed, and which failed without such a cause.
package blame

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln/test/load"
)

// Margin is how long after the end of a process what was sent to it may still
// fail: the kernel closes its connections one by one. A client on a busy
// machine learns of it later; what it sends on a connection that was made
// before may fail until Stale has passed.
const (
	Margin = 100 * time.Millisecond
	Stale  = 2 * time.Second
)

// endLimit bounds the wait for a process that got SIGKILL.
const endLimit = 10 * time.Second

// Register remembers who was killed, and when. Its methods may be called at
// once.
type Register struct {
	mu  sync.Mutex
	all []end
}

// end is the time from just before a kill to the end of the process.
type end struct {
	what     string
	from, to time.Time
}

// Kill ends a process with SIGKILL if is, asked once the number cannot change
// hands any more, says that it is the one that is meant; it returns once the
// process has ended.
func (r *Register) Kill(what string, pid int, is func(pid int) bool) error {
	return r.During(what, pid, is, func(pidfd int) error { return unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0) })
}

// During is Kill by something else that ends the process.
func (r *Register) During(what string, pid int, is func(pid int) bool, kill func(pidfd int) error) error {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("%s, process %d: %w", what, pid, err)
	}
	defer func() { _ = unix.Close(pidfd) }()
	if !is(pid) {
		return fmt.Errorf("%s: process %d is another one by now", what, pid)
	}
	from := time.Now()
	if err := kill(pidfd); err != nil {
		return fmt.Errorf("%s, process %d: %w", what, pid, err)
	}
	if err = await(pidfd); err != nil {
		err = fmt.Errorf("%s, process %d: %w", what, pid, err)
	}
	r.Note(what, from, time.Now())
	return err
}

// await returns once a process has ended.
func await(pidfd int) error {
	for limit := time.Now().Add(endLimit); time.Now().Before(limit); {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 1000)
		if n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
	return errors.New("it has not ended")
}

// Note remembers a process that ended between two times.
func (r *Register) Note(what string, from, to time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, end{what, from, to})
}

// Of is whom a failed request was in flight on, as far as time can tell: a
// process that was killed while the request was under way. "" is nobody.
func (r *Register) Of(o load.Outcome) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.all {
		margin := Margin
		if !o.Dialed.IsZero() && !o.Dialed.After(e.to) {
			margin = Stale
		}
		if !o.At.After(e.to.Add(margin)) && !o.At.Add(o.Took).Before(e.from) {
			return e.what
		}
	}
	return ""
}

// Cause sorts a failure into few classes.
func Cause(failure string) string {
	switch {
	case strings.Contains(failure, "refused"):
		return "refused"
	case strings.Contains(failure, "imeout") || strings.Contains(failure, "deadline"):
		return "timeout"
	case strings.Contains(failure, "EOF"), strings.Contains(failure, "reset"), strings.Contains(failure, "broken pipe"):
		return "cut"
	case strings.HasPrefix(failure, "status "):
		return failure
	}
	return "other: " + failure
}
