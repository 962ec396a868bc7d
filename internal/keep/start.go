package keep

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/logs"
)

// startLimit bounds one run of the OCI runtime.
const startLimit = 60 * time.Second

var validID = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,99}$`)

// start runs an instance's command and returns once the instance runs. The
// same process again is the same start; another one of a known ID is a
// conflict.
func (k *keeper) start(ctx context.Context, want kiln.Process) (kiln.ProcessStatus, error) {
	if err := checkProcess(want); err != nil {
		return kiln.ProcessStatus{}, err
	}
	p, mine := k.enter(want)
	if !mine {
		return k.same(ctx, p, want)
	}
	err := k.launch(p)
	k.mu.Lock()
	defer k.mu.Unlock()
	p.err = err
	close(p.started)
	return p.status(), err
}

func checkProcess(p kiln.Process) error {
	switch {
	case !validID.MatchString(p.ID):
		return kiln.Errorf(kiln.CodeInvalid, "", "%q is not an instance's ID", p.ID)
	case len(p.Command) == 0 || p.Command[0] == "":
		return kiln.Errorf(kiln.CodeInvalid, "", "start %s: no command", p.ID)
	case !filepath.IsAbs(p.PIDFile) || !filepath.IsAbs(p.LogDir) || !filepath.IsAbs(p.Dir):
		return kiln.Errorf(kiln.CodeInvalid, "", "start %s: its paths are not absolute", p.ID)
	}
	return nil
}

// enter makes the entry of a process, unless there is one.
func (k *keeper) enter(want kiln.Process) (p *process, mine bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if p := k.processes[want.ID]; p != nil {
		return p, false
	}
	p = &process{Process: want, started: make(chan struct{})}
	k.processes[want.ID] = p
	return p, true
}

// same waits for a start that another caller began.
func (k *keeper) same(ctx context.Context, p *process, want kiln.Process) (kiln.ProcessStatus, error) {
	if kiln.DigestJSON(p.Process) != kiln.DigestJSON(want) {
		return kiln.ProcessStatus{}, kiln.Errorf(kiln.CodeConflict, "", "start %s: another process of that ID is known", want.ID)
	}
	select {
	case <-p.started:
	case <-ctx.Done():
		return kiln.ProcessStatus{}, ctx.Err()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return p.status(), p.err
}

// launch does what a start is: pipes, the runtime, the instance's pid.
func (k *keeper) launch(p *process) error {
	k.journal.append(record{Starting: &p.Process})
	if err := os.Remove(p.PIDFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		return k.unlaunch(p, fmt.Errorf("remove an old pid file: %w", err))
	}
	writers, err := k.plumb(p)
	if err != nil {
		return k.unlaunch(p, err)
	}
	expected := k.reaper.expect()
	defer expected()
	err = k.runRuntime(p, writers)
	for _, f := range writers {
		_ = f.Close()
	}
	if err != nil {
		return k.unlaunch(p, err)
	}
	pid, err := readPID(p.PIDFile)
	if err != nil {
		return k.unlaunch(p, fmt.Errorf("read the pid that the runtime wrote: %w", err))
	}
	_ = k.pump.captured(p.output)
	return k.register(p, pid)
}

// register makes a living, or just dead, process known by its pid.
func (k *keeper) register(p *process, pid int) error {
	stat, _ := readStat(pid) // one that is dead already has none
	now := time.Now().UTC()
	k.mu.Lock()
	p.pid, p.ticks, p.startedAt = pid, stat.ticks, now
	k.mu.Unlock()
	k.journal.append(record{Started: &started{ID: p.ID, PID: pid, Ticks: stat.ticks, At: now}})
	switch {
	case k.reaper.claim(pid):
	case errors.Is(unix.Kill(pid, 0), unix.ESRCH): // the runtime saw its end, and told nobody
		k.record(p, lost())
	default:
		return k.unlaunch(p, fmt.Errorf("process %d, which the runtime wrote to %s, is no child of the keeper", pid, p.PIDFile))
	}
	k.log.Debug("instance started", "instance", p.ID, "pid", pid)
	k.notify(p.ID)
	return nil
}

// unlaunch removes what a start that did not work left.
func (k *keeper) unlaunch(p *process, cause error) error {
	if p.output != nil {
		k.pump.drain(p.output)
		k.pump.shut(p.output)
	}
	k.drop(p)
	k.log.Warn("instance did not start", "instance", p.ID, "error", cause)
	if e := (*kiln.Error)(nil); errors.As(cause, &e) {
		return e
	}
	return kiln.Errorf(kiln.CodeFailed, "", "start %s: %w", p.ID, cause)
}

// streamNames are an instance's streams; their order is that of its files 1
// and 2.
func streamNames() []string { return []string{"stdout", "stderr"} }

// plumb makes the pipes and begins to read them. It returns the ends that the
// instance gets as files 1 and 2.
func (k *keeper) plumb(p *process) ([]*os.File, error) {
	out := &output{instance: p.ID, writer: logs.NewWriter(p.LogDir, p.LogBytes), captures: true}
	reads := map[string]int{}
	var writers []*os.File
	for _, name := range streamNames() {
		one, err := makePipe(pipePath(k.opt.DataDir, p.ID, name))
		if err != nil {
			for _, fd := range reads {
				_ = unix.Close(fd)
			}
			for _, f := range writers {
				_ = f.Close()
			}
			return nil, err
		}
		reads[name] = one.read
		writers = append(writers, one.write)
	}
	k.pump.open(out, reads, nil)
	p.output = out
	return writers, nil
}

// runRuntime runs the OCI runtime to its end.
func (k *keeper) runRuntime(p *process, writers []*os.File) error {
	path, err := exec.LookPath(p.Command[0])
	if err != nil {
		return kiln.Errorf(kiln.CodeFailed, "kiln doctor shows what is missing", "start %s: no OCI runtime: %w", p.ID, err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer func() { _ = null.Close() }()
	pid, ended, err := k.reaper.spawn(path, p.Command, &syscall.ProcAttr{
		Dir:   p.Dir,
		Env:   []string{"PATH=" + searchPath()},
		Files: []uintptr{null.Fd(), writers[0].Fd(), writers[1].Fd()},
		// It ends with the keeper: what it would still start, the next keeper
		// would know nothing of. (No thread of the keeper ends before it.)
		Sys: &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL},
	})
	if err != nil {
		return fmt.Errorf("run %s: %w", path, err)
	}
	timeout := time.NewTimer(startLimit)
	defer timeout.Stop()
	select {
	case status := <-ended:
		if status.Exited() && status.ExitStatus() == 0 {
			return nil
		}
		return k.runtimeError(p, status)
	case <-timeout.C:
		_ = unix.Kill(-pid, unix.SIGKILL)
		<-ended
		return kiln.Errorf(kiln.CodeFailed, "", "start %s: the runtime did not end within %s", p.ID, startLimit)
	}
}

func searchPath() string {
	if p := os.Getenv("PATH"); p != "" {
		return p
	}
	return "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
}

// runtimeError says why the runtime ended without an instance, in its words.
func (k *keeper) runtimeError(p *process, status unix.WaitStatus) error {
	k.pump.drain(p.output)
	lines := strings.Split(strings.TrimSpace(k.pump.captured(p.output)), "\n")
	last := runtimeMessage(lines[len(lines)-1])
	how := fmt.Sprintf("code %d", status.ExitStatus())
	if status.Signaled() {
		how = unix.SignalName(status.Signal())
	}
	if last == "" {
		return kiln.Errorf(kiln.CodeFailed, "", "start %s: the runtime ended with %s and said nothing", p.ID, how)
	}
	e := kiln.Errorf(kiln.CodeFailed, "", "start %s: the runtime ended with %s: %s", p.ID, how, last)
	e.Evidence = lines
	return e
}

// runtimeMessage takes the message out of a line of runc's log, which is
// `time="..." level=error msg="..."`.
func runtimeMessage(line string) string {
	_, quoted, ok := strings.Cut(line, " msg=")
	if !ok {
		return line
	}
	if q, err := strconv.QuotedPrefix(quoted); err == nil {
		if text, err := strconv.Unquote(q); err == nil {
			return text
		}
	}
	return quoted
}

func readPID(path string) (int, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err == nil && pid < 2 {
		err = fmt.Errorf("%d is no process", pid)
	}
	return pid, err
}

// ended records the end of an instance, after what it left in its pipes.
func (k *keeper) ended(pid int, status unix.WaitStatus) {
	k.mu.Lock()
	var p *process
	for _, one := range k.processes {
		if one.pid == pid && one.exit == nil {
			p = one
		}
	}
	k.mu.Unlock()
	if p != nil {
		k.record(p, exitOf(status))
	}
}

func (k *keeper) record(p *process, exit *kiln.Exit) {
	if p.output != nil {
		k.pump.drain(p.output)
	}
	k.mu.Lock()
	p.exit = exit
	k.mu.Unlock()
	k.journal.append(record{Ended: &ended{ID: p.ID, Exit: *exit}})
	k.log.Debug("instance ended", "instance", p.ID, "pid", p.pid, "code", exit.Code, "signal", exit.Signal, "lost", exit.Lost)
	k.notify(p.ID)
}

// list returns all known processes, without order.
func (k *keeper) list() []kiln.ProcessStatus {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := make([]kiln.ProcessStatus, 0, len(k.processes))
	for _, p := range k.processes {
		if p.pid != 0 || p.exit != nil {
			out = append(out, p.status())
		}
	}
	return out
}

// forget drops an ended process; an unknown one is forgotten already.
func (k *keeper) forget(id string) error {
	k.mu.Lock()
	p := k.processes[id]
	if p == nil {
		k.mu.Unlock()
		return nil
	}
	if p.exit == nil {
		k.mu.Unlock()
		return kiln.Errorf(kiln.CodeConflict, "end it first", "instance %s runs", id)
	}
	k.mu.Unlock()
	if p.output != nil {
		k.pump.shut(p.output)
	}
	k.drop(p)
	return nil
}

// drop removes all that is known of a process; its pipes first, so that
// another of that ID has its own.
func (k *keeper) drop(p *process) {
	for _, name := range streamNames() {
		_ = os.Remove(pipePath(k.opt.DataDir, p.ID, name))
	}
	k.mu.Lock()
	if k.processes[p.ID] == p {
		delete(k.processes, p.ID)
	}
	k.mu.Unlock()
	k.journal.append(record{Forgotten: p.ID})
}
