package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/install"
	"github.com/kilnproject/kiln/internal/server"
	"github.com/kilnproject/kiln/internal/systemd"
	"github.com/kilnproject/kiln/internal/upgrade"
)

const (
	startTimeout = time.Minute
	endTimeout   = 30 * time.Second
	pollEvery    = 10 * time.Millisecond
)

// running returns a client of the control plane, which is started in the
// background where none runs.
func (a *app) running(ctx context.Context, p *progress) (*server.Client, error) {
	client, err := a.client()
	if err != nil {
		return nil, err
	}
	_, err = client.Version(ctx)
	if err == nil || !unavailable(err) {
		return client, err
	}
	if remote, _ := a.remote(); remote {
		return client, err // on another machine nothing is started
	}
	return client, a.startDaemon(ctx, client, p)
}

func unavailable(err error) bool { return errors.Is(err, &kiln.Error{Code: kiln.CodeUnavailable}) }

// startDaemon starts kilnd, detached from this terminal, and waits until it
// answers.
func (a *app) startDaemon(ctx context.Context, client *server.Client, p *progress) error {
	if os.Geteuid() != 0 {
		return kiln.Errorf(kiln.CodeUnavailable, "sudo kiln up starts it; members of the group "+server.GroupName+" may use it then",
			"no control plane runs on %s, and only root can start one", a.data)
	}
	data, err := filepath.Abs(a.data)
	if err != nil {
		return err
	}
	if installed(ctx, data) {
		return a.startUnit(ctx, client, p)
	}
	if err := a.resumeUpgrade(ctx, data); err != nil {
		return err
	}
	program, err := findDaemon()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(data, 0o711); err != nil { //nolint:gosec // what is inside has modes of its own; the gateway passes through
		return kiln.Errorf(kiln.CodeFailed, "--data names another directory", "make the data directory: %w", err)
	}
	p.note("starting the control plane", false)
	d, err := launch(data, program, upgrade.Command{Args: []string{"--data", data}, Env: a.Environ})
	if err != nil {
		return kiln.Errorf(kiln.CodeUnavailable, "", "start %s: %w", program, err)
	}
	if err := d.await(ctx, client); err != nil {
		return err
	}
	p.note("starting the control plane", true)
	return nil
}

// installed says whether systemd has a unit of the control plane of a data
// directory: then systemd starts it, and nobody else.
func installed(ctx context.Context, data string) bool {
	if !systemd.Running() {
		return false
	}
	unit, err := systemd.Show(ctx, install.DaemonUnit, "LoadState", "Environment")
	return err == nil && unit["LoadState"] == "loaded" && slices.Contains(strings.Fields(unit["Environment"]), "KILN_DATA="+data)
}

// startUnit has systemd start the control plane, and waits until it answers.
func (a *app) startUnit(ctx context.Context, client *server.Client, p *progress) error {
	for _, name := range []string{"KILN_LISTEN_HTTP", "KILN_LISTEN_HTTPS", "KILN_STORAGE_MAX"} {
		if a.getenv(name) != "" {
			a.say("%s has no effect: systemd starts the control plane, with what %s says", name, install.ConfigFile)
		}
	}
	p.note("starting "+install.DaemonUnit, false)
	if err := systemd.Start(ctx, install.DaemonUnit); err != nil {
		return kiln.Errorf(kiln.CodeUnavailable, "systemctl status "+install.DaemonUnit, "%w", err)
	}
	d := &daemon{unit: install.DaemonUnit}
	if err := d.await(ctx, client); err != nil {
		return err
	}
	p.note("starting "+install.DaemonUnit, true)
	return nil
}

// findDaemon looks beside this executable and then along PATH.
func findDaemon() (string, error) {
	if self, err := os.Executable(); err == nil {
		if self, err = filepath.EvalSymlinks(self); err == nil {
			beside := filepath.Join(filepath.Dir(self), "kilnd")
			if _, err := exec.LookPath(beside); err == nil {
				return beside, nil
			}
		}
	}
	found, err := exec.LookPath("kilnd")
	if err != nil {
		return "", kiln.Errorf(kiln.CodeUnavailable, "put kilnd beside kiln or into PATH", "kilnd is needed for this, and it is not there")
	}
	return found, nil
}

