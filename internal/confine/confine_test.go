package confine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
)

// TestMain is also the worker that the tests start.
func TestMain(m *testing.M) {
	tasks := map[string]Task{"try": try, "write": write, "fail": fail, "hang": hang}
	if len(os.Args) != 2 || strings.HasPrefix(os.Args[1], "-") {
		os.Exit(m.Run())
	}
	do, ok := tasks[os.Args[1]]
	if !ok {
		os.Exit(3)
	}
	if err := Serve(context.Background(), do); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func self(t *testing.T) Program {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return Program{Path: path}
}

// try does what a worker must not be able to do and tells what succeeded.
func try(context.Context, json.RawMessage, []*os.File) (any, error) {
	open := func(path string, flags int) func() error {
		return func() error {
			f, err := os.OpenFile(path, flags, 0o600)
			if err == nil {
				_ = f.Close()
			}
			return err
		}
	}
	attempts := map[string]func() error{
		"read a file":      open("/proc/self/status", os.O_RDONLY),
		"make a file":      open("/tmp/kiln-confine-test", os.O_CREATE|os.O_WRONLY),
		"stat":             func() error { _, err := os.Stat("/"); return err },
		"connect":          func() error { _, err := net.Dial("tcp", "127.0.0.1:1"); return err },
		"listen":           func() error { _, err := net.Listen("tcp", "127.0.0.1:0"); return err },
		"start a program":  func() error { return exec.Command("/bin/true").Run() },
		"fork":             func() error { return errnoOf(unix.RawSyscall(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0)) },
		"trace":            func() error { return unix.PtraceAttach(1) },
		"mount":            func() error { return unix.Mount("none", "/", "tmpfs", 0, "") },
		"be root":          func() error { return unix.Setuid(0) },
		"signal others":    func() error { return unix.Kill(os.Getppid(), 0) },
		"make a namespace": func() error { return unix.Unshare(unix.CLONE_NEWUSER) },
	}
	var done []string
	for name, do := range attempts {
		// Refused by the filter, whatever user this is.
		if err := do(); !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENOSYS) {
			done = append(done, fmt.Sprintf("%s: %v", name, err))
		}
	}
	slices.Sort(done)
	return done, nil
}

func errnoOf(_, _ uintptr, e unix.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}

func TestAWorkerCanDoNothingElse(t *testing.T) {
	var done []string
	if err := self(t).Call(t.Context(), "try", nil, &done); err != nil {
		t.Fatal(err)
	}
	for _, what := range done {
		t.Errorf("a worker could %s", what)
	}
}

// write copies the first file to the second one with many threads.
func write(_ context.Context, request json.RawMessage, files []*os.File) (any, error) {
	var suffix string
	if err := json.Unmarshal(request, &suffix); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.NewSectionReader(files[0], 0, 1<<20))
	if err != nil {
		return nil, err
	}
	_, err = files[1].WriteAt(append(b, suffix...), 0)
	return len(b), err
}

func TestAWorkerWorksOnOpenFiles(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "in"), []byte("some"), 0o600); err != nil {
		t.Fatal(err)
	}
	in, err := os.Open(filepath.Join(dir, "in"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close() }()
	out, err := os.Create(filepath.Join(dir, "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	var n int
	if err := self(t).Call(t.Context(), "write", "thing", &n, in, out); err != nil || n != 4 {
		t.Fatal(n, err)
	}
	if b, err := os.ReadFile(out.Name()); err != nil || string(b) != "something" {
		t.Errorf("%q %v", b, err)
	}
	if err := self(t).Call(t.Context(), "write", "where nobody asks for an answer", nil, in, out); err != nil {
		t.Error(err)
	}
	// What is open for reading only stays so.
	err = self(t).Call(t.Context(), "write", "", &n, in, in)
	if k := (*kiln.Error)(nil); !errors.As(err, &k) || k.Code != kiln.CodeFailed {
		t.Errorf("wrote to what is open for reading: %v", err)
	}
}

func fail(context.Context, json.RawMessage, []*os.File) (any, error) {
	return "half", fmt.Errorf("wrapped: %w", kiln.Errorf(kiln.CodeInvalid, "do that", "this is wrong"))
}

func TestAnErrorArrivesWhole(t *testing.T) {
	var answer string
	err := self(t).Call(t.Context(), "fail", nil, &answer)
	if k := (*kiln.Error)(nil); !errors.As(err, &k) || k.Code != kiln.CodeInvalid || k.Hint != "do that" || k.Message != "this is wrong" || answer != "half" {
		t.Errorf("%v, %q", err, answer)
	}
	err = self(t).Call(t.Context(), "unknown-to-all", nil, &answer)
	if k := (*kiln.Error)(nil); !errors.As(err, &k) {
		t.Errorf("no such task: %v", err)
	}
	err = Program{Path: "/no/such/program"}.Call(t.Context(), "fail", nil, &answer)
	if k := (*kiln.Error)(nil); !errors.As(err, &k) || k.Code != kiln.CodeUnavailable || !strings.Contains(k.Hint, "/no/such/program") {
		t.Errorf("no program: %v", err)
	}
}

// hang says who it is and then waits for the end of those who asked.
func hang(ctx context.Context, _ json.RawMessage, files []*os.File) (any, error) {
	if _, err := fmt.Fprintln(files[0], os.Getpid()); err != nil {
		return nil, err
	}
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestAWorkerEndsWithTheOneWhoAsked(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- self(t).Call(ctx, "hang", nil, nil, w) }()
	var pid int
	if _, err := fmt.Fscan(r, &pid); err != nil {
		t.Fatal(err)
	}
	if score, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid)); err != nil || string(score) != "500\n" {
		t.Errorf("short memory does not end it first: %q %v", score, err)
	}
	cancel()
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("called off: %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("it goes on")
	}
	_ = w.Close()
}
