// Package fault stops a real Kiln at every label of its journal, does harm
// there, and demands the old release or the new one, whole, with nothing left
// over and no request failed that was not in flight on a killed process.
//
// It takes a sample; KILN_FAULTS=all (`make faults`) takes every label with
// every fault. What needs a machine without room (evict and vacate) is in
// package control, on an engine without processes.
package fault

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/rollout"
	"github.com/kilnproject/kiln/test/blame"
	"github.com/kilnproject/kiln/test/load"
	"github.com/kilnproject/kiln/test/rig"
)

const host = "fault.test"

// definition has what makes a rollout take every step: a check, and a worker.
const definition = `
gate { no_database = "warn" }

image "app" {
  dockerfile { context = "app" }
}

service "web" {
  image = image.app
  count = 2
  port "http" {
    number   = 8080
    protocol = "http"
  }
  env   = { VERSION = %[1]q, GOMAXPROCS = "1" }
  ready { http = "/healthz" }
  rollout "blue-green" {
    verify "front" { http = "/" }
  }
}

service "worker" {
  image = image.app
  env   = { VERSION = %[1]q, WORKER = "1", GOMAXPROCS = "1"%[2]s }
}

route "web" {
  host = %[3]q
  to   = service.web
}
`

// move is one way from a release to another.
type move struct {
	name  string
	steps []rollout.Step // that it comes by
	begin func(*bench) error
}

func moves() []move {
	return []move{
		{"up", []rollout.Step{
			rollout.Admit, rollout.Start, rollout.Ready, rollout.Verify, rollout.Switch, rollout.Workers, rollout.Settle, rollout.Drain, rollout.Retire,
		}, func(b *bench) error { return b.up("") }},
		{"bad worker", []rollout.Step{rollout.UndoRoute, rollout.UndoDrain, rollout.Undo}, func(b *bench) error { return b.up(`, EXIT = "7"`) }},
		{"rollback", []rollout.Step{rollout.Switch, rollout.Workers, rollout.Drain, rollout.Retire}, func(b *bench) error {
			_, err := b.Try("rollback")
			return err
		}},
	}
}

// acts says whether a step has actions that can fail.
func acts(s rollout.Step) bool {
	return !slices.Contains([]rollout.Step{rollout.Ready, rollout.Settle, rollout.Drain, rollout.UndoDrain}, s)
}

// harm is what is done while the control plane stands still at a label. It
// returns what to do after that.
type harm struct {
	name string
	do   func(*bench) (after func())
}

func harms() []harm {
	return []harm{
		{"kill the control plane", killControl},
		{"kill the gateway", killGateway},
		{"fill the disk", fillDisk},
		{"kill the keeper", killKeeper},
	}
}

// one is one case.
type one struct {
	move  move
	label string
	harm  harm // none for a failure of the step's actions
}

// cases are all of them, or a sample that has every step and every harm.
func cases(all bool) []one {
	var out []one
	n := 0
	for _, m := range moves() {
		for _, s := range m.steps {
			for i, when := range []string{"before", "after"} {
				for j, h := range harms() {
					if all || (n+i+2*j)%4 == 0 && (i == n/4%2 || m.name == "bad worker") {
						out = append(out, one{m, string(s) + "." + when, h})
					}
				}
			}
			if acts(s) && (all || m.name != "rollback") {
				out = append(out, one{m, string(s) + ".act", harm{}})
			}
			n++
		}
	}
	return out
}

// bench is a rig with the load on it.
type bench struct {
	*rig.Rig
	t       *testing.T
	disk    string
	version int
	kills   blame.Register
}

