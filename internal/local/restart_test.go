package local_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/local"
	"github.com/kilnproject/kiln/internal/local/netns"
)

func ids(o kiln.Observation) []string {
	var out []string
	for _, f := range o.Fleets {
		for _, i := range f.Instances {
			out = append(out, i.ID)
		}
	}
	return out
}

func TestRestartTouchesNothing(t *testing.T) {
	b := newBed(t)
	f := web(3)
	before := b.ready(f)
	table := b.gateway.wait(t, "traffic", func(tr kiln.Traffic) bool { return len(tr.Fleets[f.ID()]) == 3 })
	b.reboot()
	after := b.wait("readiness", func(o kiln.Observation) bool { return allReady(o, []kiln.Fleet{f}) })
	if !slices.Equal(ids(before), ids(after)) {
		t.Errorf("before %v, after %v", ids(before), ids(after))
	}
	next := b.gateway.wait(t, "a new table", func(tr kiln.Traffic) bool { return tr.Generation > table.Generation })
	if len(next.Fleets[f.ID()]) != 3 {
		t.Errorf("the first table after the restart has %d instances", len(next.Fleets[f.ID()]))
	}
}

func TestDeathsWhileAwayAreSeen(t *testing.T) {
	b := newBed(t)
	f := web(2)
	first := b.ready(f).Fleets[0].Instances[0]
	b.stop()
	if err := syscall.Kill(first.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.keeper.waitExit(t, first.ID)
	b.boot()
	o := b.wait("a replacement", func(o kiln.Observation) bool { return len(o.Fleets[0].Deaths) == 1 && o.Fleets[0].Ready() == 2 })
	if d := o.Fleets[0].Deaths[0]; d.ID != first.ID || d.Cause.Kind != kiln.CauseSignalled {
		t.Errorf("death %+v", d)
	}
}

func TestMachineRestart(t *testing.T) {
	b := newBed(t)
	f := web(2)
	before := b.ready(f)
	b.stop()
	for _, i := range before.Fleets[0].Instances {
		if err := syscall.Kill(i.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		b.keeper.waitExit(t, i.ID)
		if err := b.keeper.Forget(t.Context(), i.ID); err != nil {
			t.Fatal(err)
		}
	}
	b.boot()
	after := b.wait("readiness", func(o kiln.Observation) bool { return allReady(o, []kiln.Fleet{f}) })
	for _, id := range ids(before) {
		if slices.Contains(ids(after), id) {
			t.Errorf("%s is said to live", id)
		}
	}
	if got := after.Fleets[0].Deaths; len(got) != 2 || got[0].Cause.Kind != kiln.CauseLost {
		t.Errorf("deaths %+v", got)
	}
}

// TestWhatIsNoLongerDesiredEndsAfterARestart kills the engine between the record
// of what is desired and its first step towards it.
func TestWhatIsNoLongerDesiredEndsAfterARestart(t *testing.T) {
	b := newBed(t)
	stays, leaves := web(1), web(1, func(t *kiln.Template) { t.Config.Env = map[string]string{"VERSION": "next"} })
	b.ready(stays, leaves)
	b.stop()
	raw, err := json.Marshal(map[string]any{"fleets": []kiln.Fleet{stays}, "reason": "release 2 was undone"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.dir, "local", "desired", "test.json"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	b.boot()
	b.wait("one fleet", func(o kiln.Observation) bool { return len(o.Fleets) == 1 && allReady(o, []kiln.Fleet{stays}) })
	for len(entries(filepath.Join(b.dir, "local", "instances"))) != 1 { // the test ends with its deadline
		if t.Context().Err() != nil {
			t.Fatal("the other instance lives on")
		}
	}
}

func TestLeftoversAreSwept(t *testing.T) {
	b := newBed(t)
	b.ready(web(1))
	b.stop()
	tag := local.Tag(b.dir)
	for _, dir := range []string{"memory", "unified"} {
		if err := os.MkdirAll(filepath.Join("/sys/fs/cgroup", dir, "kiln-"+tag, "web-gone"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"local/instances/web-half", "run/oci/web-gone"} {
		if err := os.MkdirAll(filepath.Join(b.dir, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	link, err := netns.Prepare("k" + tag + "-0000001")
	if err != nil {
		t.Fatal(err)
	}
	defer link.Close()
	b.boot()
	if netns.Exists(link.Name) {
		t.Error("the link is still there")
	}
	for _, path := range []string{
		"/sys/fs/cgroup/memory/kiln-" + tag + "/web-gone", "/sys/fs/cgroup/unified/kiln-" + tag + "/web-gone",
		filepath.Join(b.dir, "local/instances/web-half"), filepath.Join(b.dir, "run/oci/web-gone"),
	} {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s is still there", path)
		}
	}
	b.wait("readiness", func(o kiln.Observation) bool { return allReady(o, []kiln.Fleet{web(1)}) })
}

func TestEndGoesOnAfterRestart(t *testing.T) {
	b := newBed(t)
	f := web(1, func(t *kiln.Template) {
		t.Config.Env = map[string]string{"IGNORE_TERM": "1"}
		t.Config.Grace = 700_000_000
	})
	b.ready(f)
	b.apply()
	b.wait("draining", func(o kiln.Observation) bool {
		return len(ids(o)) == 1 && o.Fleets[0].Instances[0].State == kiln.InstanceDraining
	})
	b.reboot()
	b.wait("the end", func(kiln.Observation) bool { return b.empty("test") })
}

// TestWhatStartsWhileTheKeeperIsAskedIsNotLost: its end has a cause, which only
// the keeper knows.
func TestWhatStartsWhileTheKeeperIsAskedIsNotLost(t *testing.T) {
	b := newBed(t)
	f := web(1)
	b.stop()
	runs := make(chan struct{})
	lists := 0
	b.keeper.mu.Lock()
	b.keeper.listed = func() {
		if lists++; lists == 2 { // the first is of New, when nothing starts
			<-runs
		}
	}
	b.keeper.mu.Unlock()
	b.boot()
	b.apply(f)
	o := b.wait("readiness", func(o kiln.Observation) bool { return allReady(o, []kiln.Fleet{f}) })
	close(runs)
	victim := o.Fleets[0].Instances[0]
	b.wait("the keeper to be followed", func(kiln.Observation) bool {
		b.keeper.mu.Lock()
		defer b.keeper.mu.Unlock()
		return len(b.keeper.watchers) > 0
	})
	if err := syscall.Kill(victim.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	o = b.wait("its death", func(o kiln.Observation) bool { return len(o.Fleets[0].Deaths) == 1 })
	if c := o.Fleets[0].Deaths[0].Cause; c.Kind != kiln.CauseSignalled {
		t.Errorf("cause %+v", c)
	}
}

// TestAKeeperThatDiesHoldsUpAndFailsNothing: not a start, not a task, not what
// remains of an instance.
func TestAKeeperThatDiesHoldsUpAndFailsNothing(t *testing.T) {
	b := newBed(t)
	dies := func(calls int) {
		b.keeper.mu.Lock()
		defer b.keeper.mu.Unlock()
		b.keeper.away = calls
	}
	f := web(2)
	dies(5)
	o := b.ready(f)
	if n := len(o.Fleets[0].Deaths); n > 0 {
		t.Errorf("%d deaths: %+v", n, o.Fleets[0].Deaths[0].Cause)
	}
	dies(2)
	task := web(1, func(t *kiln.Template) { t.Config.Command = []string{"exit", "4"} })
	if r, err := b.Run(t.Context(), kiln.Task{Environment: "test", Template: task.Template}); err != nil || r.Cause.ExitCode != 4 {
		t.Errorf("a task: %+v, %v", r, err)
	}
	dies(3)
	b.apply()
	b.wait("nothing to be left", func(kiln.Observation) bool {
		return b.empty("test") && len(entries(filepath.Join(b.dir, "local/instances"))) == 0
	})
}
