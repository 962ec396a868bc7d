package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/kilnproject/kiln/test/blame"
	"github.com/kilnproject/kiln/test/load"
	"github.com/kilnproject/kiln/test/rig"
)

// chaos is one run.
type chaos struct {
	order
	rig   *rig.Rig
	began time.Time

	kills   blame.Register
	lasting sync.WaitGroup // what goes on beside the next events
	moving  sync.Mutex     // held by an up or a rollback
	filling sync.Mutex     // held while the disk is full
	version int            // of the definition; moving guards it
	bakes   int

	mu           sync.Mutex
	acknowledged []int // releases that up said are live
	report       *report
}

// order is what a run is to do.
type order struct {
	disk   string // the file system of the rig's own
	limit  time.Duration
	seed   uint64
	rate   int       // GET a second
	out    io.Writer // is told of everything at once
	folder string    // for the logs
}

// run disturbs a control plane of its own for a time.
func run(t rig.TB, o order) *report {
	c := &chaos{
		order: o, rig: rig.New(t),
		report: &report{Seed: o.seed, Events: map[string]*tally{}, Streams: map[string]*stream{}, Orphans: []string{}, Records: []string{}, Problems: []string{}},
	}
	c.rig.App()
	c.define()
	c.rig.Kiln("up")
	c.acknowledge(1)
	starts, stop := c.rig.Supervise()
	c.began = time.Now()
	end := c.load()
	c.disturb()
	c.lasting.Wait()
	c.report.Seconds = time.Since(c.began).Seconds()
	c.settle()
	end()
	stop()
	c.report.Starts = starts.Load()
	c.count()
	return c.report
}

// load starts the requests; the function that it returns ends them and sorts
// what failed.
func (c *chaos) load() (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for name, o := range c.streams() {
		s := newStream()
		c.report.Streams[name] = s
		running.Go(func() {
			var odd []load.Outcome
			o.Each = func(one load.Outcome) {
				if one.Failure != "" || one.Took > slow {
					odd = append(odd, one)
				}
			}
			s.Report = load.Run(ctx, o)
			s.take(odd, &c.kills, c.began)
		})
	}
	return func() { cancel(); running.Wait() }
}

// disturb lets events happen until the time is over.
func (c *chaos) disturb() {
	known := map[string]kind{}
	for _, k := range kinds() {
		known[k.name] = k
	}
	for e := range plan(c.seed) {
		<-time.After(e.Pause)
		if time.Since(c.began) > c.limit {
			return
		}
		k := known[e.Kind]
		if k.costly {
			if err := c.await(rig.Longest, c.whole); err != nil {
				c.problem("before %q: %v", e.Kind, err)
			}
		}
		begin := time.Now()
		err := k.do(c, e)
		c.log(fmt.Sprintf("%s (%s)", e.Kind, time.Since(begin).Round(time.Millisecond)), err)
		c.tally(e.Kind, err)
	}
}

func (c *chaos) tally(kind string, err error) {
	t := c.report.Events[kind]
	if t == nil {
		t = &tally{}
		c.report.Events[kind] = t
	}
	if err != nil {
		t.Without++
		return
	}
	t.Done++
}

// log tells of something at its time.
func (c *chaos) log(what string, err error) {
	line := fmt.Sprintf("%7.3f s  %s", time.Since(c.began).Seconds(), what)
	if err != nil {
		line += ": " + firstLine(err.Error())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.report.Log = append(c.report.Log, line)
	_, _ = fmt.Fprintln(c.out, line)
}

// problem is something that must not be.
func (c *chaos) problem(format string, args ...any) {
	c.mu.Lock()
	c.report.Problems = append(c.report.Problems, fmt.Sprintf("%7.3f s: ", time.Since(c.began).Seconds())+fmt.Sprintf(format, args...))
	c.mu.Unlock()
	c.log("PROBLEM "+fmt.Sprintf(format, args...), nil)
}

// await asks until there is no error, or returns the last one.
func (c *chaos) await(limit time.Duration, f func() error) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(limit); ; <-tick.C {
		err := f()
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// watch looks again and again, without rest, for what is there for a moment.
func (c *chaos) watch(limit time.Duration, f func() bool) error {
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); {
		if f() {
			return nil
		}
	}
	return errNoVictim
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}

// settle waits until all is as it should be without anybody's help.
func (c *chaos) settle() {
	if err := c.await(rig.Longest, c.whole); err != nil {
		c.problem("after the last event: %v", err)
	}
	if err := c.await(rig.Longest, c.rig.Tidy); err != nil {
		c.orphan("while it runs: %v", err)
	}
	if err := c.await(rig.Longest, c.rig.Resting); err != nil {
		c.problem("after the last event: %v", err)
	}
	if err := c.rig.Serves(host, "/", "/call?url=http://back:8080/"); err != nil {
		c.problem("%v", err)
	}
}

func (c *chaos) orphan(format string, args ...any) {
	c.report.Orphans = append(c.report.Orphans, fmt.Sprintf(format, args...))
	c.log("ORPHAN "+fmt.Sprintf(format, args...), nil)
}

// logs keeps what Kiln's processes said, beside the report.
func (c *chaos) logs() {
	for _, path := range []string{"kilnd.log", "keep.log", "gateway/access.log"} {
		b, err := os.ReadFile(filepath.Join(c.rig.Data, path))
		if err == nil {
			err = os.WriteFile(filepath.Join(c.folder, filepath.Base(path)), b, 0o600)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			c.log("keep "+path, err)
		}
	}
}

// count ends everything and counts what is left, and reads the history.
func (c *chaos) count() {
	if err := c.records(); err != nil {
		c.problem("%v", err)
	}
	defer c.logs()
	if _, err := c.rig.Try("shutdown", "--yes"); err != nil {
		c.problem("shutdown: %v", err)
	}
	select {
	case <-c.rig.Ended():
	case <-time.After(rig.Longest):
		c.problem("the control plane has not ended after a shutdown")
		c.rig.KillDaemon()
	}
	var left []string
	_ = c.await(10*time.Second, func() error {
		if left = c.rig.Left(); len(left) > 0 {
			return errors.New("not yet")
		}
		return nil
	})
	for _, one := range left {
		c.orphan("after the end: %s", one)
	}
	c.report.Records = append(c.report.Records, c.rig.Chain()...)
}
