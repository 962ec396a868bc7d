package rig

import (
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"
)

// daemon is one run of the control plane. ended is closed once it was waited
// for.
type daemon struct {
	pid   int
	ended chan struct{}
}

// spawn starts the control plane and does not wait for an answer.
func (r *Rig) spawn(flags []string) error {
	log, err := os.OpenFile(filepath.Join(r.Data, "kilnd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	command := exec.Command(r.Bin("kilnd"), append([]string{"--data", r.Data}, flags...)...)
	command.Stdout, command.Stderr = log, log
	command.Env = append(os.Environ(), r.Env...)
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := command.Start(); err != nil {
		return err
	}
	d := &daemon{pid: command.Process.Pid, ended: make(chan struct{})}
	go func() {
		_ = command.Wait()
		close(d.ended)
	}()
	r.mu.Lock()
	r.daemon = d
	r.mu.Unlock()
	return nil
}

// current is the last run of the control plane.
func (r *Rig) current() *daemon {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.daemon
}

// KillDaemon ends the control plane with SIGKILL and leaves all else alone.
func (r *Rig) KillDaemon() {
	d := r.current()
	select {
	case <-d.ended: // its number may be another's by now
	default:
		_ = syscall.Kill(d.pid, syscall.SIGKILL)
		<-d.ended
	}
}

// DaemonPID is the control plane's process id.
func (r *Rig) DaemonPID() int { return r.current().pid }

// Ended is closed when the control plane that runs now has ended.
func (r *Rig) Ended() <-chan struct{} { return r.current().ended }

// restart is how long a supervisor waits before it starts again what ended:
// systemd's default.
const restart = 100 * time.Millisecond

// Supervise starts the control plane again whenever it ends, as systemd would,
// until stop is called, which leaves it as it is. starts counts them.
func (r *Rig) Supervise() (starts *atomic.Int64, stop func()) {
	starts = new(atomic.Int64)
	end, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-end:
				return
			case <-r.Ended():
			}
			select {
			case <-end:
				return
			case <-time.After(restart):
			}
			starts.Add(1)
			if err := r.spawn([]string{"--http", r.HTTP, "--https", r.TLS}); err != nil {
				r.t.Logf("start kilnd: %v", err)
			}
		}
	}()
	return starts, func() { close(end); <-done }
}
