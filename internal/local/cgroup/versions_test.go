package cgroup

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// tree is a machine's hierarchies as plain folders: the files of one instance,
// "<mount>/<parent>/one/<file>", by controller.
func tree(t *testing.T, controllers []string, files map[string]string) *Tree {
	t.Helper()
	dir := t.TempDir()
	out := &Tree{parent: "kiln-test", mounts: map[string]string{}}
	for _, c := range controllers {
		out.mounts[c] = filepath.Join(dir, "v1", c)
		if c == "" {
			out.mounts[c] = filepath.Join(dir, "v2")
		}
	}
	for name, content := range files {
		controller, file, ok := strings.Cut(name, "/")
		if !ok {
			controller, file = "", name
		}
		at := filepath.Join(out.mounts[controller], "kiln-test", "one")
		if err := os.MkdirAll(at, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(at, file), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func wrote(t *testing.T, tr *Tree, controller, file string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(tr.mounts[controller], "kiln-test", "one", file))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestVersion2(t *testing.T) {
	tr := tree(t, []string{""}, map[string]string{
		"memory.max": "67108864\n", "memory.events": "low 0\nhigh 0\nmax 9\noom 1\noom_kill 1\noom_group_kill 0\n",
		"cgroup.freeze": "0\n", "cgroup.kill": "", "cgroup.procs": "7\n12\n0\n", "pids.events": "max 3\n",
	})
	if n, err := tr.MemoryLimit("one"); n != 64<<20 || err != nil {
		t.Errorf("limit %d, %v", n, err)
	}
	if !tr.MemoryKilled("one") || tr.MemoryKilled("two") {
		t.Error("who was killed by memory is not told")
	}
	if !tr.ProcessesRefused("one") || tr.ProcessesRefused("two") {
		t.Error("who was refused processes is not told")
	}
	if err := tr.Freeze("one"); err != nil || wrote(t, tr, "", "cgroup.freeze") != "1" {
		t.Errorf("freeze: %v", err)
	}
	if err := tr.Thaw("one"); err != nil || wrote(t, tr, "", "cgroup.freeze") != "0" {
		t.Errorf("thaw: %v", err)
	}
	if err := tr.Kill("one"); err != nil || wrote(t, tr, "", "cgroup.kill") != "1" {
		t.Errorf("kill: %v", err)
	}
	if pids, err := tr.Processes("one"); !slices.Equal(pids, []int{7, 12}) || err != nil {
		t.Errorf("processes %v, %v", pids, err)
	}
	if err := tr.Kill("two"); err != nil {
		t.Errorf("kill of nobody: %v", err)
	}
	none := tree(t, []string{""}, map[string]string{"memory.max": "max\n", "memory.events": "oom 3\noom_kill 0\n"})
	if n, err := none.MemoryLimit("one"); n != math.MaxInt64 || err != nil {
		t.Errorf("no limit is %d, %v", n, err)
	}
	if none.MemoryKilled("one") {
		t.Error("one that was at its limit was not killed")
	}
}

func TestVersion1(t *testing.T) {
	tr := tree(t, []string{"memory", "freezer", "pids"}, map[string]string{
		"memory/memory.limit_in_bytes": "67108864\n", "memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
		"freezer/freezer.state": "THAWED\n", "pids/cgroup.procs": "", "pids/pids.events": "max 0\n",
	})
	if n, err := tr.MemoryLimit("one"); n != 64<<20 || err != nil {
		t.Errorf("limit %d, %v", n, err)
	}
	if !tr.MemoryKilled("one") {
		t.Error("who was killed by memory is not told")
	}
	if tr.ProcessesRefused("one") {
		t.Error("one that was refused nothing")
	}
	if err := tr.Freeze("one"); err != nil || wrote(t, tr, "freezer", "freezer.state") != "FROZEN" {
		t.Errorf("freeze: %v", err)
	}
	if err := tr.Kill("one"); err != nil || wrote(t, tr, "freezer", "freezer.state") != "THAWED" {
		t.Errorf("kill, which lets the frozen die: %v", err)
	}
}

// TestSwapOfVersion2 is asked of the groups that are there.
func TestSwapOfVersion2(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		want  bool
	}{
		"counted":     {map[string]string{"memory.max": "max", "memory.swap.max": "max"}, true},
		"not counted": {map[string]string{"memory.max": "max"}, false},
	} {
		tr := tree(t, []string{""}, nil)
		slice := filepath.Join(tr.mounts[""], "system.slice")
		if err := os.MkdirAll(slice, 0o700); err != nil {
			t.Fatal(err)
		}
		for file, content := range c.files {
			if err := os.WriteFile(filepath.Join(slice, file), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got := tr.Swap(); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
