// Command kload sends GET requests at a steady rate until it is interrupted
// or its time is over, then prints what became of them. It exits 1 when one
// failed. The demo uses it to show that a replacement loses nothing.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/kilnproject/kiln/test/load"
)

func main() {
	o := load.Options{}
	flag.StringVar(&o.Host, "host", "", "Host header")
	flag.IntVar(&o.Rate, "rate", 100, "requests a second")
	flag.DurationVar(&o.Duration, "for", time.Minute, "how long at most")
	flag.Parse()
	if err := run(o, flag.Arg(0)); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(o load.Options, target string) error {
	if _, err := url.ParseRequestURI(target); err != nil {
		return fmt.Errorf("want one URL: %w", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	o.URL = target
	report := load.Run(ctx, o)
	fmt.Println(report)
	if report.Failed > 0 || report.OK == 0 {
		return errors.New("not every request was answered")
	}
	return nil
}
