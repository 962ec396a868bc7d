// Command processes is the keeper and the gateway of the engine's tests.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/kilnproject/kiln/internal/confine"
	"github.com/kilnproject/kiln/internal/gateway"
	"github.com/kilnproject/kiln/internal/keep"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	self, err := os.Executable()
	if err != nil {
		return err
	}
	switch args[0] {
	case "keep":
		ctx, stop := context.WithCancelCause(context.Background())
		// The tests hold the other end, and it closes also when they are
		// killed: then keeper and gateway end.
		go func() {
			_, err := io.Copy(io.Discard, os.Stdin)
			stop(fmt.Errorf("the tests have ended: %w", errors.Join(io.EOF, err)))
		}()
		return keep.Run(ctx, keep.Options{
			DataDir: args[1], Gateway: []string{self, "gateway"}, Launch: []string{self, "launch"}, Log: log,
		})
	case "gateway":
		if err := keep.AwaitTurn(os.Stdin); err != nil {
			return nil //nolint:nilerr // the keeper ended, or needs it no more
		}
		return gateway.Run(context.Background(), gateway.Options{Dir: ".", Log: log})
	default:
		return confine.Launch(args[1:])
	}
}
