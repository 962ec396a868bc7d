package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/kilnproject/kiln"
)

// trialTimeout bounds one trial of a runtime.
const trialTimeout = 20 * time.Second

// Runtime is an OCI runtime that was seen to work here.
type Runtime struct {
	Path string // of its executable
	Name string // "runc"
}

// Run is the command that runs a bundle, without the instance's name and
// further flags. No session keyring is made for it: the kernel gives a user
// 200 keys, which would be 200 instances per environment, and the seccomp
// profile allows no call that could use one.
func (r Runtime) Run(state, bundle string) []string {
	return []string{r.Path, "--root", state, "run", "--no-new-keyring", "--bundle", bundle}
}

// FindInit looks for an init that reaps and forwards signals.
func FindInit() (string, error) {
	for _, name := range []string{"catatonit", "tini-static", "docker-init"} {
		if p, err := exec.LookPath(name); err == nil {
			return filepath.EvalSymlinks(p)
		}
	}
	return "", kiln.Errorf(kiln.CodeUnavailable, "apt-get install catatonit", "no init for instances was found (catatonit, tini-static or docker-init)")
}

// Pick tries the runtimes of this machine, the fastest first, by running a
// container with all that instances use, and returns the first that can. dir
// must be reachable by other users; group is a control group to try in.
func Pick(ctx context.Context, dir, init string, uidBase uint32, group string, swap bool) (Runtime, error) {
	var errs []error
	for _, name := range []string{"crun", "runc"} {
		p, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		if err = try(ctx, p, filepath.Join(dir, "try-"+name), init, uidBase, group+"/try-"+name, swap); err == nil {
			return Runtime{Path: p, Name: name}, nil
		}
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		return Runtime{}, kiln.Errorf(kiln.CodeUnavailable, "apt-get install runc", "no OCI runtime was found (runc or crun)")
	}
	return Runtime{}, kiln.Errorf(kiln.CodeUnavailable, "kiln doctor", "no OCI runtime works here: %w", errors.Join(errs...))
}

func try(ctx context.Context, runtime, dir, init string, uidBase uint32, group string, swap bool) (err error) {
	ctx, cancel := context.WithTimeout(ctx, trialTimeout)
	defer cancel()
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	root := filepath.Join(dir, "root")
	for _, d := range []string{"proc", "dev", "sys", "run", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil { //nolint:gosec // the trial's own root
			return err
		}
	}
	t, err := Prepare(Options{
		Template: kiln.Template{Service: "trial", Config: kiln.Config{
			NoInit: true, Command: []string{initTarget, "--version"},
			Limits: kiln.Limits{Memory: 64 << 20, CPU: 1, PIDs: 64, Files: 256},
		}},
		Sealed: root, Root: root, UIDBase: uidBase, Swap: swap,
	})
	if err != nil {
		return err
	}
	t.spec.Mounts = append(t.spec.Mounts, bind(init, initTarget, ""))
	config, err := t.Config(Instance{ID: filepath.Base(dir), Cgroup: group})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), config, 0o600); err != nil {
		return err
	}
	id := filepath.Base(dir)
	state := filepath.Join(dir, "state")
	var out bytes.Buffer
	command := append(Runtime{Path: runtime}.Run(state, dir), id)
	run := exec.CommandContext(ctx, command[0], command[1:]...) // a runtime found on PATH
	run.Stdout, run.Stderr = &out, &out
	if err := run.Run(); err != nil {
		_ = exec.CommandContext(ctx, runtime, "--root", state, "delete", "--force", id).Run() // the same
		return fmt.Errorf("try %s: %w: %s", filepath.Base(runtime), err, strings.TrimSpace(out.String()))
	}
	return nil
}
