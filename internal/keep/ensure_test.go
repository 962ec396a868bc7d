package keep

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/kilnproject/kiln"
)

// ensure returns a client of the keeper of a data directory, which it starts
// with the command when none answers. The keeper outlives the caller; what it
// says goes to DIR/keep.log.
func ensure(ctx context.Context, dataDir string, command []string) (*Client, error) {
	c := &Client{socket: filepath.Join(dataDir, "run", "keep.sock")}
	_, err := c.Ping(ctx)
	if err == nil || !errors.Is(err, &kiln.Error{Code: kiln.CodeUnavailable}) {
		return c, err
	}
	ended, err := startKeeper(dataDir, command)
	if err != nil {
		return nil, err
	}
	for wait := 2 * time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		if _, err = c.Ping(ctx); err == nil {
			return c, nil
		}
		select {
		case why := <-ended:
			if _, err = c.Ping(ctx); err == nil { // another one was quicker
				return c, nil
			}
			return nil, kiln.Errorf(kiln.CodeUnavailable, "see keep.log in the data directory", "the keeper ended at its start: %w", why)
		case <-ctx.Done():
			return nil, errors.Join(err, context.Cause(ctx))
		case <-time.After(wait):
		}
	}
}

// startKeeper starts the command in a session of its own and sends its end to
// the channel.
func startKeeper(dataDir string, command []string) (<-chan error, error) {
	if err := os.MkdirAll(dataDir, 0o700); err != nil {
		return nil, fmt.Errorf("make the data directory: %w", err)
	}
	log, err := os.OpenFile(filepath.Join(dataDir, "keep.log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the keeper's log: %w", err)
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(command[0], command[1:]...) // it outlives every context
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the keeper: %w", err)
	}
	ended := make(chan error, 1)
	go func() { // as long as the keeper lives: who starts a child waits for it
		err := cmd.Wait()
		if err == nil {
			err = errors.New("without an error")
		}
		ended <- err
	}()
	return ended, nil
}
