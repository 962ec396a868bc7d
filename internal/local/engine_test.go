package local_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kilnproject/kiln"
)

func TestStartsProbesRoutesAndStops(t *testing.T) {
	b := newBed(t)
	f := web(2)
	o := b.ready(f)
	table := b.gateway.wait(t, "traffic", func(t kiln.Traffic) bool { return len(t.Fleets[f.ID()]) == 2 })
	if len(table.DNS) != 1 {
		t.Errorf("zones: %+v", table.DNS)
	}
	for _, i := range o.Fleets[0].Instances {
		if got := get(t, i, "/env"); !strings.Contains(got, "1000 1000 ") || !strings.Contains(got, "WHO=image") {
			t.Errorf("%s says %s", i.ID, got)
		}
	}
	b.apply()
	b.wait("the end", func(kiln.Observation) bool { return b.empty("test") })
	b.gateway.wait(t, "no traffic", func(t kiln.Traffic) bool { return len(t.Fleets) == 0 })
}

func TestIsolation(t *testing.T) {
	b := newBed(t)
	f := web(1, func(t *kiln.Template) {
		t.Config.Writable = []kiln.Writable{{Path: "/data", Size: 1 << 20}, {Path: "/own", Size: 1 << 20}}
		t.Config.Env = map[string]string{"WHO": "template"}
	})
	i := b.ready(f).Fleets[0].Instances[0]
	for path, want := range map[string]string{
		"/write?path=/x":                                          "read-only file system",
		"/write?path=/data/x":                                     "<nil>",
		"/write?path=/own/x":                                      "<nil>", // the image gives it to a user that cannot use it
		"/write?path=/tmp/x":                                      "<nil>",
		"/write?path=/run/x":                                      "<nil>",
		"/write?path=/proc/sys/kernel/hostname":                   "read-only file system",
		"/write?path=/sys/x":                                      "read-only file system",
		"/write?path=/sys/fs/cgroup/x":                            "read-only file system",
		"/write?path=/etc/hosts":                                  "read-only file system",
		"/write?path=/dev/shm/x":                                  "<nil>",
		"/write?path=/dev/x":                                      "read-only file system",
		"/write?path=/dev/null":                                   "<nil>",
		"/cat?path=/etc/hostname":                                 i.ID,
		"/cat?path=/etc/hosts":                                    i.Address.String(),
		"/cat?path=/proc/self/status":                             "NoNewPrivs:\t1",
		"/cat?path=/proc/self/uid_map":                            "65536",
		"/cat?path=/proc/self/limits":                             "1024",
		"/cat?path=/proc/sys/net/ipv4/ip_unprivileged_port_start": "0",
		"/env": "WHO=template",
	} {
		if got := get(t, i, path); !strings.Contains(got, want) {
			t.Errorf("%s: got %q, want %q", path, got, want)
		}
	}
	status := get(t, i, "/cat?path=/proc/self/status")
	for _, want := range []string{"CapBnd:\t0000000000000000", "CapEff:\t0000000000000000", "Seccomp:\t2"} {
		if !strings.Contains(status, want) {
			t.Errorf("status lacks %q:\n%s", want, status)
		}
	}
	if got := get(t, i, "/cat?path=/proc/net/if_inet6"); strings.Contains(got, "eth0") {
		t.Errorf("IPv6 is on: %s", got)
	}
	uid := hostUID(t, i.PID)
	if uid < 0x7000_0000 {
		t.Errorf("runs as %d on the host", uid)
	}
}

func TestHostRootIsShutInToo(t *testing.T) {
	b := newBed(t)
	i := b.ready(web(1, func(t *kiln.Template) { t.Config.HostRoot, t.Config.User = true, "0" })).Fleets[0].Instances[0]
	if uid := hostUID(t, i.PID); uid != 0 {
		t.Errorf("runs as %d on the host", uid)
	}
	status := get(t, i, "/cat?path=/proc/self/status")
	for _, want := range []string{"CapBnd:\t0000000000000000", "CapEff:\t0000000000000000", "Seccomp:\t2", "NoNewPrivs:\t1"} {
		if !strings.Contains(status, want) {
			t.Errorf("status lacks %q:\n%s", want, status)
		}
	}
	for _, path := range []string{"/proc/slabinfo", "/proc/vmallocinfo", "/proc/kpagecount", "/proc/keys", "/proc/key-users"} {
		if got := get(t, i, "/cat?path="+path); got != "<nil>" { // nothing, and no error
			t.Errorf("%s: %.60q", path, got)
		}
	}
	for _, path := range []string{"/x", "/dev/x", "/sys/fs/cgroup/x", "/proc/sys/kernel/hostname", "/proc/sysrq-trigger"} {
		if got := get(t, i, "/write?path="+path); got == "<nil>" {
			t.Errorf("%s was written", path)
		}
	}
}

