package keep

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/logs"
)

// another is the test binary under another name.
func (r *rig) another() string {
	r.t.Helper()
	path := filepath.Join(r.dir, "another")
	if err := os.Symlink(os.Args[0], path); err != nil && !errors.Is(err, os.ErrExist) {
		r.t.Fatal(err)
	}
	return path
}

func (r *rig) script(name, text string) string {
	r.t.Helper()
	path := filepath.Join(r.dir, name)
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		r.t.Fatal(err)
	}
	return path
}

// restart ends the keeper, and starts another as r.opt says.
func (r *rig) restart() {
	r.t.Helper()
	pid := r.ping().PID
	if err := r.Stop(r.t.Context(), true); err != nil {
		r.t.Fatal(err)
	}
	waitUntil(r.t, func() bool { return gone(pid) })
	r.start()
}

func (r *rig) ping() Info {
	r.t.Helper()
	info, err := r.Ping(r.t.Context())
	if err != nil {
		r.t.Fatalf("%v\n%s", err, r.log())
	}
	return info
}

// asking asks the gateway again and again until it is told to end, and returns
// how often it was answered and what went wrong.
func asking(address string) (end func() (int64, error)) {
	var count atomic.Int64
	var failure error
	var least atomic.Int64 // 0 while it goes on
	var all sync.WaitGroup
	all.Go(func() {
		for failure == nil && (least.Load() == 0 || count.Load() < least.Load()) {
			_, failure = ask("tcp", address)
			count.Add(1)
		}
	})
	return func() (int64, error) {
		least.Store(count.Load() + 20) // the load goes on a little
		all.Wait()
		return count.Load(), failure
	}
}

func TestTheKeeperBecomesAnotherProgram(t *testing.T) {
	r := newRig(t, true)
	address := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	if err := r.Listen(t.Context(), []string{"tcp://" + address}); err != nil {
		t.Fatal(err)
	}
	go1, go2 := filepath.Join(r.dir, "go1"), filepath.Join(r.dir, "go2")
	for _, path := range []string{go1, go2} {
		if err := unix.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	was := r.run("talker", fmt.Sprintf("printf 'one line '; read x <%s; echo of two keepers; exit 7", go1))
	r.run("short", fmt.Sprintf("read x <%s; exit 9", go2))
	before := r.ping()
	end := asking(address)
	for range 3 {
		now, err := r.Replace(t.Context(), r.another())
		if err != nil {
			t.Fatalf("%v\n%s", err, r.log())
		}
		if now.PID != before.PID || now.Living != 2 || !slices.Equal(now.Listeners, before.Listeners) {
			t.Fatalf("%+v, before %+v", now, before)
		}
	}
	if line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", before.PID)); err != nil || !strings.HasPrefix(string(line), r.another()+"\x00") {
		t.Errorf("it runs %q, %v", line, err)
	}
	waitUntil(t, func() bool {
		i := r.ping()
		return i.GatewayPID != 0 && i.GatewayPID != before.GatewayPID && gone(before.GatewayPID)
	})
	if count, err := end(); err != nil || count < 20 {
		t.Errorf("after %d answers: %v\n%s", count, err, r.log())
	}
	if again, err := r.Start(t.Context(), r.process("talker", fmt.Sprintf("printf 'one line '; read x <%s; echo of two keepers; exit 7", go1))); err != nil || again.PID != was.PID {
		t.Errorf("the same start again: %+v, %v", again, err)
	}
	for _, path := range []string{go1, go2} {
		if err := os.WriteFile(path, []byte("go\n"), 0); err != nil {
			t.Fatal(err)
		}
	}
	if exit := r.exit("talker"); exit.Code != 7 || exit.Lost {
		t.Errorf("its child's end: %+v", exit)
	}
	if exit := r.exit("short"); exit.Code != 9 || exit.Lost {
		t.Errorf("its child's end: %+v", exit)
	}
	lines, err := logs.Last(filepath.Join(r.dir, "logs/e/talker"), 5)
	if err != nil || len(lines) != 1 || lines[0].Text != "one line of two keepers" {
		t.Errorf("its log: %v, %v", lines, err)
	}
}

// gone says whether nothing is left of a process.
func gone(pid int) bool { return errors.Is(unix.Kill(pid, 0), unix.ESRCH) }

