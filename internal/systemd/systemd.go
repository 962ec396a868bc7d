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
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// Running says whether systemd is process 1 (sd_booted(3)).
func Running() bool {
	info, err := os.Lstat("/run/systemd/system")
	return err == nil && info.IsDir()
}

// Ready tells systemd that the service of this process has started.
func Ready() error { return notify(daemon.SdNotifyReady) }

// Stopping tells systemd that the service of this process is about to end.
func Stopping() error { return notify(daemon.SdNotifyStopping) }

func notify(state string) error {
	if _, err := daemon.SdNotify(false, state); err != nil {
		return fmt.Errorf("tell systemd: %w", err)
	}
	return nil
}

// Watch tells systemd, until ctx ends, that this process is alive, as often as
// its unit's watchdog asks for and whenever alive returns nil. A unit without a
// watchdog is not told.
func Watch(ctx context.Context, alive func(context.Context) error, failed func(error)) error {
	limit, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return fmt.Errorf("read the watchdog's time: %w", err)
	}
	if limit <= 0 {
		return nil
	}
	tick := time.NewTicker(limit / 3)
	defer tick.Stop()
	for {
		err := beat(ctx, limit/3, alive)
		if err != nil && ctx.Err() == nil {
			failed(err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func beat(ctx context.Context, limit time.Duration, alive func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := alive(ctx); err != nil {
		return err
	}
	return notify(daemon.SdNotifyWatchdog)
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
