package main

import (
	"context"
	"io"
	"os/user"
	"strconv"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/cli"
	"github.com/kilnproject/kiln/internal/confine"
	"github.com/kilnproject/kiln/internal/install"
	"github.com/kilnproject/kiln/internal/scan"
	"github.com/kilnproject/kiln/internal/seal"
)

// readerUser is who reads what strangers made where there is such a user, and
// otherwise readerID, for user and group: a number that no package gives away,
// and not that of the gateway, whose memory is none of its business.
const (
	readerUser = install.ReaderUser
	readerID   = 64739
)

// workers is the command that tasks for processes without privileges are
// appended to: those of kiln work, or those of kilnd's own, which need what kiln
// does not carry. program is the path of the executable.
func workers(program string) confine.Program {
	uid, gid := unprivileged(readerUser, readerID)
	return confine.Program{Path: program, Args: []string{"work"}, UID: uid, GID: gid}
}

// launch is the command that becomes a user without privileges and then what
// follows. program is the kiln executable.
func launch(program string, uid, gid int) []string {
	return append([]string{program, "launch"}, confine.LaunchArgs(uid, gid, nil)...)
}

// unprivileged is a user and its group: that of a name where there is one,
// otherwise a number.
func unprivileged(name string, otherwise int) (uid, gid int) {
	u, err := user.Lookup(name)
	if err != nil {
		return otherwise, otherwise
	}
	uid, uerr := strconv.Atoi(u.Uid)
	gid, gerr := strconv.Atoi(u.Gid)
	if uerr != nil || gerr != nil || uid <= 0 || gid <= 0 {
		return otherwise, otherwise
	}
	return uid, gid
}

// runWork does one task on open files; kilnd starts it, without privileges.
func runWork(ctx context.Context, args []string, speech io.Writer) int {
	tasks := map[string]confine.Task{scan.Task: seal.Receive(inspect), seal.ListTask: seal.List}
	if len(args) != 1 || tasks[args[0]] == nil {
		return cli.Explain(speech, kiln.Errorf(kiln.CodeInvalid, "", "there is no task %q", args))
	}
	economize()
	if err := confine.Serve(ctx, tasks[args[0]]); err != nil {
		return cli.Explain(speech, err)
	}
	return cli.ExitOK
}
