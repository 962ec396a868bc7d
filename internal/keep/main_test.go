package keep

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/confine"
	"github.com/kilnproject/kiln/internal/handoff"
	"github.com/kilnproject/kiln/internal/kilntest"
)

// TestMain lets the test binary be the other processes too: "role=keeper",
// "role=gateway", "role=launch" as its first argument.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "role=keeper":
			os.Exit(keeperRole(os.Args[2]))
		case "role=gateway":
			os.Exit(gatewayRole())
		case "role=runtime":
			code := runtimeRole(os.Args[2], os.Args[3])
			_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, uintptr(code), 0, 0) // at once, also under the race detector
		case "role=dial":
			_, err := Dial(os.Args[2])
			_, _ = fmt.Fprint(os.Stdout, err)
			os.Exit(0)
		case "role=launch":
			fmt.Fprintln(os.Stderr, confine.Launch(os.Args[2:]))
			os.Exit(1)
		}
	}
	goleak.VerifyTestMain(m)
}

// runtimeRole starts a script detached, writes its pid, and ends without
// waiting for it, as a runtime does.
func runtimeRole(pidFile, script string) int {
	cmd := exec.Command("sh", "-c", script)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return 1
	}
	if err := os.WriteFile(pidFile, fmt.Appendln(nil, cmd.Process.Pid), 0o600); err != nil {
		return 1
	}
	return 0
}

func keeperRole(options string) int {
	var opt Options
	if err := json.Unmarshal([]byte(options), &opt); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	opt.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	opt.Arguments = os.Args[1:3]
	if len(os.Args) > 3 && os.Args[3] == RehearseFlag {
		said, err := Rehearse(opt)
		if err == nil {
			err = json.NewEncoder(os.Stdout).Encode(said)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	}
	if len(os.Args) > 3 && os.Args[3] == SitFlag && !Sit(opt) {
		return 0
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := Run(ctx, opt); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := goleak.Find(goleak.IgnoreTopFunction("os/signal.loop"), goleak.IgnoreAnyFunction("os/signal.NotifyContext.func1")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 3
	}
	return 0
}

// gatewayRole answers every TCP connection with its pid, its user and its
// capabilities, and every request on the control socket with "ok". As the real
// one it goes on without its keeper, and finishes what it has begun when it is
// told to end.
// leaves is what a gateway says that ends by itself.
const leaves = "the gateway leaves"

func gatewayRole() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if AwaitTurn(os.Stdin) != nil {
		return 0
	}
	control, err := net.FileListener(os.NewFile(3, "control"))
	if err != nil {
		return 2
	}
	var answering sync.WaitGroup
	answering.Go(func() { answerAll(control, "ok\n") })
	conn, err := handoff.Conn(os.NewFile(4, "handoff"))
	if err != nil {
		return 2
	}
	context.AfterFunc(ctx, func() { _ = conn.Close() })
	listeners := map[string]io.Closer{}
	whoami := fmt.Sprintf("%d %d %s\n", os.Getpid(), os.Geteuid(), statusFields())
	err = handoff.Serve(conn, func(name string, f *os.File) error {
		if f == nil {
			err := listeners[name].Close()
			delete(listeners, name)
			return err
		}
		defer f.Close()
		if strings.Contains(name, "127.0.0.66") {
			return fmt.Errorf("no listener on that")
		}
		if strings.HasPrefix(name, "udp") {
			c, err := net.FilePacketConn(f)
			listeners[name] = c
			return err
		}
		l, err := net.FileListener(f)
		if err != nil {
			return err
		}
		listeners[name] = l
		answering.Go(func() { answerAll(l, whoami) })
		return nil
	})
	// A keeper that ends may end before it hears an answer.
	if len(listeners) == 0 && !errors.Is(err, io.EOF) && ctx.Err() == nil {
		return 1
	}
	<-ctx.Done()
	_ = control.Close()
	for _, l := range listeners {
		_ = l.Close()
	}
	answering.Wait()
	fmt.Fprintln(os.Stderr, leaves)
	return 0
}

func answerAll(l net.Listener, text string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = io.WriteString(c, text)
		_ = c.Close()
	}
}

// statusFields are what /proc says of the process's rights, joined by commas.
func statusFields() string {
	b, _ := os.ReadFile("/proc/self/status")
	var out []string
	for line := range strings.Lines(string(b)) {
		for _, want := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Groups"} {
			if strings.HasPrefix(line, want+":") {
				out = append(out, strings.Join(strings.Fields(line), ""))
			}
		}
	}
	wd, _ := os.Getwd()
	return strings.Join(append(out, wd), ",")
}

// longest bounds every wait for something that comes: only a failure takes so
// long, however busy the machine is.
const longest = 3 * time.Minute