func TestDeathIsExplainedAndReplaced(t *testing.T) {
	for name, c := range map[string]struct {
		path string
		want kiln.Cause
	}{
		"exit":   {"/exit?code=7", kiln.Cause{Kind: kiln.CauseExited, ExitCode: 7}},
		"memory": {"/eat", kiln.Cause{Kind: kiln.CauseOutOfMemory, Signal: "SIGKILL"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			f := web(2)
			first := b.ready(f).Fleets[0].Instances[0]
			get(t, first, c.path)
			o := b.wait("a replacement", func(o kiln.Observation) bool {
				s, _ := o.Fleet(f.ID())
				return len(s.Deaths) == 1 && s.Ready() == 2
			})
			d := o.Fleets[0].Deaths[0]
			if d.ID != first.ID || d.Cause.Kind != c.want.Kind || d.Cause.ExitCode%128 != c.want.ExitCode%128 && c.want.ExitCode != 0 || d.Cause.Signal != c.want.Signal {
				t.Errorf("cause %+v of %s, want %+v of %s", d.Cause, d.ID, c.want, first.ID)
			}
			if name == "exit" && !slices.Contains(d.Cause.LastLog, "last words") {
				t.Errorf("last log: %q", d.Cause.LastLog)
			}
			newest := o.Fleets[0].Instances[1]
			if !strings.Contains(newest.Reason, first.ID) {
				t.Errorf("reason of the replacement: %q", newest.Reason)
			}
		})
	}
}

func TestTooManyProcessesAreTheCause(t *testing.T) {
	b := newBed(t)
	b.apply(web(1, func(t *kiln.Template) { t.Config.Limits.PIDs = 3 })) // a Go program wants more threads
	o := b.wait("a death", func(o kiln.Observation) bool { return len(o.Fleets) > 0 && len(o.Fleets[0].Deaths) > 0 })
	if c := o.Fleets[0].Deaths[0].Cause; !strings.Contains(c.Detail, "limit of 3") || !strings.Contains(c.Hint, "pids") {
		t.Errorf("cause %+v", c)
	}
}

