// Command processes is the keeper and the gateway of the engine's tests.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"

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
		return keep.Run(context.Background(), keep.Options{
			DataDir: args[1], Gateway: []string{self, "gateway"}, Launch: []string{self, "launch"}, Log: log,
		})
	case "gateway":
		return gateway.Run(context.Background(), gateway.Options{Dir: ".", Log: log})
	default:
		return keep.Launch(args[1:])
	}
}