// rig is a keeper in a process of its own.
type rig struct {
	t   *testing.T
	dir string
	opt Options
	*Client
}

func newRig(t *testing.T, gateway bool) *rig {
	t.Helper()
	r := &rig{t: t, dir: t.TempDir()}
	r.opt = Options{DataDir: r.dir, Version: "test"}
	if gateway {
		r.opt.Gateway = []string{os.Args[0], "role=gateway"}
		r.opt.Launch = []string{os.Args[0], "role=launch"}
	}
	r.start()
	t.Cleanup(r.cleanup)
	if gateway {
		waitUntil(t, func() bool {
			info, err := r.Ping(t.Context())
			return err == nil && info.GatewayPID > 0
		})
	}
	return r
}

// start starts a keeper; its starter is a shell that ends at once.
func (r *rig) start() {
	r.t.Helper()
	r.t.Setenv("GORACE", "atexit_sleep_ms=0") // the keeper ends at once
	options, err := json.Marshal(r.opt)
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(r.t.Context(), longest)
	defer cancel()
	r.Client, err = ensure(ctx, r.dir, []string{os.Args[0], "role=keeper", string(options)})
	if err != nil {
		r.t.Fatalf("%v\n%s", err, r.log())
	}
}

func (r *rig) log() string {
	b, _ := os.ReadFile(filepath.Join(r.dir, "keep.log"))
	return string(b)
}

// cleanup ends instances, by the pids that the keeper knows, then the keeper.
func (r *rig) cleanup() {
	ctx, cancel := context.WithTimeout(context.Background(), longest)
	defer cancel()
	all, err := r.List(ctx)
	if err != nil {
		r.t.Errorf("list: %v\n%s", err, r.log())
		return
	}
	for _, p := range all {
		if p.Exit == nil && p.PID > 0 {
			_ = unix.Kill(p.PID, unix.SIGKILL)
		}
	}
	info, err := r.Ping(ctx)
	if err != nil {
		r.t.Error(err)
		return
	}
	pidfd, err := unix.PidfdOpen(info.PID, 0)
	if err != nil {
		r.t.Error(err)
		return
	}
	defer unix.Close(pidfd)
	if err := r.Stop(ctx, true); err != nil {
		r.t.Error(err)
	}
	if !awaitEnd(pidfd, longest) {
		r.t.Errorf("the keeper does not end\n%s", r.log())
	}
	if r.t.Failed() || strings.Contains(r.log(), "DATA RACE") || strings.Contains(r.log(), "goleak") {
		r.t.Errorf("keeper's log:\n%s", r.log())
	}
}

func (r *rig) process(id, script string) kiln.Process {
	return kiln.Process{
		ID: id, Dir: "/", PIDFile: filepath.Join(r.dir, id+".pid"), LogDir: filepath.Join(r.dir, "logs", "e", id),
		Command: []string{os.Args[0], "role=runtime", filepath.Join(r.dir, id+".pid"), script},
	}
}

func (r *rig) run(id, script string) kiln.ProcessStatus {
	r.t.Helper()
	s, err := r.Start(r.t.Context(), r.process(id, script))
	if err != nil {
		r.t.Fatalf("%v\n%s", err, r.log())
	}
	return s
}

// exit waits until a process ended.
func (r *rig) exit(id string) kiln.Exit {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), longest)
	defer cancel()
	changes, err := r.Watch(ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() {
		cancel()
		for range changes {
		}
	}()
	for s := range changes {
		if s.ID == id && s.Exit != nil {
			return *s.Exit
		}
	}
	r.t.Fatalf("%s does not end\n%s", id, r.log())
	return kiln.Exit{}
}

// killKeeper kills the keeper and waits until it is gone.
func (r *rig) killKeeper() {
	r.t.Helper()
	info, err := r.Ping(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	r.kill(info.PID)
}

func (r *rig) kill(pid int) {
	r.t.Helper()
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	defer unix.Close(pidfd)
	if err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0); err != nil {
		r.t.Fatal(err)
	}
	if !awaitEnd(pidfd, longest) {
		r.t.Fatalf("process %d does not end", pid)
	}
}

// dead says whether a process is gone, but for being waited for.
func dead(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.HasPrefix(string(b[bytes.LastIndexByte(b, ')')+1:]), " Z")
}

// ask connects and reads one line.
func ask(network, address string) (string, error) {
	c, err := net.DialTimeout(network, address, longest)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(longest))
	return bufio.NewReader(c).ReadString('\n')
}

// freePort is a port of TCP that was free just now.
func freePort(t *testing.T) int {
	t.Helper()
	port, err := kilntest.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return port
}
