package keep

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
)

// A keeper is replaced in place: it executes another program, so that its
// process, and with it the children, stay what they are. Before that the other
// program is rehearsed in a process of its own. What it then gets is a state,
// with the files that the state names, and a journal. A sitter, which is the
// old program still, waits for its word that it is up, and otherwise ends it and
// is the keeper again.

const (
	replaceLimit = 15 * time.Second
	// stateForm is the form of state. A program refuses another.
	stateForm = 1
	stateSize = 16 << 20
)

// stateVariable holds the number of the file that has the state.
const stateVariable = "KILN_KEEPER_STATE"

// The flags that follow a keeper's arguments: for a rehearsal, and for a sitter.
const (
	RehearseFlag = "--rehearse"
	SitFlag      = "--sit"
)

// state is what a keeper leaves to the program that it executes. Numbers are
// those of files, which the program inherits.
type state struct {
	Form      int            `json:"form"`
	Lock      int            `json:"lock"`
	Socket    int            `json:"socket"` // where clients connect
	Up        int            `json:"up"`     // the sitter's pipe
	Listeners map[string]int `json:"listeners,omitempty"`
	Pipes     []pipeState    `json:"pipes,omitempty"`
}

// pipeState is a pipe of an instance, with the line that was begun.
type pipeState struct {
	ID     string `json:"id"`
	Stream string `json:"stream"`
	File   int    `json:"file"`
	Part   []byte `json:"part,omitempty"`
}

// Rehearsal is what another program says of itself before it is executed.
type Rehearsal struct {
	Version  string `json:"version"`
	Protocol int    `json:"protocol"`
	Form     int    `json:"form"`
}

// Rehearse is the part of a program that is to become the keeper: it reads
// what it would get, and says who it is. It changes nothing.
func Rehearse(opt Options) (Rehearsal, error) {
	if _, err := takeState(); err != nil {
		return Rehearsal{}, err
	}
	if _, err := readJournal(filepath.Join(opt.DataDir, "run", journalName)); err != nil {
		return Rehearsal{}, err
	}
	return Rehearsal{Version: opt.Version, Protocol: protocol, Form: stateForm}, nil
}

func (opt Options) replaceLimit() time.Duration {
	if opt.ReplaceLimit > 0 {
		return opt.ReplaceLimit
	}
	return replaceLimit
}

// takeState reads the state that the keeper before left, and takes its variable
// out of the environment. Without one it is nil.
func takeState() (*state, error) {
	text, ok := os.LookupEnv(stateVariable)
	if !ok {
		return nil, nil //nolint:nilnil // most keepers have none
	}
	if err := os.Unsetenv(stateVariable); err != nil {
		return nil, err
	}
	number, err := strconv.Atoi(text)
	if err != nil || number < 3 {
		return nil, fmt.Errorf("%s is %q", stateVariable, text)
	}
	f := os.NewFile(uintptr(number), "state")
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.NewSectionReader(f, 0, stateSize))
	if err != nil {
		return nil, fmt.Errorf("read the state of the keeper before: %w", err)
	}
	var s state
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("read the state of the keeper before: %w", err)
	}
	if s.Form != stateForm {
		return nil, fmt.Errorf("the state of the keeper before has form %d, and this program knows form %d", s.Form, stateForm)
	}
	s.each(unix.CloseOnExec)
	return &s, nil
}

// each calls f with every file's number.
func (s *state) each(f func(fd int)) {
	for _, fd := range []int{s.Lock, s.Socket, s.Up} {
		f(fd)
	}
	for _, fd := range s.Listeners {
		f(fd)
	}
	for _, p := range s.Pipes {
		f(p.File)
	}
}

// takeLock gives the inherited lock of the keeper's folder, or a new one.
func (s *state) takeLock(dir string) (*os.File, error) {
	if s == nil {
		return lockDir(dir)
	}
	return os.NewFile(uintptr(s.Lock), "keep.lock"), nil
}

// takeSocket gives the inherited socket of clients, on which some may wait, or a new
// one.
func (s *state) takeSocket(path string) (*net.UnixListener, error) {
	if s == nil {
		return listenUnix(path)
	}
	f := os.NewFile(uintptr(s.Socket), path)
	defer func() { _ = f.Close() }()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("take the keeper's socket: %w", err)
	}
	listener, ok := l.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(fmt.Errorf("take the keeper's socket: it is a %T", l), l.Close())
	}
	listener.SetUnlinkOnClose(false)
	return listener, nil
}

// takeListeners gives the inherited sockets.
func (s *state) takeListeners() map[string]*os.File {
	out := map[string]*os.File{}
	for name, fd := range s.Listeners {
		out[name] = os.NewFile(uintptr(fd), name)
	}
	return out
}

// takePipe gives an inherited pipe; without one File is -1.
func (s *state) takePipe(id, stream string) pipeState {
	at := -1
	if s != nil {
		at = slices.IndexFunc(s.Pipes, func(p pipeState) bool { return p.ID == id && p.Stream == stream })
	}
	if at < 0 {
		return pipeState{File: -1}
	}
	found := s.Pipes[at]
	s.Pipes = slices.Delete(s.Pipes, at, at+1)
	return found
}

