package confine

import (
	"errors"
	"fmt"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Become makes the whole process another user's, without groups, capabilities
// and any way to new ones. It works in programs without cgo only.
func Become(uid, gid int) error {
	if uid <= 0 || gid <= 0 {
		return fmt.Errorf("become %d:%d: not a user and a group without privileges", uid, gid)
	}
	if err := dropBounding(everywhere); err != nil {
		return err
	}
	if err := errors.Join(syscall.Setgroups(nil), syscall.Setresgid(gid, gid, gid), syscall.Setresuid(uid, uid, uid)); err != nil {
		return fmt.Errorf("become %d:%d: %w", uid, gid, err) // what capabilities there were went with the user
	}
	if err := everywhere(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0); err != nil {
		return fmt.Errorf("refuse new privileges: %w", err)
	}
	return nil
}

// everywhere is a system call of every thread.
func everywhere(trap, a, b, c uintptr) error {
	if _, _, errno := syscall.AllThreadsSyscall6(trap, a, b, c, 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// ids reads a user and a group.
func ids(uid, gid string) (int, int, error) {
	u, uerr := strconv.Atoi(uid)
	g, gerr := strconv.Atoi(gid)
	return u, g, errors.Join(uerr, gerr)
}
