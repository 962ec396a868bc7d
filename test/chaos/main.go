// Command chaos disturbs a running Kiln at random and reports what clients
// noticed, what was left on the machine and what is broken in the history. It
// needs root, disturbs only what it started itself, and exits 1 when a bar is
// missed. The same seed gives the same sequence of events.
//
//	go run ./test/chaos -time 60s -seed 7
package main

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	o := order{out: os.Stdout}
	flag.DurationVar(&o.limit, "time", 10*time.Minute, "how long to disturb")
	flag.Uint64Var(&o.seed, "seed", 0, "which sequence of events; 0 picks one")
	flag.IntVar(&o.rate, "rate", 500, "GET a second")
	file := flag.String("json", "bin/chaos.json", "where to write the report; the logs go beside it")
	size := flag.String("disk", "1g", "size of the data directory's file system, in memory")
	flag.Parse()
	if o.seed == 0 {
		o.seed = rand.Uint64N(1_000_000) + 1
	}
	met, err := once(o, *file, *size)
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
	}
	if err != nil || !met {
		fmt.Fprintf(os.Stderr, "replay it: make chaos TIME=%s SEED=%d\n", o.limit, o.seed)
		os.Exit(1)
	}
}

func once(o order, file, size string) (met bool, err error) {
	if os.Geteuid() != 0 {
		return false, errors.New("it runs containers and networks and needs root")
	}
	o.folder = filepath.Join(filepath.Dir(file), "chaos-logs")
	if err := os.MkdirAll(o.folder, 0o755); err != nil {
		return false, fmt.Errorf("make a folder for the logs: %w", err)
	}
	d := &desk{}
	defer func() {
		if s, ok := recover().(stopped); ok {
			err = errors.New(s.reason)
		}
		d.clean()
	}()
	if o.disk, err = mount(d, size); err != nil {
		return false, err
	}
	_, _ = fmt.Fprintf(o.out, "seed %d, %s\n", o.seed, o.limit)
	r := run(d, o)
	r.print(o.out)
	return r.met(), r.write(file)
}

// mount makes a file system of a bounded size for everything of the run.
func mount(d *desk, size string) (string, error) {
	dir, err := os.MkdirTemp("", "kc")
	if err != nil {
		return "", err
	}
	d.Cleanup(func() { _ = os.Remove(dir) })
	if err := unix.Mount("kiln-chaos", dir, "tmpfs", 0, "size="+size+",mode=0755"); err != nil {
		return "", fmt.Errorf("mount a disk of %s: %w", size, err)
	}
	d.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			fmt.Fprintln(os.Stderr, "error: unmount", dir, err)
		}
	})
	return dir, os.Setenv("TMPDIR", dir)
}

// desk is the rig.TB of a run.
type desk struct{ cleanups []func() }

// stopped unwinds a run that cannot go on.
type stopped struct{ reason string }

// Helper is for rig.TB.
func (d *desk) Helper() {}

// Fatalf stops the run.
func (d *desk) Fatalf(format string, args ...any) { panic(stopped{fmt.Sprintf(format, args...)}) }

// Logf prints.
func (d *desk) Logf(format string, args ...any) {
	_, _ = fmt.Fprintf(os.Stdout, "  "+format+"\n", args...)
}

// Cleanup runs f at the end, last first.
func (d *desk) Cleanup(f func()) { d.cleanups = append(d.cleanups, f) }

func (d *desk) clean() {
	for _, f := range slices.Backward(d.cleanups) {
		f()
	}
}
