package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnproject/kiln/internal/confine"
	"github.com/kilnproject/kiln/test/rig"
)

// rights is what the kernel says of a process: fields of /proc/PID/status.
func rights(pid int) (map[string]string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil, err
	}
	all := map[string]string{}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(line, ":")
		all[name], _, _ = strings.Cut(strings.TrimSpace(value), "\t")
	}
	return all, nil
}

// powerless says in what a process is more than docs/security.md allows.
func powerless(pid int) error {
	all, err := rights(pid)
	if err != nil {
		return err
	}
	for name, want := range map[string]string{
		"CapEff": "0000000000000000", "CapPrm": "0000000000000000", "CapInh": "0000000000000000",
		"CapBnd": "0000000000000000", "CapAmb": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2", "Groups": "",
	} {
		if all[name] != want {
			return fmt.Errorf("process %d has %s %q and should have %q", pid, name, all[name], want)
		}
	}
	if all["Uid"] == "0" || all["Gid"] == "0" {
		return fmt.Errorf("process %d is %s:%s", pid, all["Uid"], all["Gid"])
	}
	return nil
}

func TestProcessesHaveTheRightsThatTheDocumentationSays(t *testing.T) {
	r := newRig(t)
	r.Write("kiln.hcl", one("v1", 1, ""))
	up(r)
	if err := powerless(r.Processes()["gateway"]); err != nil {
		t.Errorf("gateway: %v", err)
	}
	if err := powerless(instances(r)[0].PID); err != nil {
		t.Errorf("instance: %v", err)
	}

	// A worker that waits for its task has given up everything by then.
	for task, program := range map[string]string{"flatten": "kiln", "strip": "kiln", "inspect": "kilnd", "list": "kilnd"} {
		w := exec.Command(r.Bin(program), "work", task)
		w.Dir = "/"
		in, err := w.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := confine.Start(w, 64739, 64739); err != nil {
			t.Fatal(err)
		}
		r.Eventually(rig.Longest, task+" to give up its rights", func() error { return powerless(w.Process.Pid) })
		if err := in.Close(); err != nil {
			t.Error(err)
		}
		if err := w.Wait(); err == nil {
			t.Errorf("%s without a request did something", task)
		}
	}
	for _, secret := range []string{"ledger", "store", "seal", "bake"} {
		info, err := os.Stat(filepath.Join(r.Data, secret))
		if err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v %v", secret, info, err)
		}
	}
}
