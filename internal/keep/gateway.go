package keep

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/confine"
	"github.com/kilnproject/kiln/internal/handoff"
)

// gateway holds the listening sockets and keeps a gateway running on them.
type gateway struct {
	opt     Options
	log     *slog.Logger
	reaper  *reaper
	journal *journal
	control *net.UnixListener
	socket  *os.File // control's, for the child

	mu        sync.Mutex
	held      map[string]*os.File // what a gateway must have
	surplus   []*os.File          // to be closed once the gateway has let go of them
	wanted    uint64              // grows with each change of held
	delivered uint64              // the last of wanted that the gateway has
	refused   map[string]error    // by the gateway that runs
	news      chan struct{}       // closed and made anew when delivered grows
	wake      chan struct{}       // holds one when wanted grew or a spare is missed
	running   *started            // the gateway that runs
	spare     *child              // waits for its turn; nil for none
	starts    int

	watching sync.WaitGroup // of what was started
	orphans  orphans
	spawning sync.Mutex // from a gateway's turn until it is in the journal, and while a spare is started
}

func newGateway(k *keeper, dir string) (*gateway, error) {
	g := &gateway{
		opt: k.opt, log: k.log, reaper: k.reaper, journal: k.journal,
		held: map[string]*os.File{}, refused: map[string]error{},
		news: make(chan struct{}), wake: make(chan struct{}, 1),
	}
	if len(k.opt.Gateway) == 0 {
		return g, nil
	}
	var err error
	if g.control, err = listenUnix(filepath.Join(dir, "gateway.sock")); err != nil {
		return nil, err
	}
	if g.socket, err = share(g.control); err != nil {
		return nil, errors.Join(fmt.Errorf("share the gateway's socket: %w", err), g.control.Close())
	}
	return g, g.home()
}

// share is another descriptor of a listener. One of its File method would turn
// to blocking, for all gateways that have the socket, when it is passed on.
func share(l *net.UnixListener) (*os.File, error) {
	raw, err := l.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	var failed error
	if err := raw.Control(func(of uintptr) { fd, failed = unix.FcntlInt(of, unix.F_DUPFD_CLOEXEC, 0) }); errors.Join(err, failed) != nil {
		return nil, errors.Join(err, failed)
	}
	return os.NewFile(uintptr(fd), "control"), nil
}

// user is who the gateway is.
func (g *gateway) user() (uid, gid int) {
	if os.Geteuid() != 0 {
		return os.Geteuid(), os.Getegid()
	}
	uid, gid = g.opt.GatewayUID, g.opt.GatewayGID
	if uid == 0 {
		uid = defaultGatewayID
	}
	if gid == 0 {
		gid = defaultGatewayID
	}
	return uid, gid
}

func (g *gateway) folder() string { return filepath.Join(g.opt.DataDir, "gateway") }

// home makes the gateway's folder.
func (g *gateway) home() error {
	if err := os.MkdirAll(g.folder(), 0o700); err != nil {
		return fmt.Errorf("make the gateway's folder: %w", err)
	}
	if os.Geteuid() != 0 {
		return nil
	}
	uid, gid := g.user()
	if err := giveFolder(g.folder(), uid, gid); err != nil {
		return fmt.Errorf("give the gateway its folder: %w", err)
	}
	return nil
}

// inherit takes the sockets that the gateways of a dead keeper hold. Those go
// on serving until the next gateway has them too. What cannot be taken could be
// opened by nobody while they live: then they are ended at once.
// was is nil but for a keeper that was another program, which has its sockets.
func (g *gateway) inherit(gateways []started, names []string, was *state) {
	g.orphans.adopt(gateways)
	want := map[string]endpoint{}
	for _, name := range names {
		if e, err := parseEndpoint(name); err == nil {
			want[name] = e
		}
	}
	var taken map[string]*os.File
	if was != nil {
		taken = was.takeListeners()
	} else {
		taken = g.orphans.sockets(want)
	}
	if len(taken) < len(want) || len(g.opt.Gateway) == 0 {
		g.orphans.kill()
	}
	g.change(func() { maps.Copy(g.held, taken) })
}

