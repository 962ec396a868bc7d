package keep

import (
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// reaper waits for every child of the process: those that it started itself,
// instances that were left to it by their runtime, and orphans that nobody
// knows. Nothing else in the process may wait for a child.
type reaper struct {
	// ended is called, on a goroutine of its own, when an instance ended.
	ended func(pid int, status unix.WaitStatus)

	mu        sync.Mutex
	children  map[int]chan unix.WaitStatus // started by spawn
	instances map[int]bool
	// orphans are the ends of unknown children while something is being
	// started: one of them may be the instance, dead before it was known.
	orphans  map[int]unix.WaitStatus
	starting int

	signals chan os.Signal
	work    sync.WaitGroup
	telling sync.WaitGroup // calls of ended; it grows under mu only
}

func newReaper(ended func(pid int, status unix.WaitStatus)) *reaper {
	r := &reaper{
		ended: ended, children: map[int]chan unix.WaitStatus{}, instances: map[int]bool{},
		orphans: map[int]unix.WaitStatus{}, signals: make(chan os.Signal, 1),
	}
	signal.Notify(r.signals, unix.SIGCHLD)
	r.work.Go(func() {
		for range r.signals {
			for r.reap() {
			}
		}
	})
	return r
}

// close stops waiting; children that live are left alone.
func (r *reaper) close() {
	signal.Stop(r.signals)
	close(r.signals)
	r.work.Wait()
	r.telling.Wait()
}

// reap takes one ended child, if there is one. The lock is held over the wait,
// so that no pid is given again between the wait and its entry here.
func (r *reaper) reap() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	var status unix.WaitStatus
	pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
	if err == unix.EINTR {
		return true
	}
	if err != nil || pid <= 0 {
		return false
	}
	switch {
	case r.children[pid] != nil:
		r.children[pid] <- status
		delete(r.children, pid)
	case r.instances[pid]:
		delete(r.instances, pid)
		r.tell(pid, status)
	case r.starting > 0:
		r.orphans[pid] = status
	}
	return true
}

func (r *reaper) tell(pid int, status unix.WaitStatus) {
	r.telling.Go(func() { r.ended(pid, status) })
}

// look has the children looked at as if one had ended.
func (r *reaper) look() {
	select {
	case r.signals <- unix.SIGCHLD:
	default: // it is to be done anyway
	}
}

// still runs f while no child is started or waited for, and the end of each
// that was waited for is told.
func (r *reaper) still(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.telling.Wait()
	f()
}

// spawn starts a child; its end is sent to the channel.
func (r *reaper) spawn(path string, args []string, attr *syscall.ProcAttr) (int, <-chan unix.WaitStatus, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := syscall.ForkExec(path, args, attr)
	if err != nil {
		return 0, nil, err
	}
	end := make(chan unix.WaitStatus, 1)
	r.children[pid] = end
	return pid, end, nil
}

// expect begins a time in which the ends of unknown children are remembered;
// done ends it.
func (r *reaper) expect() (done func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.starting++
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.starting--; r.starting == 0 {
			clear(r.orphans)
		}
	}
}

// claim makes a child an instance, within a time of expect. When it is dead
// already, ended is called at once. It says whether pid is or was a child.
func (r *reaper) claim(pid int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if isChild(pid) { // also when an orphan had the same pid before
		r.instances[pid] = true
		return true
	}
	status, ok := r.orphans[pid]
	if ok {
		delete(r.orphans, pid)
		r.tell(pid, status)
	}
	return ok
}