func TestFaults(t *testing.T) {
	if os.Geteuid() != 0 || os.Getenv("KILN_TEST_ROOT") != "1" {
		t.Skip("needs root and KILN_TEST_ROOT=1: `make test` as root sets it")
	}
	b := &bench{t: t, disk: ownDisk(t)}
	b.Rig = rig.NewFaulty(t)
	b.App()
	for range 3 { // live, parked, and one that has gone before
		if err := b.up(""); err != nil {
			t.Fatal(err)
		}
	}
	failed := b.load()
	for _, c := range cases(os.Getenv("KILN_FAULTS") == "all") {
		name := fmt.Sprintf("%s %s %s", c.move.name, c.label, c.harm.name)
		if !t.Run(strings.TrimSpace(name), func(t *testing.T) { b.t = t; b.run(c) }) {
			break // what follows would only say the same
		}
	}
	b.t = t
	for _, o := range failed() {
		if b.kills.Of(o) == "" {
			t.Errorf("at %s, after %s: %s", o.At.Format("15:04:05.000"), o.Took, o.Failure)
		}
	}
	b.end()
}

// run does one case.
func (b *bench) run(c one) {
	action := "freeze"
	if c.harm.do == nil {
		action = "fail"
	}
	b.prepare()
	defer b.thaw()
	b.KillDaemon()
	b.restart("KILN_FAULT=" + c.label + "=" + action)
	before, err := b.Live()
	b.check(err)
	ended := make(chan error, 1)
	go func() { ended <- c.move.begin(b) }()
	after := func() {}
	if c.harm.do != nil {
		b.frozen()
		after = c.harm.do(b)
	}
	after()
	b.t.Logf("the move ended with: %v", <-ended)
	b.whole(before)
}

// prepare makes sure that there is a parked release: a rollback goes back to
// it, and an up retires it.
func (b *bench) prepare() {
	var all []kiln.Release
	b.check(b.Ask(&all, "releases"))
	if !slices.ContainsFunc(all, func(r kiln.Release) bool { return r.State == kiln.ReleaseParked }) {
		b.check(b.up(""))
	}
}

// restart starts the control plane with a variable, or without any.
func (b *bench) restart(variables ...string) {
	b.Env = variables
	b.Start()
}

// frozen waits until the control plane stands at its label. The command that
// began the move may have ended by then: what follows the outcome only tidies
// up.
func (b *bench) frozen() {
	b.Eventually(time.Minute, "the label is reached", func() error {
		stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(b.DaemonPID()), "stat"))
		if err != nil {
			return err
		}
		if _, rest, _ := strings.Cut(string(stat), ") "); !strings.HasPrefix(rest, "T") {
			return errors.New("it still runs")
		}
		return nil
	})
}

// thaw lets a control plane go on that a case which failed left standing.
func (b *bench) thaw() {
	select {
	case <-b.Ended():
	default:
		_ = unix.Kill(b.DaemonPID(), unix.SIGCONT)
	}
}

// goOn lets the control plane go on.
func (b *bench) goOn() { b.check(unix.Kill(b.DaemonPID(), unix.SIGCONT)) }

func killControl(b *bench) func() {
	b.KillDaemon()
	return func() { b.restart() }
}

func killGateway(b *bench) func() { return b.killOwn("gateway") }
func killKeeper(b *bench) func()  { return b.killOwn("keep") }

func (b *bench) killOwn(name string) func() {
	pid := b.Processes()[name]
	if pid == 0 {
		b.t.Fatalf("no %s runs", name)
	}
	b.check(b.kills.Kill(name, pid, func(int) bool { return b.Processes()[name] == pid }))
	b.goOn()
	return func() {}
}

// fullLimit is how long a disk stays full at most for a move that goes on.
const fullLimit = 5 * time.Second

func fillDisk(b *bench) func() {
	path := filepath.Join(b.disk, "filler")
	f, err := os.Create(path)
	b.check(err)
	zeros := make([]byte, 1<<20)
	for step := len(zeros); step > 0 && err == nil; {
		if _, err = f.Write(zeros[:step]); errors.Is(err, unix.ENOSPC) {
			step, err = step/2, nil
		}
	}
	b.check(errors.Join(err, f.Close()))
	b.goOn()
	return func() {
		for limit := time.Now().Add(fullLimit); time.Now().Before(limit) && b.Resting() != nil; {
			continue // each look is a command
		}
		b.check(os.Remove(path))
	}
}

