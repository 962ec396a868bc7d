package keep

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
)

// procStat is what the keeper needs of /proc/PID/stat (proc(5)).
type procStat struct {
	parent int
	ticks  uint64 // field 22, start time after boot
}

func readStat(pid int) (procStat, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return procStat{}, err
	}
	return parseStat(b)
}

func parseStat(b []byte) (procStat, error) {
	// The second field is a name in brackets that may hold anything.
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return procStat{}, errors.New("stat of a process has no name")
	}
	fields := bytes.Fields(b[i+1:])
	if len(fields) < 20 {
		return procStat{}, errors.New("stat of a process is too short")
	}
	parent, perr := strconv.Atoi(string(fields[1]))
	ticks, terr := strconv.ParseUint(string(fields[19]), 10, 64)
	return procStat{parent: parent, ticks: ticks}, errors.Join(perr, terr)
}

// isChild says whether a process, living or not yet waited for, is ours.
func isChild(pid int) bool {
	s, err := readStat(pid)
	return err == nil && s.parent == os.Getpid()
}

// awaitEnd waits until a process has ended, for the limit at most, and says
// whether it has. A signal to the keeper, which ends every poll, does not end
// the wait.
func awaitEnd(pidfd int, limit time.Duration) bool {
	for end := time.Now().Add(limit); ; {
		left := max(0, time.Until(end))
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, int(left.Milliseconds())) // a descriptor
		if n == 1 {
			return true
		}
		if left == 0 || err != nil && !errors.Is(err, unix.EINTR) {
			return false
		}
	}
}

// bootID names the machine's present run; pids of another mean nothing.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// exitOf turns a wait status into an exit, as of now.
func exitOf(status unix.WaitStatus) *kiln.Exit {
	e := &kiln.Exit{At: time.Now().UTC()}
	if status.Signaled() {
		e.Signal = int(status.Signal())
		e.Code = 128 + e.Signal
	} else {
		e.Code = status.ExitStatus()
	}
	return e
}
