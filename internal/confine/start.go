package confine

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// Start starts a command as another user, without groups, capabilities and any
// way to new ones; with the user 0, as it is. It is what Launch does, without a
// program between. The command may be in a folder that the user cannot enter;
// it has itself open besides its ExtraFiles, and can do nothing with that.
func Start(cmd *exec.Cmd, uid, gid int) error {
	if uid == 0 {
		return cmd.Start()
	}
	program, err := os.OpenFile(cmd.Path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = program.Close() }()
	cmd.Path = fmt.Sprintf("/proc/self/fd/%d", firstFile+len(cmd.ExtraFiles))
	cmd.ExtraFiles = append(slices.Clip(cmd.ExtraFiles), program) // the caller's array is the caller's
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	started := make(chan error)
	go func() {
		// What a thread gave up its child has not. The thread ends with this
		// goroutine.
		runtime.LockOSThread()
		err := dropBounding()
		if err == nil {
			err = unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
		}
		if err == nil {
			err = cmd.Start()
		}
		started <- err
	}()
	return <-started
}
