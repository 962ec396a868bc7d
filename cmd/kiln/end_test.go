package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/kilnproject/kiln"
)

func TestProcessOneOfEachInstanceIsAskedToEnd(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("makes PID namespaces")
	}
	// An instance of two processes, of which the first ends by itself when it
	// is asked, and tells how often it was.
	dir := t.TempDir()
	instance := exec.Command("sh", "-c", `trap 'echo asked >>"$1"/asked; exit 3' TERM; sleep 1000 & echo >"$1"/up; wait`, "sh", dir)
	instance.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	other := exec.Command("sleep", "1000") // in the group, and in no namespace of its own
	fifo := filepath.Join(dir, "up")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, one := range []*exec.Cmd{instance, other} {
		if err := one.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = one.Process.Kill(); _ = one.Wait() })
	}
	if _, err := os.ReadFile(fifo); err != nil { // its trap is set
		t.Fatal(err)
	}
	for _, hierarchy := range []string{"", "pids"} { // version 2, and version 1
		group := filepath.Join(dir, hierarchy, "kiln.slice", "x.service", "instances")
		write := func(name string, pid int) {
			t.Helper()
			if err := os.MkdirAll(filepath.Join(group, name), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(group, name, "cgroup.procs"), []byte(strconv.Itoa(pid)+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		write("a", instance.Process.Pid)
		write("b", other.Process.Pid)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- endInstances(ctx, dir, "/kiln.slice/x.service/instances") }()
	var status *exec.ExitError
	if err := instance.Wait(); !errors.As(err, &status) || status.ExitCode() != 3 {
		t.Fatalf("the instance: %v", err)
	}
	cancel() // the files here do not change when processes end
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("it did not wait for those that are left: %v", err)
	}
	if asked, err := os.ReadFile(filepath.Join(dir, "asked")); err != nil || strings.Count(string(asked), "asked") != 1 {
		t.Errorf("%q %v", asked, err)
	}
	if err := other.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("a process that leads no instance was ended: %v", err)
	}
}

func TestOnlyAGroupBelowTheRootIsEnded(t *testing.T) {
	for _, group := range []string{"/", "", "x", "/../x", "/kiln.slice/.."} {
		if err := endInstances(t.Context(), t.TempDir(), group); !errors.Is(err, &kiln.Error{Code: kiln.CodeInvalid}) {
			t.Errorf("%q: %v", group, err)
		}
	}
	if err := endInstances(t.Context(), t.TempDir(), "/kiln.slice/gone"); err != nil {
		t.Errorf("where nothing runs: %v", err)
	}
}