func TestKilledInstanceIsReplacedAtOnce(t *testing.T) {
	b := newBed(t)
	f := web(3)
	first := b.ready(f).Fleets[0].Instances[0]
	b.gateway.wait(t, "traffic", func(t kiln.Traffic) bool { return len(t.Fleets[f.ID()]) == 3 })
	began := time.Now()
	if err := syscall.Kill(first.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.gateway.wait(t, "leaving traffic", func(tr kiln.Traffic) bool { return !inTable(tr, first.ID) })
	out := time.Since(began)
	b.gateway.wait(t, "its replacement", func(tr kiln.Traffic) bool { return len(tr.Fleets[f.ID()]) == 3 && !inTable(tr, first.ID) })
	t.Logf("out of traffic after %v, replaced after %v", out, time.Since(began))
	o := b.wait("the cause", func(o kiln.Observation) bool { return len(o.Fleets[0].Deaths) == 1 })
	if c := o.Fleets[0].Deaths[0].Cause; c.Kind != kiln.CauseSignalled || c.Signal != "SIGKILL" {
		t.Errorf("cause %+v", c)
	}
}

// TestTheRootIsAskedForBeforeEachStart: a sealed file that was changed beneath
// its mount is made again, and what starts from then on has the new one.
func TestTheRootIsAskedForBeforeEachStart(t *testing.T) {
	b := newBed(t)
	f := web(2)
	before := b.ready(f).Fleets[0].Instances
	again := b.images.dir + ".again"
	if out, err := exec.Command("cp", "-a", b.images.dir, again).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	err := errors.Join(os.WriteFile(again+"/mark", []byte("again"), 0o644), os.Rename(b.images.dir, again+".old"), os.Rename(again, b.images.dir))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(before[0].PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	o := b.wait("a replacement", func(o kiln.Observation) bool {
		s, _ := o.Fleet(f.ID())
		return len(s.Deaths) == 1 && s.Ready() == 2
	})
	for _, i := range o.Fleets[0].Instances {
		if marked := strings.HasPrefix(get(t, i, "/cat?path=/mark"), "again"); marked != (i.ID != before[1].ID) {
			t.Errorf("%s has the new root: %t", i.ID, marked)
		}
	}
}

func TestNobodyAnswersForTheDead(t *testing.T) {
	b := newBed(t)
	i := b.ready(web(1)).Fleets[0].Instances[0]
	b.apply()
	b.wait("the end", func(kiln.Observation) bool { return b.empty("test") })
	b.wait("its network to go", func(kiln.Observation) bool {
		return strings.Contains(get(t, i, "/healthz"), "no route to host")
	})
}

func TestCrashLoopSlowsDown(t *testing.T) {
	b := newBed(t)
	f := web(1, func(t *kiln.Template) { t.Config.Command = []string{"exit", "5"} })
	b.apply(f)
	began := time.Now()
	o := b.wait("four deaths", func(o kiln.Observation) bool { return len(o.Fleets) > 0 && len(o.Fleets[0].Deaths) >= 4 })
	if took := time.Since(began); took < 300*time.Millisecond {
		t.Errorf("four starts of a crashing service in %v", took)
	}
	c := o.Fleets[0].Deaths[0].Cause
	if c.Kind != kiln.CauseExited || c.ExitCode != 5 || !slices.Contains(c.LastLog, "as told") {
		t.Errorf("cause %+v", c)
	}
}

func TestNeverReady(t *testing.T) {
	b := newBed(t)
	f := web(1, func(t *kiln.Template) {
		t.Config.Ready.HTTP = "/none"
		t.Config.StartTimeout = 200 * time.Millisecond
	})
	b.apply(f)
	// One that had no time to listen at all says something else.
	b.wait("a death with the probe's answer", func(o kiln.Observation) bool {
		return len(o.Fleets) > 0 && slices.ContainsFunc(o.Fleets[0].Deaths, func(d kiln.Instance) bool {
			if d.Cause.Kind != kiln.CauseNeverReady || d.Cause.Detail == "" {
				t.Fatalf("cause %+v", d.Cause)
			}
			return strings.Contains(d.Cause.Detail, "404")
		})
	})
}

func TestUnreadyLeavesTrafficAndIsReplaced(t *testing.T) {
	b := newBed(t)
	f := web(2)
	first := b.ready(f).Fleets[0].Instances[0]
	get(t, first, "/sick")
	b.wait("unreadiness", func(o kiln.Observation) bool { return o.Fleets[0].Instances[0].State != kiln.InstanceReady })
	b.gateway.wait(t, "leaving traffic", func(tr kiln.Traffic) bool { return len(tr.Fleets[f.ID()]) == 1 && !inTable(tr, first.ID) })
	o := b.wait("a replacement", func(o kiln.Observation) bool { return len(o.Fleets[0].Deaths) == 1 && o.Fleets[0].Ready() == 2 })
	if c := o.Fleets[0].Deaths[0].Cause; c.Kind != kiln.CauseUnready {
		t.Errorf("cause %+v", c)
	}
}

func TestNudgeChecksAtOnce(t *testing.T) {
	b := newBed(t)
	f := web(1, func(t *kiln.Template) { t.Config.Ready.Interval = time.Hour })
	i := b.ready(f).Fleets[0].Instances[0]
	get(t, i, "/sick")
	b.gateway.failures <- i.ID
	b.wait("unreadiness", func(o kiln.Observation) bool { return o.Fleets[0].Instances[0].State == kiln.InstanceUnready })
	get(t, i, "/well")
	b.wait("readiness", func(o kiln.Observation) bool { return o.Fleets[0].Instances[0].State == kiln.InstanceReady })
	before := b.gateway.generation()
	b.gateway.failures <- i.ID
	b.gateway.wait(t, "a new table", func(tr kiln.Traffic) bool { return tr.Generation > before && inTable(tr, i.ID) })
}

func TestIgnoredTermIsKilled(t *testing.T) {
	b := newBed(t)
	f := web(1, func(t *kiln.Template) {
		t.Config.Env = map[string]string{"IGNORE_TERM": "1"}
		t.Config.Grace = 300 * time.Millisecond
	})
	b.ready(f)
	began := time.Now()
	b.apply()
	b.wait("the end", func(kiln.Observation) bool { return b.empty("test") })
	if took := time.Since(began); took < 300*time.Millisecond {
		t.Errorf("ended after %v", took)
	}
}

func TestCountChangesOnlyTheDifference(t *testing.T) {
	b := newBed(t)
	ids := func(o kiln.Observation) (out []string) {
		for _, i := range o.Fleets[0].Instances {
			out = append(out, i.ID)
		}
		return out
	}
	three := ids(b.ready(web(3)))
	five := ids(b.ready(web(5)))
	if !slices.Equal(five[:3], three) {
		t.Errorf("three were %v, five are %v", three, five)
	}
	two := ids(b.ready(web(2)))
	if !slices.Equal(two, three[:2]) {
		t.Errorf("three were %v, two are %v", three, two)
	}
}

func TestReplaceStartsAnotherFirst(t *testing.T) {
	b := newBed(t)
	f := web(1)
	first := b.ready(f).Fleets[0].Instances[0]
	b.gateway.wait(t, "traffic", func(tr kiln.Traffic) bool { return inTable(tr, first.ID) })
	watch, cancel := context.WithCancel(t.Context())
	defer cancel()
	changes := b.Watch(watch)
	if err := b.Replace(t.Context(), first.ID, "too old"); err != nil {
		t.Fatal(err)
	}
	other := false
	for c := range changes {
		if c.Instance == nil {
			continue
		}
		if c.Instance.ID != first.ID && c.Instance.State == kiln.InstanceReady {
			other = true
		}
		if c.Instance.ID == first.ID && c.Instance.State == kiln.InstanceDraining && !other {
			t.Error("it was ended before another was ready")
		}
		if c.Instance.State == kiln.InstanceDead {
			if c.Instance.ID != first.ID || c.Instance.Cause.Kind != kiln.CauseBurned || c.Instance.Cause.Detail != "too old" {
				t.Errorf("died: %+v", c.Instance)
			}
			break
		}
	}
	if err := b.Replace(t.Context(), first.ID, "again"); !errors.Is(err, kiln.ErrNotFound) {
		t.Errorf("replaced a dead instance: %v", err)
	}
}

func TestQuarantineKeepsTheBody(t *testing.T) {
	b := newBed(t)
	f := web(1)
	first := b.ready(f).Fleets[0].Instances[0]
	if err := b.Quarantine(t.Context(), first.ID, "odd"); err != nil {
		t.Fatal(err)
	}
	b.wait("a replacement", func(o kiln.Observation) bool { return len(o.Fleets[0].Instances) == 2 && o.Fleets[0].Ready() == 1 })
	b.gateway.wait(t, "traffic", func(tr kiln.Traffic) bool { return len(tr.Fleets[f.ID()]) == 1 && !inTable(tr, first.ID) })
	frozen := func(kiln.Observation) bool { return strings.Contains(get(t, first, "/healthz"), "error") }
	b.wait("the freeze", frozen)
	b.reboot()
	o, err := b.Observe(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	if got := o.Fleets[0].Instances[0]; got.ID != first.ID || got.State != kiln.InstanceQuarantined {
		t.Errorf("after a restart: %+v", got)
	}
}

func inTable(tr kiln.Traffic, id string) bool {
	for _, list := range tr.Fleets {
		for _, ep := range list {
			if ep.Instance == id {
				return true
			}
		}
	}
	return false
}

func hostUID(t *testing.T, pid int) uint32 {
	t.Helper()
	info, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
	if err != nil {
		t.Fatal(err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		t.Fatal("no stat")
	}
	return st.Uid
}
