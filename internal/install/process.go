package install

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/kilnproject/kiln"
)

// process is one that runs on this machine.
type process struct {
	pid     int
	uid     int
	program string // its executable's path
	command string
}

type processes []process

// running lists the processes of this machine but this one.
func running() (processes, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var all processes
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == os.Getpid() {
			continue
		}
		status, err := os.ReadFile(filepath.Join(dir, "status"))
		if err != nil {
			continue // it has ended
		}
		p := process{pid: pid, uid: -1}
		if _, rest, ok := strings.Cut(string(status), "\nUid:"); ok {
			_, _ = fmt.Sscan(rest, &p.uid) // the real one comes first
		}
		p.program, _ = os.Readlink(filepath.Join(dir, "exe")) // the kernel's have none
		line, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		p.command = strings.TrimSpace(strings.ReplaceAll(string(line), "\x00", " "))
		all = append(all, p)
	}
	return all, nil
}

// as names a process of a user's, or returns nothing.
func (all processes) as(uid int) string {
	for _, p := range all {
		if p.uid == uid {
			return fmt.Sprintf("process %d (%s)", p.pid, p.command)
		}
	}
	return ""
}

// others are those that say that they have another data directory.
func (all processes) others(data string) processes {
	return slices.DeleteFunc(slices.Clone(all), func(p process) bool {
		words := strings.Fields(p.command)
		at := slices.Index(words, "--data")
		return at < 0 || at+1 >= len(words) || filepath.Clean(words[at+1]) == data
	})
}

// Used refuses an uninstallation while a control plane of another data
// directory runs what would be removed. It may be asked before anything ends.
func Used(record Record) error {
	all, err := running()
	if err != nil {
		return err
	}
	return all.others(record.Data).refuse(record)
}

// refuse is a conflict when a process runs a file of the record: another
// control plane, whose keeper could not start a gateway again.
func (all processes) refuse(record Record) error {
	var who []string
	for _, p := range all {
		if p.program != "" && slices.ContainsFunc(record.Items, func(e Entry) bool { return e.Kind == KindFile && e.Name == p.program }) {
			who = append(who, fmt.Sprintf("%d %s", p.pid, p.command))
		}
	}
	if len(who) == 0 {
		return nil
	}
	return &kiln.Error{
		Code: kiln.CodeConflict, Message: "processes run what would be removed", Evidence: who,
		Hint: "end what has another data directory first: kiln --data DIR shutdown",
	}
}
