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
	"path/filepath"
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
	c, err := parse(args, os.Getenv)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return cli.ExitOK
	case err == nil && c.version:
		_, _ = fmt.Fprintln(os.Stdout, "kilnd "+version)
		return cli.ExitOK
	case err == nil:
		err = serve(ctx, c, slog.New(slog.NewTextHandler(speech, &slog.HandlerOptions{Level: c.level})))
	}
	if err == nil {
		return cli.ExitOK
	}
	return cli.Explain(speech, err)
}

// config is what the flags say.
type config struct {
	data       string // absolute
	http       string // "address:port", or "off"
	https      string
	storageMax int64 // bytes, 0 is no bound
	level      slog.Level
	version    bool
}

const usage = `Usage: kilnd [flags]

The control plane of a data directory. It runs in the foreground and logs to
standard error; kiln up starts one in the background. SIGTERM ends it alone:
instances, keeper and gateway go on. kiln shutdown ends everything.

`

// longest is how long a data directory's path may be: sockets below it have
// at most 107 bytes (unix(7)).
const longest = 107 - len("/run/gateway.sock")

func parse(args []string, getenv func(string) string) (config, error) {
	or := func(name, otherwise string) string {
		if v := getenv(name); v != "" {
			return v
		}
		return otherwise
	}
	var c config
	flags := pflag.NewFlagSet("kilnd", pflag.ContinueOnError)
	flags.Usage = func() { _, _ = fmt.Fprint(os.Stderr, usage+flags.FlagUsages()) }
	flags.StringVar(&c.data, "data", or("KILN_DATA", cli.DefaultData), "data directory (KILN_DATA)")
	flags.StringVar(&c.http, "http", or("KILN_LISTEN_HTTP", cli.DefaultHTTP), `public HTTP, "address:port" or "off" (KILN_LISTEN_HTTP)`)
	flags.StringVar(&c.https, "https", or("KILN_LISTEN_HTTPS", cli.DefaultHTTPS), `public HTTPS, "address:port" or "off" (KILN_LISTEN_HTTPS)`)
	storage := flags.String("storage-max", or("KILN_STORAGE_MAX", "0"), "bound of images, caches, seals and logs together, such as 40GiB; 0 is no bound (KILN_STORAGE_MAX)")
	level := flags.String("log-level", or("KILN_LOG_LEVEL", "info"), "debug, info, warn or error (KILN_LOG_LEVEL)")
	flags.BoolVar(&c.version, "version", false, "print the version")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return c, err
		}
		return c, invalid("kilnd --help", "%w", err)
	}
	if flags.NArg() > 0 {
		return c, invalid("kilnd --help", "kilnd takes no arguments, and was given %q", flags.Arg(0))
	}
	var err error
	if c.storageMax, err = parseSize(*storage); err != nil {
		return c, err
	}
	if err := c.level.UnmarshalText([]byte(*level)); err != nil {
		return c, invalid("--log-level is one of debug, info, warn, error", "%w", err)
	}
	for _, address := range []*string{&c.http, &c.https} {
		if *address, err = listenAddress(*address); err != nil {
			return c, err
		}
	}
	if c.data, err = filepath.Abs(c.data); err != nil {
		return c, err
	}
	if len(c.data) > longest {
		return c, invalid("choose a shorter path with --data", "the data directory's path has %d bytes; sockets in it allow at most %d", len(c.data), longest)
	}
	return c, nil
}

func invalid(hint, format string, args ...any) error {
	return kiln.Errorf(kiln.CodeInvalid, hint, format, args...)
}

// economize keeps the heap small at rest. A bake takes what it needs; what it
// leaves goes back to the machine when it is idle again.
func economize() { debug.SetGCPercent(50) }