// TestWhatEndsMeanwhileIsKnown has children end while no program waits.
func TestWhatEndsMeanwhileIsKnown(t *testing.T) {
	r := newRig(t, false)
	end := filepath.Join(r.dir, "end")
	if err := unix.Mkfifo(end, 0o600); err != nil {
		t.Fatal(err)
	}
	var all []string
	for i := range 20 {
		id := fmt.Sprintf("i%d", i)
		all = append(all, id)
		r.run(id, fmt.Sprintf("read x <%s; exit %d", end, 20+i))
	}
	if err := os.WriteFile(end, nil, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Replace(t.Context(), r.another()); err != nil {
		t.Fatal(err)
	}
	for i, id := range all {
		if exit := r.exit(id); exit.Code != 20+i || exit.Lost {
			t.Errorf("%s: %+v", id, exit)
		}
	}
}

func TestAProgramThatCannotBeTheKeeperIsRefused(t *testing.T) {
	r := newRig(t, false)
	r.opt.ReplaceLimit, r.opt.Version = time.Second, "1.4.0"
	r.restart()
	r.run("a", "exec sleep 1000")
	before := r.ping()
	notExecutable := r.script("plain", "exit 0")
	if err := os.Chmod(notExecutable, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		program string
		code    kiln.Code
		words   string
	}{
		"relative":       {"kiln", kiln.CodeInvalid, "absolute"},
		"not there":      {filepath.Join(r.dir, "nothing"), kiln.CodeFailed, "no such file"},
		"not executable": {notExecutable, kiln.CodeFailed, "permission denied"},
		"ends at once":   {r.script("ends", "exit 3"), kiln.CodeFailed, "exited with code 3"},
		"says nothing":   {r.script("mute", "exit 0"), kiln.CodeFailed, "it says"},
		"hangs":          {r.script("hangs", "exec sleep 1000"), kiln.CodeFailed, "did not end within"},
		"another form":   {r.script("form", `echo '{"version":"1.4.1","protocol":1,"form":2}'`), kiln.CodeFailed, "form 2"},
		"too new":        {r.script("new", `echo '{"version":"1.6.0","protocol":1,"form":1}'`), kiln.CodeConflict, "the keeper is too old"},
		"talks for ever": {r.script("talks", "exec yes"), kiln.CodeFailed, "cannot be the keeper"},
	} {
		if _, err := r.Replace(t.Context(), c.program); !errors.Is(err, &kiln.Error{Code: c.code}) || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if now := r.ping(); now.PID != before.PID || !now.StartedAt.Equal(before.StartedAt) || now.Living != 1 {
		t.Errorf("%+v, before %+v", now, before)
	}
}

func TestAProgramThatDoesNotComeUpIsTakenBack(t *testing.T) {
	const good = `case "$*" in *--rehearse) echo '{"version":"x","protocol":1,"form":1}' ;; *) `
	for name, text := range map[string]string{
		"ends at once": good + "exit 0 ;; esac",
		"hangs":        good + "exec sleep 1000 ;; esac",
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, true)
			r.opt.ReplaceLimit = time.Second
			r.restart()
			address := fmt.Sprintf("127.0.0.1:%d", freePort(t))
			if err := r.Listen(t.Context(), []string{"tcp://" + address}); err != nil {
				t.Fatal(err)
			}
			was := r.run("a", "exec sleep 1000")
			before := r.ping()
			end := asking(address)
			_, err := r.Replace(t.Context(), r.script("bad", text))
			if !errors.Is(err, &kiln.Error{Code: kiln.CodeFailed}) || !strings.Contains(err.Error(), "did not come up") {
				t.Fatalf("%v\n%s", err, r.log())
			}
			now := r.ping()
			if now.PID == before.PID || now.Living != 1 {
				t.Errorf("%+v, before %+v", now, before)
			}
			if list, err := r.List(t.Context()); err != nil || len(list) != 1 || list[0].PID != was.PID || list[0].Exit != nil {
				t.Errorf("%+v, %v", list, err)
			}
			if count, err := end(); err != nil || count < 20 {
				t.Errorf("after %d answers: %v\n%s", count, err, r.log())
			}
		})
	}
}

func TestAProgramThatCannotBeExecutedChangesNothing(t *testing.T) {
	r := newRig(t, true)
	r.run("a", "exec sleep 1000")
	before := r.ping()
	// It can be rehearsed once, and is gone then.
	once := r.script("once", `rm "$0"; echo '{"version":"x","protocol":1,"form":1}'`)
	if _, err := r.Replace(t.Context(), once); !errors.Is(err, &kiln.Error{Code: kiln.CodeFailed}) || !strings.Contains(err.Error(), "execute") {
		t.Errorf("%v", err)
	}
	r.run("b", "exec sleep 1000")
	if now := r.ping(); !now.StartedAt.Equal(before.StartedAt) || now.Living != 2 || now.GatewayPID != before.GatewayPID {
		t.Errorf("%+v, before %+v", now, before)
	}
	if now, err := r.Replace(t.Context(), r.another()); err != nil || now.PID != before.PID || now.Living != 2 {
		t.Errorf("%+v, %v", now, err)
	}
}