// settle tells the sitter that this program is up, and closes what nobody took.
func (s *state) settle() {
	tellUp(s.Up)
	_ = unix.Close(s.Up)
	for _, p := range s.Pipes {
		_ = unix.Close(p.File)
	}
}

func tellUp(fd int) { _, _ = unix.Write(fd, []byte("up\n")) }

// replace makes the keeper another program. It returns only an error: the
// keeper goes on as it was then.
func (k *keeper) replace(program string) error {
	if !filepath.IsAbs(program) {
		return kiln.Errorf(kiln.CodeInvalid, "", "%q is not the absolute path of a program", program)
	}
	k.replacing.Lock()
	defer k.replacing.Unlock()
	if err := k.rehearse(program); err != nil {
		return err
	}
	k.calls.Lock() // nothing is being started
	defer k.calls.Unlock()
	k.gateway.spawning.Lock()
	defer k.gateway.spawning.Unlock()
	up, err := k.seat()
	if err != nil {
		return fmt.Errorf("start the keeper's sitter: %w", err)
	}
	defer func() {
		tellUp(int(up.Fd()))
		_ = up.Close()
	}()
	k.log.Info("keeper executes another program", "program", program)
	k.reaper.still(func() {
		k.pump.do(func() { err = k.become(program, int(up.Fd())) })
	})
	k.log.Error("keeper could not execute the other program", "program", program, "error", err)
	return kiln.Errorf(kiln.CodeFailed, "the keeper goes on as it was", "execute %s: %w", program, err)
}

// rehearse has the program read what it would get, in a process of its own.
func (k *keeper) rehearse(program string) error {
	failed := func(err error) error {
		return kiln.Errorf(kiln.CodeFailed, "the keeper goes on as it was; keep.log in the data directory may say more", "%s cannot be the keeper: %w", program, err)
	}
	text, err := json.Marshal(state{Form: stateForm})
	if err != nil {
		return err
	}
	memory, err := memoryFile(text)
	if err != nil {
		return err
	}
	defer func() { _ = memory.Close() }()
	out, err := k.output(program, slices.Concat([]string{program}, k.opt.Arguments, []string{RehearseFlag}), memory)
	if err != nil {
		return failed(err)
	}
	var said Rehearsal
	if err := json.Unmarshal(out, &said); err != nil {
		return failed(fmt.Errorf("it says %q", strings.TrimSpace(string(out[:min(len(out), 200)]))))
	}
	if said.Protocol != protocol || said.Form != stateForm {
		return failed(fmt.Errorf("it speaks version %d of the protocol and form %d of the state, and this keeper %d and %d", said.Protocol, said.Form, protocol, stateForm))
	}
	return kiln.CheckSkew("the keeper", k.opt.Version, "the new keeper", said.Version)
}

// output runs a program that reads a state, and returns what it says.
func (k *keeper) output(program string, args []string, memory *os.File) ([]byte, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = read.Close() }()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, errors.Join(err, write.Close())
	}
	defer func() { _ = null.Close() }()
	pid, ended, err := k.reaper.spawn(program, args, &syscall.ProcAttr{
		Dir: "/", Env: append(os.Environ(), stateVariable+"=3"),
		Files: []uintptr{null.Fd(), write.Fd(), os.Stderr.Fd(), memory.Fd()},
		Sys:   &syscall.SysProcAttr{Setpgid: true},
	})
	_ = write.Close()
	if err != nil {
		return nil, err
	}
	limit := k.opt.replaceLimit()
	stop := time.AfterFunc(limit, func() { _ = unix.Kill(-pid, unix.SIGKILL) })
	defer stop.Stop()
	_ = read.SetReadDeadline(time.Now().Add(limit + time.Second))
	var out bytes.Buffer
	_, rerr := io.Copy(&out, io.LimitReader(read, 64<<10))
	_ = read.Close() // one that says more is told so
	status := <-ended
	switch {
	case status.Signaled() && status.Signal() == unix.SIGKILL:
		return nil, fmt.Errorf("it did not end within %s", limit)
	case status.Signaled() || status.ExitStatus() != 0:
		return nil, fmt.Errorf("it %s", describe(status))
	}
	return out.Bytes(), rerr
}

// seat starts the sitter, and returns the end of its pipe.
func (k *keeper) seat() (*os.File, error) {
	self, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(self) }()
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = read.Close() }()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, errors.Join(err, write.Close())
	}
	defer func() { _ = null.Close() }()
	args := slices.Concat([]string{os.Args[0]}, k.opt.Arguments, []string{SitFlag})
	_, _, err = k.reaper.spawn("/proc/self/exe", args, &syscall.ProcAttr{
		Dir: "/", Env: os.Environ(),
		Files: []uintptr{null.Fd(), os.Stderr.Fd(), os.Stderr.Fd(), read.Fd(), uintptr(self)},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return nil, errors.Join(err, write.Close())
	}
	return write, nil
}

