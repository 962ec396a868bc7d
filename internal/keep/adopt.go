package keep

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/logs"
)

// adopt takes over what a dead keeper left: what lives is watched and its
// logs are read on, of the rest the end is known as far as it was recorded.
// was is nil but for a keeper that was another program: its instances are its
// children then.
func (k *keeper) adopt(from past, was *state) {
	sameBoot := from.boot == bootID()
	expected := k.reaper.expect()
	defer expected()
	for id, then := range from.processes {
		p := &process{Process: then.process, started: make(chan struct{}), exit: then.exit}
		close(p.started)
		if then.started == nil { // in the middle of its start
			p.exit = lost()
			p.startedAt = time.Now().UTC()
		} else {
			p.pid, p.ticks, p.startedAt = then.started.PID, then.started.Ticks, then.started.At
		}
		k.mu.Lock()
		k.processes[id] = p
		k.mu.Unlock()
		if p.exit != nil {
			continue
		}
		if !sameBoot {
			p.exit = lost()
			continue
		}
		if err := k.adoptProcess(p, was); err != nil {
			k.log.Warn("instance is gone", "instance", id, "error", err)
			p.exit = lost()
		}
	}
	if sameBoot {
		k.gateway.inherit(from.gateways(), from.listeners, was)
	}
	k.sweepPipes()
	k.reaper.look() // what ended while nobody waited
}

func lost() *kiln.Exit { return &kiln.Exit{At: time.Now().UTC(), Lost: true} }

// errGone means that a pid is free or another process's.
var errGone = errors.New("its process is gone")

func (k *keeper) adoptProcess(p *process, was *state) error {
	stat, err := readStat(p.pid)
	if was != nil && (err != nil || stat.ticks == p.ticks) {
		k.reopen(p, was)
		if k.reaper.claim(p.pid) {
			k.log.Info("instance goes on", "instance", p.ID, "pid", p.pid)
			return nil
		}
	}
	pidfd, err := openProcess(p.pid, p.ticks)
	if err != nil {
		return err
	}
	if p.output == nil {
		k.reopen(p, was)
	}
	k.pump.do(func() {
		k.pump.watch(pidfd, func() {
			k.pump.unwatch(pidfd)
			k.reaper.work.Go(func() {
				k.record(p, strangerExit(pidfd))
				_ = unix.Close(pidfd)
			})
		})
	})
	k.log.Info("instance adopted", "instance", p.ID, "pid", p.pid)
	return nil
}

// reapWait is how long, in milliseconds, the parent of an adopted process is
// given to wait for it.
const reapWait = 200

// strangerExit is the end of a process that is not the keeper's child. Linux
// 6.15 and later know its exit status, once its parent has waited for it.
func strangerExit(pidfd int) *kiln.Exit {
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(pidfd)}}, reapWait) // POLLHUP needs no asking
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	if err := unix.IoctlPidfdInfo(pidfd, &info); err != nil || info.Mask&unix.PIDFD_INFO_EXIT == 0 {
		return lost()
	}
	return exitOf(unix.WaitStatus(info.Exit_code)) // the form that wait gives
}

// openProcess opens a process of which the start time is known.
func openProcess(pid int, ticks uint64) (int, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1, errGone
	}
	stat, err := readStat(pid) // after the open: now the pid cannot change hands unseen
	if err != nil || stat.ticks != ticks {
		_ = unix.Close(pidfd)
		return -1, errGone
	}
	return pidfd, nil
}

// reopen reads the instance's pipes on, where they were inherited or have names.
func (k *keeper) reopen(p *process, was *state) {
	out := &output{instance: p.ID, writer: logs.NewWriter(p.LogDir, p.LogBytes)}
	reads := map[string]int{}
	parts := map[string][]byte{}
	for _, name := range streamNames() {
		if inherited := was.takePipe(p.ID, name); inherited.File >= 0 {
			reads[name], parts[name] = inherited.File, inherited.Part
			continue
		}
		fd, err := openPipe(pipePath(k.opt.DataDir, p.ID, name))
		if err != nil {
			k.log.Warn("logs of an instance are not read on", "instance", p.ID, "error", err)
			continue
		}
		reads[name] = fd
	}
	k.pump.open(out, reads, parts)
	p.output = out
}

// sweepPipes removes the pipes that no known instance has.
func (k *keeper) sweepPipes() {
	dir := filepath.Join(k.opt.DataDir, "run", pipesDir)
	entries, err := os.ReadDir(dir)
	if err != nil {
		k.log.Warn("pipes are not swept", "error", fmt.Errorf("list pipes: %w", err))
		return
	}
	for _, e := range entries {
		id := strings.TrimSuffix(e.Name(), filepath.Ext(e.Name()))
		if k.processes[id] == nil {
			_ = os.Remove(filepath.Join(dir, e.Name()))
		}
	}
}
