package keep

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/logs"
)

func TestExitCodesSignalsAndOutput(t *testing.T) {
	r := newRig(t, false)
	r.run("web-1", "echo out; echo err >&2; printf unfinished; exit 3")
	if e := r.exit("web-1"); e.Code != 3 || e.Signal != 0 || e.Lost {
		t.Fatalf("exit %+v", e)
	}
	lines, err := logs.Last(filepath.Join(r.dir, "logs/e/web-1"), 10)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, l := range lines {
		got[l.Stream] += l.Text + ";"
	}
	if got["stdout"] != "out;unfinished;" || got["stderr"] != "err;" {
		t.Fatalf("logs %v", got)
	}
	r.run("web-2", "kill -KILL $$")
	if e := r.exit("web-2"); e.Code != 137 || e.Signal != 9 {
		t.Fatalf("exit %+v", e)
	}
	for _, id := range []string{"web-1", "web-2", "web-2", "never"} {
		if err := r.Forget(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if all, err := r.List(t.Context()); err != nil || len(all) != 0 {
		t.Fatalf("list %v, %v", all, err)
	}
	if left, _ := os.ReadDir(filepath.Join(r.dir, "run", pipesDir)); len(left) != 0 {
		t.Fatalf("pipes left: %v", left)
	}
}

func TestStartIsIdempotentAndLivingIsNotForgotten(t *testing.T) {
	r := newRig(t, false)
	first := r.run("web-1", "exec sleep 600")
	again := r.run("web-1", "exec sleep 600")
	if first.PID != again.PID {
		t.Fatalf("%+v, then %+v", first, again)
	}
	if _, err := r.Start(t.Context(), r.process("web-1", "exit 0")); !errors.Is(err, kiln.ErrConflict) {
		t.Fatalf("another process of the ID: %v", err)
	}
	if err := r.Forget(t.Context(), "web-1"); !errors.Is(err, kiln.ErrConflict) {
		t.Fatalf("forget a living one: %v", err)
	}
	if err := r.Stop(t.Context(), false); !errors.Is(err, kiln.ErrConflict) {
		t.Fatalf("stop with a living one: %v", err)
	}
	for _, bad := range []kiln.Process{
		{ID: "../x", Command: []string{"true"}, Dir: "/", PIDFile: "/x", LogDir: "/x"},
		{ID: "x", Dir: "/", PIDFile: "/x", LogDir: "/x"},
		{ID: "x", Command: []string{"true"}, Dir: "/", PIDFile: "x", LogDir: "/x"},
	} {
		if _, err := r.Start(t.Context(), bad); !errors.Is(err, kiln.ErrInvalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

func TestRuntimesThatFail(t *testing.T) {
	r := newRig(t, false)
	cases := map[string]struct{ script, want string }{
		"says-why":   {`echo 'time="2026-01-01T00:00:00Z" level=error msg="runc run failed: no \"such\" file"' >&2; exit 1`, `the runtime ended with code 1: runc run failed: no "such" file`},
		"no-pid":     {"exit 0", "read the pid that the runtime wrote"},
		"bad-pid":    {`echo 1 > "$PIDFILE"`, "1 is no process"},
		"not-ours":   {fmt.Sprintf(`echo %d > "$PIDFILE"`, os.Getpid()), "is no child of the keeper"},
		"is-killed":  {"kill -KILL $$", "the runtime ended with SIGKILL and said nothing"},
		"is-missing": {"", "no OCI runtime"},
	}
	for id, c := range cases {
		t.Run(id, func(t *testing.T) {
			p := r.process(id, "")
			p.Command = []string{"sh", "-c", strings.ReplaceAll(c.script, "$PIDFILE", p.PIDFile)}
			if c.script == "" {
				p.Command = []string{"/nonexistent/runc"}
			}
			_, err := r.Start(t.Context(), p)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("Start = %v, want %q", err, c.want)
			}
			if all, err := r.List(t.Context()); err != nil || len(all) != 0 {
				t.Fatalf("list %v, %v", all, err)
			}
		})
	}
	r.run("says-why", "exec sleep 600") // the ID is free again
}

func TestInstanceThatDiesBeforeItIsKnown(t *testing.T) {
	r := newRig(t, false)
	for i := range 20 {
		id := fmt.Sprintf("quick-%d", i)
		p := r.process(id, "")
		// The middle one ends before the instance, which so is the keeper's.
		p.Command = []string{"sh", "-c", `sh -c 'sh -c "while ! [ -e $1.go ]; do :; done; exit 7" & echo $! > "$1"' x "$1"; : > "$1.go"; sleep 0.03`, "runtime", p.PIDFile}
		if _, err := r.Start(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		if e := r.exit(id); e.Code != 7 {
			t.Fatalf("exit %+v", e)
		}
	}
}

func TestManyAtOnce(t *testing.T) {
	r := newRig(t, false)
	const n = 40
	changes, err := r.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var starts sync.WaitGroup
	for i := range n {
		starts.Go(func() {
			if _, err := r.Start(t.Context(), r.process(fmt.Sprintf("web-%d", i), fmt.Sprintf("echo %d; exit %d", i, i))); err != nil {
				t.Error(err)
			}
		})
	}
	starts.Wait()
	codes := map[string]int{}
	for len(codes) < n {
		if s := <-changes; s.Exit != nil {
			codes[s.ID] = s.Exit.Code
		}
	}
	for i := range n {
		id := fmt.Sprintf("web-%d", i)
		lines, err := logs.Last(filepath.Join(r.dir, "logs/e", id), 2)
		if codes[id] != i || err != nil || len(lines) != 1 || lines[0].Text != fmt.Sprint(i) {
			t.Errorf("%s: code %d, logs %v, %v", id, codes[id], lines, err)
		}
		if err := r.Forget(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
}

func TestOrphansAreReaped(t *testing.T) {
	r := newRig(t, false)
	s := r.run("web-1", `sh -c 'sleep 0 & echo $! ' > /dev/null; exec sleep 600`)
	info, err := r.Ping(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// Children of an instance that dies become the keeper's; none may stay a
	// zombie.
	r.run("web-2", `for i in 1 2 3 4 5; do (sleep 0.05 & ) ; done; exit 0`)
	r.exit("web-2")
	waitUntil(t, func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", info.PID, info.PID))
		return err == nil && !strings.Contains(zombies(strings.Fields(string(b))), "Z")
	})
	if err := unix.Kill(s.PID, 0); err != nil {
		t.Fatal(err)
	}
}

func zombies(pids []string) string {
	var states []byte
	for _, pid := range pids {
		b, _ := os.ReadFile("/proc/" + pid + "/stat")
		if i := strings.LastIndexByte(string(b), ')'); i >= 0 && len(b) > i+2 {
			states = append(states, b[i+2])
		}
	}
	return string(states)
}

// waitUntil asks again every 5 ms until the condition holds.
func waitUntil(t *testing.T, holds func() bool) {
	t.Helper()
	limit := time.After(longest)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-limit:
			t.Fatal("it did not come true")
		case <-tick.C:
		}
	}
}

func TestGrandchildThatHoldsThePipeDoesNotDelayTheExit(t *testing.T) {
	r := newRig(t, false)
	holder := filepath.Join(r.dir, "holder")
	s := r.run("web-1", fmt.Sprintf("echo last words; sleep 600 & echo $! > %s; exec sleep 600", holder))
	waitUntil(t, func() bool { b, _ := os.ReadFile(holder); return len(b) > 1 })
	pid, err := readPID(holder)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Kill(pid, unix.SIGKILL) }()
	if err := unix.Kill(s.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if e := r.exit("web-1"); e.Signal != int(unix.SIGKILL) {
		t.Fatalf("exit %+v", e)
	}
	if lines, err := logs.Last(filepath.Join(r.dir, "logs/e/web-1"), 1); err != nil || len(lines) != 1 || lines[0].Text != "last words" {
		t.Fatalf("logs %v, %v", lines, err)
	}
	if err := r.Forget(t.Context(), "web-1"); err != nil {
		t.Fatal(err)
	}
}

func TestFloodOfLogsIsBoundedAndBlocksNobody(t *testing.T) {
	r := newRig(t, false)
	p := r.process("flood-1", `head -c 30000000 /dev/zero | tr '\0' 'x'; echo; yes | head -c 3000000; printf 'end'`)
	p.LogBytes = logs.MinBytes
	if _, err := r.Start(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if e := r.exit("flood-1"); e.Code != 0 {
		t.Fatalf("exit %+v", e)
	}
	n, err := logs.Usage(filepath.Join(r.dir, "logs"))
	if err != nil || n > logs.MinBytes {
		t.Fatalf("usage %d, %v", n, err)
	}
	lines, err := logs.Last(p.LogDir, 2)
	if err != nil || len(lines) != 2 || lines[0].Text != "y" || lines[1].Text != "end" {
		t.Fatalf("logs %v, %v", lines, err)
	}
}

func TestKeeperDiesAndAnotherGoesOn(t *testing.T) {
	r := newRig(t, false)
	alive := r.run("web-1", `trap 'echo bye; exit 6' TERM; echo one; while read -r x; do :; done < /dev/null; while :; do sleep 0.01; done`)
	r.run("web-2", "exit 4")
	r.exit("web-2")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	changes, err := r.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		<-changes
	}
	gone := r.run("web-3", "exec sleep 600")
	<-changes
	r.killKeeper()
	r.kill(gone.PID)
	r.start()

	all, err := r.List(t.Context())
	if err != nil || len(all) != 3 {
		t.Fatalf("list %v, %v", all, err)
	}
	for _, s := range all {
		switch s.ID {
		case "web-1":
			if s.PID != alive.PID || s.Exit != nil {
				t.Errorf("web-1 %+v", s)
			}
		case "web-2":
			if s.Exit == nil || s.Exit.Code != 4 || s.Exit.Lost {
				t.Errorf("web-2 %+v", s.Exit)
			}
		}
	}
	// The watcher of before is told what happened meanwhile.
	if s := <-changes; s.ID != "web-3" || s.Exit == nil || !s.Exit.Lost && s.Exit.Signal != int(unix.SIGKILL) {
		t.Fatalf("change %+v", s)
	}
	if err := unix.Kill(alive.PID, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s := <-changes
	if s.ID != "web-1" || s.Exit == nil || !s.Exit.Lost && s.Exit.Code != 6 {
		t.Fatalf("change %+v", s)
	}
	t.Logf("the exit of the adopted: %+v", *s.Exit)
	cancel()
	for range changes {
	}
	lines, err := logs.Last(filepath.Join(r.dir, "logs/e/web-1"), 5)
	if err != nil || len(lines) != 2 || lines[1].Text != "bye" {
		t.Fatalf("logs of the adopted: %v, %v", lines, err)
	}
}

func TestAWatchForgetsWhatIsForgotten(t *testing.T) {
	r := newRig(t, false)
	ctx, cancel := context.WithCancel(t.Context())
	changes, err := r.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for n := range 3 {
		id := fmt.Sprintf("web-%d", n)
		r.run(id, "exit 0")
		for s := range changes {
			if s.ID == id && s.Exit != nil {
				break
			}
		}
		if err := r.Forget(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	remembered := func() (n int) {
		r.mu.Lock()
		defer r.mu.Unlock()
		for w := range r.watches {
			w.mu.Lock()
			n += len(w.by)
			w.mu.Unlock()
		}
		return n
	}
	if n := remembered(); n != 0 {
		t.Errorf("%d processes that are forgotten are remembered", n)
	}
	cancel()
	for range changes {
	}
	if len(r.watches) != 0 {
		t.Error("a watch that has ended is kept")
	}
}

func TestSecondKeeperIsRefused(t *testing.T) {
	r := newRig(t, false)
	_, err := lockDir(filepath.Join(r.dir, "run"))
	if !errors.Is(err, kiln.ErrConflict) {
		t.Fatalf("lock: %v", err)
	}
}

func TestSurvivesHangupAndBrokenPipe(t *testing.T) {
	r := newRig(t, false)
	info, err := r.Ping(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if sid, err := unix.Getsid(info.PID); err != nil || sid != info.PID {
		t.Fatalf("session %d, %v", sid, err)
	}
	for _, s := range []syscall.Signal{unix.SIGHUP, unix.SIGPIPE} {
		if err := unix.Kill(info.PID, s); err != nil {
			t.Fatal(err)
		}
	}
	// What it starts has them at their defaults.
	r.run("web-1", `kill -HUP $$; exit 0`)
	if e := r.exit("web-1"); e.Signal != int(unix.SIGHUP) {
		t.Fatalf("exit %+v", e)
	}
}