// daemon is a kilnd that this command has started.
type daemon struct {
	unit   string // systemd's; empty for one of this command's own
	log    string
	offset int64 // of the log, where this start begins
	exited chan error
	pid    int
	limit  time.Duration // of its start; 0 is startTimeout
}

func launch(data, program string, c upgrade.Command) (*daemon, error) {
	d := &daemon{log: filepath.Join(data, "kilnd.log"), exited: make(chan error, 1)}
	log, err := os.OpenFile(d.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	if d.offset, err = log.Seek(0, io.SeekEnd); err != nil {
		return nil, err
	}
	// Not CommandContext: it must outlive this command.
	command := exec.Command(program, c.Args...) //nolint:noctx // see above
	command.Env = c.Env
	command.Dir = "/"
	command.Stdout, command.Stderr = log, log
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := command.Start(); err != nil {
		return nil, err
	}
	d.pid = command.Process.Pid
	go func() { d.exited <- command.Wait() }() // ends with kilnd or with this process
	return d, nil
}

// await returns once the control plane answers. A kilnd that ended because
// another was faster is no failure.
func (d *daemon) await(ctx context.Context, client *server.Client) error {
	limit := startTimeout
	if d.limit > 0 {
		limit = d.limit
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	exited := d.exited
	for {
		if _, err := client.Version(ctx); err == nil || !unavailable(err) && ctx.Err() == nil {
			return err
		}
		select {
		case err := <-exited:
			var status *exec.ExitError
			if !errors.As(err, &status) || status.ExitCode() != ExitConflict {
				return d.failed("kilnd ended at once: " + exitText(err))
			}
			exited = nil // another start was faster: wait for that one
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return d.failed("kilnd does not answer after " + limit.String())
			}
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// exitText is how kilnd ended. On a full disk its log says nothing.
func exitText(err error) string {
	var status *exec.ExitError
	switch {
	case err == nil:
		return "exit status 0"
	case errors.As(err, &status) && status.ExitCode() == ExitNoRoom:
		return "the disk, memory or addresses do not suffice (exit status 8)"
	default:
		return err.Error()
	}
}

// failed is an error with the last lines that this start wrote.
func (d *daemon) failed(message string) error {
	if d.unit != "" {
		return kiln.Errorf(kiln.CodeUnavailable, "journalctl -u "+d.unit+" says why; kiln doctor says what the machine lacks", "%s", message)
	}
	return &kiln.Error{
		Code: kiln.CodeUnavailable, Message: message, Hint: "all of it is in " + d.log + "; kiln doctor says what the machine lacks",
		Evidence: lastLines(d.log, d.offset, 12),
	}
}

// lastLines returns at most n lines of what a file holds after offset.
func lastLines(path string, offset int64, n int) []string {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	const most = 64 << 10
	if info, err := f.Stat(); err == nil {
		if info.Size() < offset { // it was emptied meanwhile
			offset = 0
		}
		offset = max(offset, info.Size()-most)
	}
	b, err := io.ReadAll(io.NewSectionReader(f, offset, most))
	if err != nil || len(bytes.TrimSpace(b)) == 0 {
		return nil
	}
	lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return lines[max(0, len(lines)-n):]
}

// awaitGone returns once the control plane has ended: its socket is gone and
// the data directory is unlocked.
func (a *app) awaitGone(ctx context.Context, client *server.Client) error {
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		if _, err := client.Version(ctx); unavailable(err) && !a.runsHere() {
			return nil
		}
		select {
		case <-ctx.Done():
			return kiln.Errorf(kiln.CodeFailed, "kilnd.log in the data directory may say why", "the control plane has not ended after %s", endTimeout)
		case <-tick.C:
		}
	}
}

// runsHere says whether a control plane has the data directory of this machine.
func (a *app) runsHere() bool {
	remote, _ := a.remote()
	return !remote && locked(filepath.Join(a.data, "kilnd.lock"))
}

// locked says whether a process holds the lock; one that may not be asked
// about counts as free.
func locked(path string) bool {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	return errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// interactive says whether a person can answer.
func (a *app) interactive() bool {
	f, ok := a.In.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
