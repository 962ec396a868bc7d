package local

import (
	"regexp"
	"slices"
	"strings"

	"github.com/kilnproject/kiln"
)

// readLog finds in the last lines of an instance that exited what its exit
// code cannot say: that its command is not there, or that it wrote where
// nothing may be written. The lines are the program's own: what is found
// explains, and decides nothing.
func readLog(c kiln.Cause, hasInit bool) kiln.Cause {
	if c.ExitCode == 0 || len(c.LastLog) == 0 {
		return c
	}
	if last := initRefusal().FindStringSubmatch(c.LastLog[len(c.LastLog)-1]); hasInit && last != nil {
		c.Kind, c.Detail = kiln.CauseStartFailed, "its command cannot be run: "+last[1]+last[2]
		c.Hint = "see that the image holds the program, for its platform, and that user may run it"
		return c
	}
	for _, line := range slices.Backward(c.LastLog) {
		if readOnly(line) {
			c.Detail = "it wrote to a path that is read-only: " + strings.TrimSpace(line)
			c.Hint = `images are read-only: name the folder in the service, writable = { "/path" = "16MiB" }, or let the program write below /tmp or /run`
			return c
		}
	}
	return c
}

// initRefusal matches what catatonit and tini say when they cannot run their
// child.
func initRefusal() *regexp.Regexp {
	return regexp.MustCompile(`^(?:ERROR \(catatonit:\d+\): failed to exec pid1: (.+)|\[FATAL tini \(\d+\)\] exec .+ failed: (.+))$`)
}

// readOnly reports whether a line tells of EROFS, as libc, Go, the JVM and
// Node say it.
func readOnly(line string) bool {
	return strings.Contains(strings.ToLower(line), "read-only file system") || strings.Contains(line, "EROFS")
}
