// Package keep is the keeper: the small process that holds what must not die
// with the control plane or the gateway. It is the parent of every instance,
// so that exit codes are known; it reads their log pipes, so that none blocks;
// it holds the listening sockets, so that a gateway's death refuses no
// connection; and it starts the gateway again. It decides nothing: what to
// start and where to listen its clients say, over a Unix socket.
//
// All that it knows is in one value, keeper, and in its journal, from which
// another keeper goes on when this one died.
package keep

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
)

// Options say how a keeper runs.
type Options struct {
	// DataDir is the data directory; what the keeper has is below "run" in it.
	DataDir string
	// Gateway is the gateway's command. It inherits its listening control
	// socket as file 3 and the end of package handoff's pair as file 4, and
	// works in DataDir/gateway. Empty runs none.
	Gateway []string
	// GatewayUID and GatewayGID are who the gateway is; 0 means 65521. They
	// count only when the keeper is root.
	GatewayUID, GatewayGID int
	// Launch is the command that calls confine.Launch with the arguments that follow.
	// A keeper that is root needs it to start the gateway. Here and in Gateway
	// an empty first word is the program that runs, wherever its file is now.
	Launch []string
	// Arguments are those that this keeper was started with, after the
	// program's name: another program that it becomes gets the same.
	Arguments []string
	// ReplaceLimit bounds the rehearsal of another program, and then the time
	// until it is up; 0 means 15 seconds.
	ReplaceLimit time.Duration
	// Version is shown by Ping.
	Version string
	// Ready is called once clients are answered; it may be nil.
	Ready func() `json:"-"`
	// Log may be nil.
	Log *slog.Logger
}

// defaultGatewayID is a user and group without a name, below nobody's.
const defaultGatewayID = 65521

// keeper is all that a keeper has.
type keeper struct {
	opt       Options
	log       *slog.Logger
	startedAt time.Time
	reaper    *reaper
	pump      *pump
	journal   *journal
	gateway   *gateway
	stop      context.CancelCauseFunc

	mu          sync.Mutex
	processes   map[string]*process // by ID
	subscribers map[*subscriber]bool

	listening sync.Mutex // one Listen at a time

	lock      *os.File
	socket    *net.UnixListener
	replacing sync.Mutex   // one replacement at a time
	calls     sync.RWMutex // held for reading by what must not be cut short by one
}

// process is an instance. Its fields are guarded by keeper.mu, but for those
// of its logs, which are the pump's.
type process struct {
	kiln.Process
	pid       int
	ticks     uint64 // start time in clock ticks since boot, against reuse of the pid
	startedAt time.Time
	exit      *kiln.Exit
	err       error         // of a start that did not work
	started   chan struct{} // closed when Start is done with it
	output    *output
}

func (p *process) status() kiln.ProcessStatus {
	return kiln.ProcessStatus{ID: p.ID, PID: p.pid, StartedAt: p.startedAt, Exit: p.exit}
}

// errStopped ends a keeper that was told to stop.
var errStopped = errors.New("stopped")

// Run is the keeper. It returns when a client stops it, which is no error, or
// when ctx ends; instances live on. It changes the whole process: it becomes a
// child subreaper, waits for every child, and takes SIGHUP, SIGPIPE and SIGCHLD.
func Run(ctx context.Context, opt Options) error {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	if err := detach(); err != nil {
		return err
	}
	run := filepath.Join(opt.DataDir, "run")
	if err := os.MkdirAll(filepath.Join(run, pipesDir), 0o700); err != nil {
		return fmt.Errorf("make the keeper's folder: %w", err)
	}
	was, err := takeState()
	if err != nil {
		return err
	}
	lock, err := was.takeLock(run)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGHUP, unix.SIGPIPE)
	defer signal.Stop(signals)

	k := &keeper{
		opt: opt, log: opt.Log, startedAt: time.Now(), stop: stop,
		processes: map[string]*process{}, subscribers: map[*subscriber]bool{}, lock: lock,
	}
	return k.run(ctx, run, was)
}

// run puts the parts together and waits for them in the reverse order. was is
// nil but for a keeper that was another program.
func (k *keeper) run(ctx context.Context, dir string, was *state) error {
	var err error
	if k.pump, err = newPump(k.log); err != nil {
		return err
	}
	defer k.pump.close()
	past, err := readJournal(filepath.Join(dir, journalName))
	if err != nil {
		return err
	}
	k.journal = newJournal(filepath.Join(dir, journalName), k.log, k.snapshot)
	defer k.journal.close()
	k.reaper = newReaper(k.ended)
	defer k.reaper.close() // before the journal: ends that come now are in it
	if k.gateway, err = newGateway(k, dir); err != nil {
		return err
	}
	k.adopt(past, was)
	if len(past.listeners) > 0 {
		if err := k.gateway.listen(ctx, past.listeners, false); err != nil {
			k.log.Error("listeners were not opened again", "error", err)
		}
	}
	k.journal.rewrite()
	if k.socket, err = was.takeSocket(filepath.Join(dir, "keep.sock")); err != nil {
		return err
	}
	var parts sync.WaitGroup
	parts.Go(func() { k.gateway.run(ctx) })
	parts.Go(func() { k.serve(ctx, k.socket) })
	k.log.Info("keeper started", "pid", os.Getpid(), "processes", len(past.processes))
	if was != nil {
		was.settle()
	}
	if k.opt.Ready != nil {
		k.opt.Ready()
	}
	parts.Wait()
	if errors.Is(context.Cause(ctx), errStopped) {
		k.log.Info("keeper stopped")
		return nil
	}
	return context.Cause(ctx)
}

// detach makes the process a parent of orphans in a session of its own.
func detach() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become the parent of orphans: %w", err)
	}
	if _, err := unix.Setsid(); err != nil && !errors.Is(err, unix.EPERM) { // EPERM: it leads one
		return fmt.Errorf("leave the starter's session: %w", err)
	}
	return nil
}

// lockDir makes sure that no other keeper runs for the folder.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "keep.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the keeper's folder: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, kiln.Errorf(kiln.CodeConflict, "it is in use; nothing is to be done", "a keeper runs for %s already", filepath.Dir(dir))
		}
		return nil, fmt.Errorf("lock the keeper's folder: %w", err)
	}
	return f, nil
}

// listenUnix opens a socket that only its owner may use, in place of one that
// a dead process left.
func listenUnix(path string) (*net.UnixListener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("open socket %s: %w", path, err)
	}
	short, done, err := shortPath(path)
	if err != nil {
		return nil, err
	}
	defer done()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("open socket %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o600); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("open socket %s: %w", path, err)
	}
	return l, nil
}

// shortPath gives a path that fits in a socket's address, which holds 107
// bytes. done ends its validity.
func shortPath(path string) (short string, done func(), err error) {
	if len(path) < 100 {
		return path, func() {}, nil
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return "", nil, fmt.Errorf("open socket %s: %w", path, err)
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)), func() { _ = dir.Close() }, nil
}
