// Command kiln is Kiln's command line. Two of its commands, which nobody needs
// to type, are processes of their own: the keeper and the gateway.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/kilnproject/kiln/internal/cli"
)

// version is set by the linker: -X main.version=...
var version = "dev"

func main() { os.Exit(run()) }

func run() int {
	// The first Ctrl-C asks; the second kills.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	return cli.Run(ctx, cli.Options{
		Args: os.Args[1:], Environ: os.Environ(), In: os.Stdin, Out: os.Stdout, Err: os.Stderr,
		Version: version, Processes: processes(), Keeper: keeperClient{},
	})
}