// state is for the journal: what is listened on, and the gateway that runs.
func (g *gateway) state() (listeners []string, running *started) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Collect(maps.Keys(g.held)), g.running
}

// count is how many gateways were started.
func (g *gateway) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.starts
}

// listen makes the names the whole set that is listened on. What can be opened
// is opened, also when others cannot; the error tells of those. With wait it
// returns once the gateway has them.
func (g *gateway) listen(ctx context.Context, names []string, wait bool) error {
	var errs []error
	want := map[string]endpoint{}
	for _, name := range names {
		e, err := parseEndpoint(name)
		if err == nil && len(name) > handoff.MaxName {
			err = badEndpoint(name)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		want[name] = e
	}
	failed := g.openMissing(want)
	dropped := g.dropSurplus(want)
	if len(failed) > 0 && dropped {
		// What was in the way may have been one of the surplus.
		if err := g.settle(ctx, wait); err != nil {
			errs = append(errs, err)
		}
		failed = g.openMissing(want)
	}
	for _, name := range slices.Sorted(maps.Keys(failed)) {
		errs = append(errs, failed[name])
	}
	if err := g.settle(ctx, wait); err != nil {
		errs = append(errs, err)
	}
	if wait {
		errs = append(errs, g.refusals(want)...)
	}
	return joined(errs)
}

// joined is one error of several, with the first one's code and hint.
func joined(errs []error) error {
	if len(errs) < 2 {
		return errors.Join(errs...)
	}
	first := (*kiln.Error)(nil)
	if !errors.As(errs[0], &first) {
		return errors.Join(errs...)
	}
	out := *first
	for _, err := range errs[1:] {
		out.Evidence = append(out.Evidence, err.Error())
	}
	out.Message = fmt.Sprintf("%s (and %d more)", first.Message, len(errs)-1)
	return &out
}

func (g *gateway) openMissing(want map[string]endpoint) (failed map[string]error) {
	g.mu.Lock()
	missing, held := maps.Clone(want), maps.Clone(g.held)
	g.mu.Unlock()
	maps.DeleteFunc(missing, func(name string, _ endpoint) bool { return held[name] != nil })
	failed = map[string]error{}
	opened := map[string]*os.File{}
	for name, e := range missing {
		f, err := e.open(e.neighbours(held, opened))
		if err != nil {
			failed[name] = err
			continue
		}
		opened[name] = f
	}
	if len(opened) > 0 {
		g.change(func() { maps.Copy(g.held, opened) })
	}
	return failed
}

// neighbours are the sockets on the port of an endpoint.
func (e endpoint) neighbours(all ...map[string]*os.File) []*os.File {
	var files []*os.File
	for _, sockets := range all {
		for name, f := range sockets {
			if other, err := parseEndpoint(name); err == nil && other.network == e.network && other.address.Port() == e.address.Port() {
				files = append(files, f)
			}
		}
	}
	return files
}

func (g *gateway) dropSurplus(want map[string]endpoint) bool {
	dropped := false
	g.change(func() {
		for name, f := range g.held {
			if _, ok := want[name]; !ok {
				g.surplus = append(g.surplus, f)
				delete(g.held, name)
				dropped = true
			}
		}
	})
	return dropped
}

// change changes what is held and lets the gateway's loop know.
func (g *gateway) change(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f()
	g.wanted++
	g.nudge()
}

// nudge has the gateway's loop look what is to be done.
func (g *gateway) nudge() {
	select {
	case g.wake <- struct{}{}:
	default: // it is to look anyway
	}
}

// settle waits until the gateway has what is held and surplus is closed.
func (g *gateway) settle(ctx context.Context, wait bool) error {
	if len(g.opt.Gateway) == 0 {
		g.closeSurplus()
		return nil
	}
	if !wait {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*handoff.Timeout)
	defer cancel()
	for {
		g.mu.Lock()
		done, news := g.delivered >= g.wanted, g.news
		g.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return kiln.Errorf(kiln.CodeUnavailable, "see keep.log in the data directory", "the gateway does not take its listeners: %w", ctx.Err())
		}
	}
}

