package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/keep"
	"github.com/kilnproject/kiln/internal/systemd"
)

const (
	keeperStart = 20 * time.Second
	keeperPoll  = 5 * time.Millisecond
)

// keeperUnit is the variable that names the keeper's unit, where systemd keeps
// one: kilnd's own unit sets it.
const keeperUnit = "KILN_KEEPER_UNIT"

// keeper is the data directory's keeper: found, or started.
type keeper struct {
	data    string
	program string // the kiln executable
	// unit is what systemd starts in its place; empty for none. What kilnd
	// started itself would be in kilnd's unit and end with it.
	unit string
	log  *slog.Logger
}

// dial returns a client of the keeper, which is started when it does not
// answer.
func (k *keeper) dial(ctx context.Context) (*keep.Client, error) {
	socket := filepath.Join(k.data, "run", "keep.sock")
	client, err := keep.Dial(socket) //nolint:contextcheck // it bounds itself
	if err == nil {
		return client, nil
	}
	if !errors.Is(err, &kiln.Error{Code: kiln.CodeUnavailable}) {
		return nil, err
	}
	exited, err := k.start(ctx)
	if err != nil {
		return nil, fmt.Errorf("start the keeper: %w", err)
	}
	return k.await(ctx, socket, exited)
}

// start has systemd start the keeper, or runs "kiln keep" in a session of its
// own, whose end is sent then.
func (k *keeper) start(ctx context.Context) (<-chan error, error) {
	if k.unit != "" {
		k.log.Info("keeper is started by systemd", "unit", k.unit)
		return nil, systemd.Start(ctx, k.unit)
	}
	log, err := os.OpenFile(filepath.Join(k.data, "keep.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	// Not CommandContext: it must outlive this process.
	command := exec.Command(k.program, "keep", "--data", k.data) //nolint:noctx // see above
	command.Dir = "/"
	command.Env = []string{"PATH=" + searchPath(), "HOME=/root", "TZ=UTC"}
	command.Stdout, command.Stderr = log, log
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := command.Start(); err != nil {
		return nil, err
	}
	k.log.Info("keeper started", "pid", command.Process.Pid)
	exited := make(chan error, 1)
	go func() { exited <- command.Wait() }() // ends with the keeper or with this process
	return exited, nil
}

// searchPath is where the keeper finds the runtime.
func searchPath() string {
	if path := os.Getenv("PATH"); path != "" {
		return path
	}
	return "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
}

func (k *keeper) await(ctx context.Context, socket string, exited <-chan error) (*keep.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, keeperStart)
	defer cancel()
	tick := time.NewTicker(keeperPoll)
	defer tick.Stop()
	for {
		client, err := keep.Dial(socket) //nolint:contextcheck // it bounds itself
		if err == nil {
			return client, nil
		}
		select {
		case exit := <-exited:
			return nil, kiln.Errorf(kiln.CodeUnavailable, "keep.log in the data directory says why", "the keeper ended at once: %v", exit)
		case <-ctx.Done():
			return nil, kiln.Errorf(kiln.CodeUnavailable, k.where(), "the keeper does not answer: %w", err)
		case <-tick.C:
		}
	}
}

// where says what may tell why there is no keeper.
func (k *keeper) where() string {
	hint := "keep.log in the data directory may say why"
	if k.unit != "" {
		hint += ", and so may: systemctl status " + k.unit
	}
	return hint
}

// guard starts another keeper whenever the one that runs has died, until ctx
// ends or the keeper shall stop. Its client connects again by itself.
func (k *keeper) guard(ctx context.Context, client *keep.Client, stopping *atomic.Bool) error {
	for ctx.Err() == nil && !stopping.Load() {
		info, err := client.Ping(ctx)
		if err == nil {
			waitForEnd(ctx, info.PID)
			continue
		}
		if ctx.Err() != nil || stopping.Load() {
			return nil
		}
		k.log.Warn("keeper is gone, starting another", "error", err)
		if _, err := k.dial(ctx); err != nil {
			k.log.Error("keeper could not be started", "error", err)
			pause(ctx, time.Second)
		}
	}
	return nil
}

// waitForEnd returns when a process ends, which need not be a child, or ctx.
func waitForEnd(ctx context.Context, pid int) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		pause(ctx, keeperPoll)
		return
	}
	defer func() { _ = unix.Close(fd) }()
	for ctx.Err() == nil {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 1000)
		if n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// pause waits, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// findKiln is the kiln executable beside this one, or along PATH.
func findKiln() (string, error) {
	if self, err := os.Executable(); err == nil {
		if self, err = filepath.EvalSymlinks(self); err == nil {
			if beside, err := exec.LookPath(filepath.Join(filepath.Dir(self), "kiln")); err == nil {
				return beside, nil
			}
		}
	}
	found, err := exec.LookPath("kiln")
	if err != nil {
		return "", kiln.Errorf(kiln.CodeUnavailable, "put kiln beside kilnd or into PATH", "kiln is not there to run the keeper: %w", err)
	}
	return found, nil
}
