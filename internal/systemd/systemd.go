// Package systemd is what Kiln says to systemd and asks of it on a machine
// where that is process 1: that a service is ready and alive, to start a unit,
// and for a control group that is Kiln's own. What is said to a systemd that is
// not there is lost without an error; who asks, asks Running first. The package
// knows none of Kiln's units.
package systemd

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// Running says whether systemd is process 1 (sd_booted(3)).
func Running() bool {
	info, err := os.Lstat("/run/systemd/system")
	return err == nil && info.IsDir()
}

// Service is what systemd told this process about the service that it is. The
// zero value is that of a process that systemd did not start.
type Service struct {
	socket   string        // where systemd is told
	watchdog time.Duration // how long it waits for the next sign of life; 0 for ever
}

// Take takes what systemd told this process out of its environment: programs
// that it starts must not believe that they are meant. runc would wait for its
// instance to be ready, for ever.
func Take() (Service, error) {
	s := Service{socket: os.Getenv("NOTIFY_SOCKET")}
	limit, pid := os.Getenv("WATCHDOG_USEC"), os.Getenv("WATCHDOG_PID")
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} {
		if err := os.Unsetenv(name); err != nil {
			return s, err
		}
	}
	if limit == "" || pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return s, nil
	}
	microseconds, err := strconv.ParseInt(limit, 10, 64)
	if err != nil || microseconds <= 0 {
		return s, fmt.Errorf("WATCHDOG_USEC is %q", limit)
	}
	s.watchdog = time.Duration(microseconds) * time.Microsecond
	return s, nil
}

// Ready tells systemd that the service has started.
func (s Service) Ready() error { return s.notify("READY=1") }

// notify sends a state, as sd_notify(3) does.
func (s Service) notify(state string) error {
	if s.socket == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: s.socket, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("tell systemd: %w", err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write([]byte(state)); err != nil {
		return fmt.Errorf("tell systemd: %w", err)
	}
	return nil
}

// Watch tells systemd, until ctx ends, that the service lives, as often as its
// unit's watchdog asks for and whenever alive returns nil; failed gets its
// errors. A unit without a watchdog is not told.
func (s Service) Watch(ctx context.Context, alive func(context.Context) error, failed func(error)) {
	if s.watchdog <= 0 {
		return
	}
	every := s.watchdog / 3
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if err := s.beat(ctx, every, alive); err != nil && ctx.Err() == nil {
			failed(err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (s Service) beat(ctx context.Context, limit time.Duration, alive func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := alive(ctx); err != nil {
		return err
	}
	return s.notify("WATCHDOG=1")
}

// Start asks for units to be started and does not wait until they are.
func Start(ctx context.Context, units ...string) error {
	_, err := run(ctx, "systemctl", append([]string{"start", "--no-block", "--"}, units...)...)
	return err
}

// Show returns properties of a unit. One that does not exist has the LoadState
// "not-found".
func Show(ctx context.Context, unit string, properties ...string) (map[string]string, error) {
	out, err := run(ctx, "systemctl", "show", "--property="+strings.Join(properties, ","), "--", unit)
	if err != nil {
		return nil, err
	}
	all := map[string]string{}
	for line := range strings.Lines(out) {
		if name, value, ok := strings.Cut(strings.TrimRight(line, "\n"), "="); ok {
			all[name] = value
		}
	}
	return all, nil
}

// Run runs systemctl.
func Run(ctx context.Context, args ...string) error {
	_, err := run(ctx, "systemctl", args...)
	return err
}

// runLimit bounds what waits for systemd, which waits for a unit's end.
const runLimit = 3 * time.Minute

func run(ctx context.Context, program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, runLimit)
	defer cancel()
	command := exec.CommandContext(ctx, program, args...)
	command.WaitDelay = time.Second
	var out, speech bytes.Buffer
	command.Stdout, command.Stderr = &out, &speech
	if err := command.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, strings.Join(strings.Fields(speech.String()), " "))
	}
	return out.String(), nil
}
