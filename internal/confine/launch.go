package confine

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// LaunchArgs are what Launch takes.
func LaunchArgs(uid, gid int, command []string) []string {
	return append([]string{strconv.Itoa(uid), strconv.Itoa(gid)}, command...)
}

// Launch makes the process another user's, without capabilities and any way
// to new ones, and replaces it by a command: "UID GID COMMAND...". It returns
// only an error. It is a process of its own, because a thread of the keeper
// that had that user's identity could be killed by that user.
//
// The command may be in a folder that the user cannot enter: up to the moment
// of its start the right to search folders is kept.
func Launch(args []string) error {
	if len(args) < 3 {
		return errors.New("launch: want a user, a group and a command")
	}
	uid, uerr := strconv.Atoi(args[0])
	gid, gerr := strconv.Atoi(args[1])
	if err := errors.Join(uerr, gerr); err != nil || uid <= 0 || gid <= 0 {
		return fmt.Errorf("launch: %q and %q are not a user and a group without privileges", args[0], args[1])
	}
	runtime.LockOSThread() // what follows concerns this thread, and the program that it becomes
	if err := errors.Join(yield("/proc/self/oom_score_adj"), become(uid, gid)); err != nil {
		return fmt.Errorf("launch %s: %w", args[2], err)
	}
	return fmt.Errorf("launch %s: %w", args[2], syscall.Exec(args[2], args[2:], os.Environ()))
}

// oomScore is the gateway's, between the keeper, which starts it again, and the
// instances.
const oomScore = -500

// yield makes the process whose score a file has one that the kernel kills
// before the keeper, when the score was to protect the keeper more than that.
// Raising it needs no right.
func yield(file string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	score, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || score >= oomScore {
		return err
	}
	return os.WriteFile(file, []byte(strconv.Itoa(oomScore)), 0)
}

// become changes the calling thread's identity.
func become(uid, gid int) error {
	steps := []struct {
		what string
		do   func() error
	}{
		{"drop what programs may bring", dropBounding},
		{"drop groups", func() error { return raw(unix.SYS_SETGROUPS, 0, 0, 0) }},
		{"become the group", func() error { return raw(unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)) }},
		{"keep a capability", func() error { return unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0) }},
		{"become the user", func() error { return raw(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)) }},
		{"drop capabilities", keepSearchOnly},
		{"refuse new privileges", func() error { return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			return fmt.Errorf("%s: %w", s.what, err)
		}
	}
	return nil
}

// raw is a system call for this thread alone, where package syscall would make
// it for all.
func raw(trap, a, b, c uintptr) error {
	if _, _, errno := unix.RawSyscall(trap, a, b, c); errno != 0 {
		return errno
	}
	return nil
}

// dropBounding has the calling thread give up every capability that a program
// could bring.
func dropBounding() error {
	for c := range uintptr(unix.CAP_LAST_CAP + 1) {
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		// EINVAL: this kernel has fewer. EPERM: a root that may not, and has
		// nothing that no_new_privs and the user do not take away.
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("drop the bounding set: %w", err)
		}
	}
	return nil
}

// keepSearchOnly leaves CAP_DAC_READ_SEARCH, which does not outlive exec: the
// new program's user is not root, and nothing is inheritable or ambient.
func keepSearchOnly() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{}
	data[0].Effective = 1 << unix.CAP_DAC_READ_SEARCH
	data[0].Permitted = data[0].Effective
	return unix.Capset(&header, &data[0])
}
