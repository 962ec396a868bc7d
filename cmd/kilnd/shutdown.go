package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/control"
)

// emptyLimit bounds the wait for instances that were told to end: longer than
// the longest grace that a definition may give.
const emptyLimit = 5 * time.Minute

// clearLimit bounds the wait for the remains of dead instances to go.
const clearLimit = 30 * time.Second

// shutdown ends every environment, removes what the engine has on the machine,
// and then ends the keeper with its gateway. The caller ends the control plane.
func (p *plane) shutdown(ctx context.Context, actor string, progress func(kiln.Progress)) error {
	err := p.record(ctx, kiln.Event{Kind: "kiln.shutdown", Subject: "kilnd", Message: "all of Kiln is ended: environments, gateway, keeper and control plane", Actor: actor})
	if err != nil {
		return fmt.Errorf("record the shutdown: %w", err)
	}
	status, err := p.control.Status(ctx)
	if err != nil {
		return err
	}
	for _, e := range status.Environments {
		if err := p.control.Down(ctx, control.DownRequest{Environment: e.Name, Actor: actor}, progress); err != nil {
			return fmt.Errorf("end %s: %w", e.Name, err)
		}
		if err := p.awaitEmpty(ctx, e.Name, progress); err != nil {
			return err
		}
	}
	if err := p.clear(ctx); err != nil {
		return fmt.Errorf("clear the machine: %w", err)
	}
	if err := p.sealer.UnmountAll(ctx); err != nil {
		return err
	}
	p.stopping.Store(true)
	if err := p.keep.Stop(ctx, false); err != nil {
		p.stopping.Store(false)
		return fmt.Errorf("end the keeper: %w", err)
	}
	return nil
}

// clear removes what the engine has on the machine, once what is left of the
// last instances is gone: their networks and groups go after they died.
func (p *plane) clear(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, clearLimit)
	defer cancel()
	for {
		err := p.engine.Clear(ctx)
		if !errors.Is(err, kiln.ErrConflict) || ctx.Err() != nil {
			return err
		}
		pause(ctx, 10*time.Millisecond)
	}
}

// awaitEmpty returns once no instance of an environment is left.
func (p *plane) awaitEmpty(ctx context.Context, environment string, progress func(kiln.Progress)) error {
	ctx, cancel := context.WithTimeout(ctx, emptyLimit)
	defer cancel()
	changes := p.engine.Watch(ctx)
	for {
		seen, err := p.engine.Observe(ctx, environment)
		if err != nil {
			return err
		}
		left := 0
		for _, f := range seen.Fleets {
			left += len(f.Instances)
		}
		step := kiln.Progress{Stage: "park", Subject: environment, Step: "ending instances", Message: fmt.Sprintf("%d left", left), Done: left == 0}
		progress(step)
		if left == 0 {
			return nil
		}
		if _, open := <-changes; !open {
			return kiln.Errorf(kiln.CodeFailed, "kiln ps shows them", "%d instances of %s have not ended after %s", left, environment, emptyLimit)
		}
	}
}

// runtimeProgram is the OCI runtime of bakes: BuildKit's executor wants runc
// and takes crun where that is all there is.
func runtimeProgram() string {
	if _, err := exec.LookPath("runc"); err == nil {
		return "runc"
	}
	return "crun"
}
