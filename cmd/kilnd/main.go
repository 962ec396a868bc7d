// Command kilnd is Kiln's control plane: one per data directory. It bakes,
// releases, and keeps what runs as it should be. Instances, their keeper and
// the gateway are processes of their own and outlive it.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/pflag"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/cli"
)

// version is set by the linker: -X main.version=...
var version = "dev"

func main() { os.Exit(run(os.Args[1:], os.Stderr)) }

// run is kilnd, from its flags to its exit code, which is one of kiln's.
func run(args []string, speech io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(args) > 0 {
		switch args[0] {
		case "ledger":
			return runLedger(ctx, args[1:], os.Stdout, speech)
		case "database":
			return runDatabase(ctx, args[1:], os.Stdout, speech)
		case "restore":
			return runRestore(ctx, args[1:], os.Stdout, speech)
		case "draft":
			return runDraft(args[1:], os.Stdout, speech)
		case "work":
			return runWork(ctx, args[1:], speech)
		}
	}
	// From the start, so that one that comes early ends nothing.
	again := make(chan os.Signal, 1)
	signal.Notify(again, syscall.SIGHUP)
	defer signal.Stop(again)
	g, err := parse(args, os.Getenv)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return cli.ExitOK
	case err == nil && g.version:
		_, _ = fmt.Fprintln(os.Stdout, "kilnd "+version)
		return cli.ExitOK
	case err == nil && g.rehearse:
		err = rehearse(ctx, g, os.Stdout)
	case err == nil && g.goBack:
		err = goBack(ctx, g)
	case err == nil && g.check:
		err = check(g, speech)
	case err == nil:
		err = start(ctx, g, speech, again)
	}
	if err == nil {
		return cli.ExitOK
	}
	return cli.Explain(speech, err)
}

// start reads the configuration and serves until ctx ends.
func start(ctx context.Context, g given, speech io.Writer, again <-chan os.Signal) error {
	s, warnings, err := g.settings(nil)
	if err != nil {
		return err
	}
	level := new(slog.LevelVar)
	level.Set(s.level)
	log := slog.New(slog.NewTextHandler(speech, &slog.HandlerOptions{Level: level}))
	s.tell(log, warnings)
	return serve(ctx, g, s, log, level, again)
}

// check validates the configuration and starts nothing.
func check(g given, speech io.Writer) error {
	s, warnings, err := g.settings(nil)
	if err != nil {
		return err
	}
	if s.file.Path == "" {
		return kiln.Errorf(kiln.CodeNotFound, "kilnd --config FILE --check", "there is no configuration to check: %s", s.why)
	}
	cli.Warn(speech, warnings)
	_, err = fmt.Fprintln(os.Stdout, s.file.Path+" is valid")
	return err
}

// economize keeps the heap small at rest. A bake takes what it needs; what it
// leaves goes back to the machine when it is idle again.
func economize() { debug.SetGCPercent(50) }