// up releases the next version.
func (b *bench) up(worker string) error {
	b.version++
	b.Write("kiln.hcl", fmt.Sprintf(definition, fmt.Sprintf("v%d", b.version), worker, host))
	_, err := b.Try("up")
	return err
}

// whole checks that the old release or the new one is live, and nothing else
// is there.
func (b *bench) whole(before kiln.Release) {
	b.Eventually(rig.Longest, "everything rests", b.Resting)
	live, err := b.Live()
	b.check(err)
	b.Eventually(rig.Longest, "nothing is left over", func() error { return errors.Join(b.Tidy(), b.exact()) })
	b.check(b.Serves(host, "/"))
	var all []kiln.Release
	b.check(b.Ask(&all, "releases"))
	states := map[kiln.ReleaseState]int{}
	known := false
	for _, r := range all {
		states[r.State]++
		known = known || r.Number == before.Number && r.Identity() == before.Identity()
	}
	if states[kiln.ReleaseLive] != 1 || states[kiln.ReleasePending] > 0 || states[kiln.ReleaseParked] > 1 || !known {
		b.t.Errorf("after release %d, release %d is live, and there are %v", before.Number, live.Number, states)
	}
}

// exact returns nil when exactly the instances of live and parked releases run.
func (b *bench) exact() error {
	var releases []kiln.Release
	var all []kiln.Instance
	if err := errors.Join(b.Ask(&releases, "releases"), b.Ask(&all, "ps")); err != nil {
		return err
	}
	want, got := map[kiln.FleetID]int{}, map[kiln.FleetID]int{}
	for _, r := range releases {
		for _, s := range r.Services {
			if r.State == kiln.ReleaseLive || r.State == kiln.ReleaseParked && !s.Template.Worker() {
				want[kiln.FleetIDOf(r.Environment, s.Template)] = s.Count
			}
		}
	}
	for _, i := range all {
		if i.State != kiln.InstanceDead {
			got[i.Fleet]++
		}
	}
	if fmt.Sprint(want) != fmt.Sprint(got) {
		return fmt.Errorf("instances %v, want %v", got, want)
	}
	return nil
}

// load sends GET until the function that it returns is called, which returns
// what failed.
func (b *bench) load() func() []load.Outcome {
	ctx, cancel := context.WithCancel(context.Background())
	var failed []load.Outcome
	done := make(chan load.Report)
	go func() {
		done <- load.Run(ctx, load.Options{
			URL: "http://" + b.HTTP + "/", Host: host, Rate: 50, Timeout: rig.Longest, MaxInFlight: 4096,
			Each: func(o load.Outcome) {
				if o.Failure != "" {
					failed = append(failed, o)
				}
			},
		})
	}()
	b.t.Cleanup(cancel)
	return func() []load.Outcome {
		cancel()
		b.t.Log(<-done)
		return failed
	}
}

// end shuts down and looks at what is left, and at the history.
func (b *bench) end() {
	b.Kiln("shutdown", "--yes")
	select {
	case <-b.Ended():
	case <-time.After(rig.Longest):
		b.t.Fatal("the control plane has not ended")
	}
	b.Eventually(rig.Longest, "the machine is as before", func() error {
		if left := b.Left(); len(left) > 0 {
			return fmt.Errorf("left:\n%s", strings.Join(left, "\n"))
		}
		return nil
	})
	if wrong := b.Chain(); len(wrong) > 0 {
		b.t.Errorf("ledger: %v", wrong)
	}
}

func (b *bench) check(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatalf("%v\n%s", err, b.Log())
	}
}

// ownDisk makes the rig's folders on a file system of their own.
func ownDisk(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(dir) })
	if err := unix.Mount("kiln-test", dir, "tmpfs", 0, "size=1g,mode=0755"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, errors.Join(err, unix.Unmount(dir, unix.MNT_DETACH)))
		}
	})
	t.Setenv("TMPDIR", dir)
	return dir
}