func (g *gateway) closeSurplus() {
	g.mu.Lock()
	surplus := g.surplus
	g.surplus = nil
	g.mu.Unlock()
	for _, f := range surplus {
		_ = f.Close()
	}
}

func (g *gateway) refusals(want map[string]endpoint) []error {
	g.mu.Lock()
	defer g.mu.Unlock()
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(g.refused)) {
		if _, ok := want[name]; ok {
			errs = append(errs, kiln.Errorf(kiln.CodeFailed, "", "%w", g.refused[name]))
		}
	}
	return errs
}

const (
	// quickDeath is a life so short that the next start waits, when several
	// were in a row.
	quickDeath = time.Second
	// patience is how many quick deaths in a row are mended at once.
	patience = 3
	maxPause = 5 * time.Second
)

// run keeps a gateway running until ctx ends, and ends it then.
func (g *gateway) run(ctx context.Context) {
	if len(g.opt.Gateway) == 0 {
		<-ctx.Done()
		return
	}
	defer func() { _ = g.socket.Close(); _ = g.control.Close() }()
	defer g.orphans.kill()
	defer g.orphans.ending.Wait()
	defer g.watching.Wait()
	defer g.dismiss()
	for quick := 0; ctx.Err() == nil; {
		began := time.Now()
		if err := g.once(ctx); err != nil && ctx.Err() == nil {
			g.log.Error("gateway ended", "error", err, "after", time.Since(began))
		}
		quick++
		if time.Since(began) > quickDeath {
			quick = 0
		}
		if quick > patience {
			pause := time.NewTimer(min(50*time.Millisecond<<min(quick-patience, 10), maxPause))
			select {
			case <-pause.C:
			case <-ctx.Done():
			}
			pause.Stop()
		}
	}
}

// once runs one gateway to its end.
func (g *gateway) once(ctx context.Context) error {
	c, err := g.next()
	if err != nil {
		return err
	}
	defer func() { _ = c.conn.Close() }()
	feeding := make(chan error, 1)
	fctx, stop := context.WithCancel(ctx)
	defer stop()
	fed := func() {
		g.orphans.end(ctx, func() { g.journal.append(record{Orphans: &[]started{}}) })
		g.prepare()
	}
	go func() { feeding <- g.feed(fctx, c.conn, fed) }()
	var cause error
	select {
	case <-c.ended:
		stop()
		_ = c.conn.Close()
		<-feeding
		return fmt.Errorf("pid %d: %s", c.pid, describe(c.status))
	case cause = <-feeding: // it does not take its listeners, or ctx ended
	}
	signal := unix.SIGKILL
	if ctx.Err() != nil {
		signal = unix.SIGTERM
	}
	g.end(c, signal)
	return cause
}

// endLimit is how long a gateway may take to end when the keeper is stopped.
const endLimit = 10 * time.Second

func (g *gateway) end(c *child, signal unix.Signal) {
	_ = unix.Kill(c.pid, signal)
	limit := time.NewTimer(endLimit)
	defer limit.Stop()
	select {
	case <-c.ended:
	case <-limit.C:
		_ = unix.Kill(c.pid, unix.SIGKILL)
		<-c.ended
	}
}

func describe(status unix.WaitStatus) string {
	if status.Signaled() {
		return "killed by " + unix.SignalName(status.Signal())
	}
	return fmt.Sprintf("exited with code %d", status.ExitStatus())
}