// Sit is the sitter. It returns false once the keeper is up as another program.
// Where that does not come up, it ends it and returns true: whoever called is to
// be the keeper again.
func Sit(opt Options) (dead bool) {
	up := os.NewFile(3, "up")
	defer func() { _ = up.Close() }()
	if n, err := unix.Poll([]unix.PollFd{{Fd: 3, Events: unix.POLLIN}}, int(opt.replaceLimit().Milliseconds())); n == 1 && err == nil {
		word := make([]byte, 3)
		if _, err := io.ReadFull(up, word); err == nil && string(word) == "up\n" {
			return false
		}
	}
	_ = unix.PidfdSendSignal(4, unix.SIGKILL, nil, 0)
	awaitEnd(4, replaceLimit)
	_ = unix.Close(4)
	return true
}

// become executes the program. It runs on the pump's goroutine, while nothing
// is started and nothing waited for, and returns only an error.
func (k *keeper) become(program string, up int) error {
	var files []int
	defer func() {
		for _, fd := range files {
			_ = unix.Close(fd)
		}
	}()
	// A duplicate outlives the execution; what it is of does not.
	keep := func(fd int) int {
		copied, err := unix.Dup(fd)
		if err != nil {
			return -1
		}
		files = append(files, copied)
		return copied
	}
	s, err := k.state(keep)
	if err != nil {
		return err
	}
	s.Up = keep(up)
	whole := true
	s.each(func(fd int) { whole = whole && fd >= 0 })
	if !whole {
		return errors.New("there are no more files to be had")
	}
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	memory, err := memoryFile(text)
	if err != nil {
		return err
	}
	defer func() { _ = memory.Close() }()
	fd := keep(int(memory.Fd()))
	args := slices.Concat([]string{program}, k.opt.Arguments)
	return syscall.Exec(program, args, append(os.Environ(), fmt.Sprintf("%s=%d", stateVariable, fd)))
}

// state is what there is now; keep gives the numbers that files will have.
func (k *keeper) state(keep func(fd int) int) (state, error) {
	s := state{Form: stateForm, Listeners: map[string]int{}}
	var err error
	if s.Lock, err = keepFile(k.lock, keep); err != nil {
		return s, err
	}
	if s.Socket, err = keepFile(k.socket, keep); err != nil {
		return s, err
	}
	k.gateway.mu.Lock()
	defer k.gateway.mu.Unlock()
	for name, f := range k.gateway.held {
		if s.Listeners[name], err = keepFile(f, keep); err != nil {
			return s, err
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for id, p := range k.processes {
		if p.output == nil {
			continue
		}
		for _, one := range p.output.streams {
			if one.fd >= 0 {
				s.Pipes = append(s.Pipes, pipeState{ID: id, Stream: one.name, File: keep(one.fd), Part: one.part})
			}
		}
	}
	return s, nil
}

// keepFile keeps a file of package os or net, whose Fd would make it blocking,
// for all that share it.
func keepFile(f syscall.Conn, keep func(fd int) int) (number int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	err = raw.Control(func(fd uintptr) { number = keep(int(fd)) })
	return number, err
}

// memoryFile is a file without a name, read from its beginning.
func memoryFile(content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("keeper", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("keep the state: %w", err)
	}
	f := os.NewFile(uintptr(fd), "state")
	if _, err := f.Write(content); err != nil {
		return nil, errors.Join(fmt.Errorf("keep the state: %w", err), f.Close())
	}
	return f, nil
}

// ThisProgram is a path of the program that runs, also where its file was moved,
// replaced or removed since it started.
func ThisProgram() string {
	const self = "/proc/self/exe"
	path, err := os.Readlink(self)
	if err != nil {
		return self
	}
	named, err := os.Stat(path)
	if err != nil {
		return self
	}
	if running, err := os.Stat(self); err != nil || !os.SameFile(named, running) {
		return self
	}
	return path
}

// Replace makes the keeper another program, and returns what that says of
// itself once it answers. An error means that the keeper that there was goes
// on, in its own process or another.
func (c *Client) Replace(ctx context.Context, program string) (Info, error) {
	before, err := c.Ping(ctx)
	if err != nil {
		return Info{}, err
	}
	_, err = c.call(ctx, request{Method: methodReplace, Program: program})
	if !errors.Is(err, &kiln.Error{Code: kiln.CodeUnavailable}) {
		if err == nil {
			err = errors.New("replace the keeper: it answers what it never does")
		}
		return Info{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, 3*replaceLimit)
	defer cancel()
	for ctx.Err() == nil {
		now, err := c.Ping(ctx)
		switch {
		case err != nil || now.StartedAt.Equal(before.StartedAt):
			pause(ctx, 5*time.Millisecond)
		case now.PID != before.PID:
			return now, kiln.Errorf(kiln.CodeFailed, "keep.log in the data directory says why", "%s did not come up as the keeper: the keeper before is back", program)
		default:
			return now, nil
		}
	}
	return Info{}, kiln.Errorf(kiln.CodeUnavailable, "keep.log in the data directory may say why", "the keeper does not answer since it was replaced: %w", context.Cause(ctx))
}
