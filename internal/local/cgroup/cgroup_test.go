package cgroup_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kilnproject/kiln/internal/local/cgroup"
)

func TestFreezeKillRemove(t *testing.T) {
	if os.Geteuid() != 0 || os.Getenv("KILN_TEST_ROOT") != "1" {
		t.Skip("needs root and KILN_TEST_ROOT=1")
	}
	parent := "kiln-grouptest-" + strconv.Itoa(os.Getpid()) // several may run on one machine
	tree, err := cgroup.Open(parent)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	t.Cleanup(cancel)
	t.Cleanup(func() {
		if err := tree.RemoveAll(ctx); err != nil {
			t.Error(err)
		}
	})
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	enter(t, parent+"/one/below", cmd.Process.Pid)
	enter(t, parent+"/one", cmd.Process.Pid)
	if list, err := tree.Instances(); err != nil || !slices.Equal(list, []string{"one"}) {
		t.Errorf("instances %v %v", list, err)
	}
	if pids, err := tree.Processes("one"); err != nil || !slices.Equal(pids, []int{cmd.Process.Pid}) {
		t.Errorf("processes %v %v", pids, err)
	}
	if tree.MemoryKilled("one") {
		t.Error("memory killed it")
	}
	if err := tree.Freeze("one"); err != nil {
		t.Fatal(err)
	}
	if err := tree.Kill("one"); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("a frozen process ended with %v", err)
	}
	if err := tree.Remove(ctx, "one"); err != nil {
		t.Fatal(err)
	}
	if list, err := tree.Instances(); err != nil || len(list) != 0 {
		t.Errorf("instances after removal: %v %v", list, err)
	}
	if err := tree.Remove(ctx, "one"); err != nil {
		t.Errorf("removing nothing: %v", err)
	}
}

// enter makes a group in every hierarchy and moves the process into it.
func enter(t *testing.T, group string, pid int) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if !strings.Contains(line, " - cgroup") || !strings.HasPrefix(f[4], "/sys/fs/cgroup") {
			continue
		}
		dir := filepath.Join(f[4], group)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(line, "cpuset") { // wants to be set up before it takes anybody
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
			t.Fatal(err)
		}
	}
}
