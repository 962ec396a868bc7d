package rig

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// LoseMachine takes from the machine what a restart takes: all processes of
// the rig, their links, rules, mounts and control groups. The disk stays.
func (r *Rig) LoseMachine() error {
	r.KillDaemon()
	for deadline := time.Now().Add(Longest); ; { // the keeper starts the gateway again until it is dead itself
		all := r.Inhabitants()
		if len(all) == 0 {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v do not end", all)
		}
		for _, pid := range all {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
	errs := []error{r.loseNetwork(), r.loseMounts()}
	groups, _ := filepath.Glob("/sys/fs/cgroup/*/kiln-" + r.Tag())
	for _, group := range append(groups, "/sys/fs/cgroup/kiln-"+r.Tag()) {
		for _, name := range folders(group) {
			errs = append(errs, os.Remove(filepath.Join(group, name)))
		}
		if err := os.Remove(group); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (r *Rig) loseNetwork() error {
	_ = exec.Command("nft", "delete", "table", "inet", "kiln_"+r.Tag()).Run()
	out, err := exec.Command("ip", "-o", "link").Output()
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(out)) {
		if fields := strings.Fields(line); len(fields) > 1 && strings.Contains(fields[1], "k"+r.Tag()) {
			name, _, _ := strings.Cut(strings.TrimSuffix(fields[1], ":"), "@")
			_ = exec.Command("ip", "link", "delete", name).Run() // the namespace of its peer may just have gone
		}
	}
	return nil
}

func (r *Rig) loseMounts() error {
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	for _, line := range slices.Backward(strings.Split(string(b), "\n")) {
		fields := strings.Fields(line)
		if len(fields) > 1 && (strings.HasPrefix(fields[1], r.Data+"/") || strings.HasPrefix(fields[1], "/run/kiln/"+r.Tag()+"/")) {
			if err := unix.Unmount(fields[1], unix.MNT_DETACH); err != nil {
				return fmt.Errorf("unmount %s: %w", fields[1], err)
			}
		}
	}
	return os.RemoveAll("/run/kiln/" + r.Tag())
}
