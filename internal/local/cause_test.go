package local

import (
	"strings"
	"testing"

	"github.com/kilnproject/kiln"
)

func TestReadLog(t *testing.T) {
	for name, test := range map[string]struct {
		code   int
		init   bool
		log    []string
		kind   kiln.CauseKind
		detail string
	}{
		"says nothing":      {1, true, []string{"oops"}, kiln.CauseExited, ""},
		"nothing at all":    {1, true, nil, kiln.CauseExited, ""},
		"shell":             {2, true, []string{"start", "sh: 1: cannot create /etc/motd: Read-only file system"}, kiln.CauseExited, "read-only: sh: 1: cannot create /etc/motd"},
		"a trace follows":   {1, true, []string{"Error: EROFS: read-only file system, open '/app/x'", "    at Object.openSync"}, kiln.CauseExited, "open '/app/x'"},
		"it went on and ok": {0, true, []string{"Read-only file system"}, kiln.CauseExited, ""},
		"catatonit":         {1, true, []string{"ERROR (catatonit:6): failed to exec pid1: No such file or directory"}, kiln.CauseStartFailed, "cannot be run: No such file or directory"},
		"tini":              {127, true, []string{"[FATAL tini (7)] exec nope failed: Permission denied"}, kiln.CauseStartFailed, "cannot be run: Permission denied"},
		"not by an init":    {1, false, []string{"ERROR (catatonit:6): failed to exec pid1: No such file or directory"}, kiln.CauseExited, ""},
	} {
		got := readLog(kiln.Cause{Kind: kiln.CauseExited, ExitCode: test.code, LastLog: test.log}, test.init)
		if got.Kind != test.kind || !strings.Contains(got.Detail, test.detail) || (test.detail == "") != (got.Detail == "") || (got.Detail == "") != (got.Hint == "") {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestALongLineOfACauseIsShortened(t *testing.T) {
	for line, want := range map[string]string{
		"short":                              "short",
		strings.Repeat("x", 16<<10):          strings.Repeat("x", lastBytes) + "...",
		"x" + strings.Repeat("é", lastBytes): "x" + strings.Repeat("é", lastBytes/2-1) + "...",
	} {
		if got := clip(line); got != want {
			t.Errorf("%d bytes became %q", len(line), got)
		}
	}
}
