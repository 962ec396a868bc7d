package rig

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Processes maps Kiln's own processes of this rig to their ids: "kilnd",
// "keep", "gateway".
func (r *Rig) Processes() map[string]int {
	found := map[string]int{"kilnd": r.DaemonPID()}
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
		for _, name := range []string{"keep", "gateway"} {
			if args[1] == name {
				pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
				found[name] = pid
			}
		}
	}
	return found
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
