package main

import (
	"os/user"
	"strconv"

	"github.com/kilnproject/kiln/internal/confine"
)

// readerUser is who reads what strangers made where there is such a user, and
// otherwise readerID, for user and group: a number that no package gives away,
// and not that of the gateway, whose memory is none of its business.
const (
	readerUser = "kiln-reader"
	readerID   = 64739
)

// workers is the command that tasks for processes without privileges are
// appended to. program is the kiln executable.
func workers(program string) confine.Program {
	uid, gid := strconv.Itoa(readerID), strconv.Itoa(readerID)
	if u, err := user.Lookup(readerUser); err == nil && u.Uid != "0" && u.Gid != "0" {
		uid, gid = u.Uid, u.Gid
	}
	return confine.Program{program, "launch", uid, gid, program, "work"}
}