// began records a gateway that has nothing yet.
func (g *gateway) began(pid int) {
	stat, _ := readStat(pid)
	running := &started{PID: pid, Ticks: stat.ticks, At: time.Now().UTC()}
	g.mu.Lock()
	g.running = running
	g.starts++
	g.delivered = 0
	g.wanted++
	g.refused = map[string]error{}
	g.mu.Unlock()
	g.journal.append(record{Gateway: running})
	g.log.Info("gateway started", "pid", pid)
}

// spawn starts a gateway as its own user: it waits for its turn, and then takes
// its listeners.
func (g *gateway) spawn(turn, listeners *os.File) (int, <-chan unix.WaitStatus, error) {
	program, err := findProgram(g.opt.Gateway[0])
	if err != nil {
		return 0, nil, fmt.Errorf("start the gateway: %w", err)
	}
	command := append([]string{program}, g.opt.Gateway[1:]...)
	if os.Geteuid() == 0 {
		if len(g.opt.Launch) == 0 {
			return 0, nil, errors.New("the keeper is root and has no command to start the gateway as another user")
		}
		uid, gid := g.user()
		command = slices.Concat(g.opt.Launch, confine.LaunchArgs(uid, gid, command))
	}
	path, err := findProgram(command[0])
	if err != nil {
		return 0, nil, fmt.Errorf("start the gateway: %w", err)
	}
	command[0] = path
	pid, ended, err := g.reaper.spawn(path, command, &syscall.ProcAttr{
		Dir:   g.folder(),
		Env:   gatewayEnv(),
		Files: []uintptr{turn.Fd(), os.Stderr.Fd(), os.Stderr.Fd(), g.socket.Fd(), listeners.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 0, nil, fmt.Errorf("start the gateway: %w", err)
	}
	return pid, ended, nil
}

// findProgram is a program's path; no name is the program that runs.
func findProgram(name string) (string, error) {
	if name == "" {
		return ThisProgram(), nil
	}
	return exec.LookPath(name)
}

// gatewayEnv is what the gateway may know of the keeper's environment.
func gatewayEnv() []string {
	env := []string{"PATH=" + searchPath()}
	for _, name := range []string{"GOMAXPROCS", "GOMEMLIMIT", "GODEBUG", "GOCOVERDIR", "TZ"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// feed gives one gateway all that is held and every change, until ctx ends or
// the gateway does not take it. Each time that it has all, fed is called.
func (g *gateway) feed(ctx context.Context, conn *net.UnixConn, fed func()) error {
	sent := map[string]*os.File{}
	for {
		g.mu.Lock()
		held, wanted := maps.Clone(g.held), g.wanted
		surplus := g.surplus
		g.surplus = nil
		g.mu.Unlock()
		err := g.pass(conn, sent, held)
		for _, f := range surplus {
			_ = f.Close()
		}
		if err != nil {
			return err
		}
		g.mu.Lock()
		g.delivered = wanted
		close(g.news)
		g.news = make(chan struct{})
		g.mu.Unlock()
		fed()
		select {
		case <-g.wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// pass sends what differs; what goes goes first.
func (g *gateway) pass(conn *net.UnixConn, sent, held map[string]*os.File) error {
	for name, f := range sent {
		if held[name] == f {
			continue
		}
		if err := g.send(conn, name, nil); err != nil {
			return err
		}
		delete(sent, name)
	}
	for name, f := range held {
		if sent[name] != nil {
			continue
		}
		if err := g.send(conn, name, f); err != nil {
			return err
		}
		sent[name] = f
	}
	return nil
}

func (g *gateway) send(conn *net.UnixConn, name string, f *os.File) error {
	err := handoff.Send(conn, name, f)
	refusal := (*handoff.RefusedError)(nil)
	refused := errors.As(err, &refusal)
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.refused, name)
	if refused && f != nil {
		g.refused[name] = refusal
	}
	if refused {
		return nil
	}
	return err
}
