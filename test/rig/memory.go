package rig

import (
	"bytes"
	"cmp"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Processes maps Kiln's own processes of this rig to their ids: "kilnd",
// "keep", "gateway", and "spare" for the gateway that waits for its turn.
func (r *Rig) Processes() map[string]int {
	found := map[string]int{"kilnd": r.DaemonPID()}
	var gateways []int
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range lines {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		args := strings.Split(string(b), "\x00")
		if !strings.Contains(string(b), r.Data) || len(args) < 2 {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		switch args[1] {
		case "keep":
			found["keep"] = pid
		case "gateway":
			gateways = append(gateways, pid)
		}
	}
	// What is not the keeper's child is a dead keeper's, and ends. The spare is
	// started when the one that serves has all that it needs.
	mine := slices.DeleteFunc(slices.Clone(gateways), func(pid int) bool { parent, _ := born(pid); return parent != found["keep"] })
	if len(mine) > 0 {
		gateways = mine
	}
	slices.SortFunc(gateways, func(x, y int) int {
		_, first := born(x)
		_, second := born(y)
		return cmp.Compare(first, second)
	})
	for i, name := range []string{"gateway", "spare"} {
		if i < len(gateways) {
			found[name] = gateways[i]
		}
	}
	return found
}

// born returns a process's parent and when it was started, in the kernel's
// ticks (proc_pid_stat(5)).
func born(pid int) (parent, ticks int) {
	b, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(fields) < 20 {
		return 0, 0
	}
	parent, _ = strconv.Atoi(fields[1])
	ticks, _ = strconv.Atoi(fields[19])
	return parent, ticks
}

// PSS returns a process's proportional set size in bytes, 0 when it is gone.
func PSS(pid int) int64 {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "smaps_rollup"))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "Pss:"); ok {
			kib, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kib << 10
		}
	}
	return 0
}
