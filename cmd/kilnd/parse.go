package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/cli"
	"github.com/kilnproject/kiln/internal/config"
	"github.com/kilnproject/kiln/internal/local"
)

// given is what flags and the environment say; nil is what they do not.
type given struct {
	data       string // absolute; empty when not said
	config     string // absolute; empty when not said
	http       []string
	https      []string
	storageMax *int64 // bytes, 0 is no bound
	level      *slog.Level
	version    bool
	check      bool
	rehearse   bool
	goBack     bool
}

const usage = `Usage: kilnd [flags]

The control plane of a data directory. It runs in the foreground and logs to
standard error; kiln up starts one in the background. SIGTERM ends it alone:
instances, keeper and gateway go on. kiln shutdown ends everything. SIGHUP reads
the configuration again, as kiln reload does.

A flag wins over the environment, and both over the file. Without --config the
file is kilnd.hcl in the data directory, or /etc/kiln/kilnd.hcl, where one of
them exists.

`

// longest is how long a data directory's path may be: sockets below it have
// at most 107 bytes (unix(7)).
const longest = 107 - len("/run/gateway.sock")

func parse(args []string, getenv func(string) string) (given, error) {
	var g given
	flags := pflag.NewFlagSet("kilnd", pflag.ContinueOnError)
	flags.Usage = func() { _, _ = fmt.Fprint(os.Stderr, usage+flags.FlagUsages()) }
	flags.StringVar(&g.config, "config", getenv("KILN_CONFIG"), "file with the configuration (KILN_CONFIG)")
	flags.BoolVar(&g.check, "check", false, "check the configuration, and start nothing")
	flags.StringVar(&g.data, "data", getenv("KILN_DATA"), "data directory (KILN_DATA) (default "+strconv.Quote(cli.DefaultData)+")")
	public := flags.String("http", getenv("KILN_LISTEN_HTTP"), `public HTTP: "address:port", several with commas, or "off" (KILN_LISTEN_HTTP) (default `+strconv.Quote(cli.DefaultHTTP)+")")
	secure := flags.String("https", getenv("KILN_LISTEN_HTTPS"), `public HTTPS: "address:port", several with commas, or "off" (KILN_LISTEN_HTTPS) (default `+strconv.Quote(cli.DefaultHTTPS)+")")
	storage := flags.String("storage-max", getenv("KILN_STORAGE_MAX"), "bound of images, caches, seals and logs together, such as 40GiB; 0 is no bound (KILN_STORAGE_MAX)")
	level := flags.String("log-level", getenv("KILN_LOG_LEVEL"), "debug, info, warn or error (KILN_LOG_LEVEL)")
	// kiln upgrade asks these.
	flags.BoolVar(&g.rehearse, "rehearse", false, "say who this program is, as one that may become the control plane")
	flags.BoolVar(&g.goBack, "go-back", false, "undo what a newer control plane did to the ledger")
	_, _ = flags.MarkHidden("rehearse"), flags.MarkHidden("go-back")
	flags.BoolVar(&g.version, "version", false, "print the version")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return g, err
		}
		return g, invalid("kilnd --help", "%w", err)
	}
	if flags.NArg() > 0 {
		return g, invalid("kilnd --help", "kilnd takes no arguments, and was given %q", flags.Arg(0))
	}
	return g, g.read(*public, *secure, *storage, *level)
}

// read takes the flags that are not text; an empty one was not said.
func (g *given) read(public, secure, storage, level string) (err error) {
	if g.http, err = listenAddresses(public); err != nil {
		return err
	}
	if g.https, err = listenAddresses(secure); err != nil {
		return err
	}
	if storage != "" {
		n, err := parseSize(storage)
		if err != nil {
			return err
		}
		g.storageMax = &n
	}
	if level != "" {
		g.level = new(slog.Level)
		if err := g.level.UnmarshalText([]byte(level)); err != nil {
			return invalid("--log-level is one of debug, info, warn, error", "%w", err)
		}
	}
	for _, path := range []*string{&g.data, &g.config} {
		if *path == "" {
			continue
		}
		if *path, err = filepath.Abs(*path); err != nil {
			return err
		}
	}
	return nil
}

func invalid(hint, format string, args ...any) error {
	return kiln.Errorf(kiln.CodeInvalid, hint, format, args...)
}

// parseSize reads a number of bytes: "0", "512MiB", "40GiB", "1TiB".
func parseSize(text string) (int64, error) {
	if text == "0" {
		return 0, nil
	}
	number, unit := "", int64(1) // a number without a unit is no size: 40 is hardly meant to be bytes
	for suffix, bytes := range map[string]int64{"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40} {
		if n, ok := strings.CutSuffix(text, suffix); ok {
			number, unit = n, bytes
		}
	}
	n, err := strconv.ParseInt(strings.TrimSpace(number), 10, 64)
	if err != nil || n < 0 || n > (1<<62)/unit {
		return 0, invalid("write it like 40GiB", "%q is not a size", text)
	}
	return n * unit, nil
}

// listenAddresses reads addresses to listen on: nil for none said, and an
// empty list for "off".
func listenAddresses(text string) ([]string, error) {
	switch text {
	case "":
		return nil, nil
	case "off":
		return []string{}, nil
	}
	var out []string
	for one := range strings.SplitSeq(text, ",") {
		address, problem := config.Address(strings.TrimSpace(one))
		if problem != "" {
			return nil, invalid(`write it like 127.0.0.1:8080, :8080 or off`, "%q %s", one, strings.TrimSuffix(problem, "."))
		}
		out = append(out, address)
	}
	return out, nil
}

// publicURL returns where a route answers with the listeners of the moment; ""
// when it has no address. Of several listeners it is the first.
func publicURL(listen func() local.Listen) func(kiln.Route) string {
	at := func(scheme string, addresses []string, usual string, r kiln.Route) string {
		if len(addresses) == 0 {
			return ""
		}
		_, port, err := net.SplitHostPort(addresses[0])
		if err != nil {
			return ""
		}
		host := r.Host
		if port != usual {
			host = net.JoinHostPort(r.Host, port)
		}
		path := r.Path
		if path == "" {
			path = "/"
		}
		return scheme + "://" + host + path
	}
	return func(r kiln.Route) string {
		switch {
		case r.Host == "" && r.Listen != "":
			return "tcp://" + r.Listen
		case r.TLS.Mode == "" || r.TLS.Mode == "off":
			return at("http", listen().HTTP, "80", r)
		default:
			return at("https", listen().HTTPS, "443", r)
		}
	}
}
