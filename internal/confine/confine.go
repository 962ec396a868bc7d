// Package confine takes from a process what it does not need, and lets work on
// what strangers made be done by such a process.
//
// A Program starts one process per task and hands it open files. The process
// is an unprivileged user's by then; Serve takes from it all but the use of
// those files, and only then reads. Whatever a layer or an archive does to it,
// it can open nothing, connect to nothing and start nothing.
package confine

import (
	"errors"
	"fmt"
	"runtime"
	"slices"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"github.com/landlock-lsm/go-landlock/landlock"
	"golang.org/x/sys/unix"
)

// compute is what every Go program does that works with open files.
func compute() []string {
	return []string{
		"brk", "clock_gettime", "clock_nanosleep", "close", "copy_file_range", "dup", "dup3",
		"epoll_create1", "epoll_ctl", "epoll_pwait", "eventfd2", "exit", "exit_group", "fcntl", "fdatasync", "fstat",
		"fsync", "ftruncate", "futex", "getegid", "geteuid", "getgid", "getpid", "getrandom", "getrlimit", "gettid",
		"getuid", "lseek", "madvise", "membarrier", "mincore", "mmap", "mprotect", "mremap", "munmap", "nanosleep", "pipe2",
		"ppoll", "prctl", "pread64", "prlimit64", "pwrite64", "read", "readv", "restart_syscall", "rseq", "rt_sigaction",
		"rt_sigprocmask", "rt_sigreturn", "sched_getaffinity", "sched_yield", "sendfile", "set_robust_list", "sigaltstack",
		"splice", "sysinfo", "tgkill", "timer_create", "timer_delete", "timer_settime", "uname", "write", "writev",
	}
}

// serve is what a server needs besides: sockets and files below folders.
func serve() []string {
	return []string{
		"accept4", "bind", "connect", "faccessat", "faccessat2", "fallocate", "fchmod", "fchmodat", "flock",
		"getcwd", "getdents64", "getpeername", "getsockname", "getsockopt", "linkat", "listen", "mkdirat",
		"newfstatat", "openat", "readlinkat", "recvfrom", "recvmmsg", "recvmsg", "renameat", "renameat2",
		"sendmmsg", "sendmsg", "sendto", "setsockopt", "shutdown", "socket", "socketpair", "statfs", "fstatfs", "statx",
		"symlinkat", "umask", "unlinkat", "utimensat",
	}
}

// ToOpenFiles leaves the process the files that it has open, memory and
// threads; what else it asks of the kernel fails. There is no way back.
func ToOpenFiles() error { return filter(compute()) }

// ToFolders leaves the process sockets, and the folders: readable only or
// writable. Of the rest of the file system nothing can be opened, where the
// kernel has Landlock; other programs cannot be started anywhere. Folders
// that are not there are left out. There is no way back.
func ToFolders(readable, writable []string) error {
	rules := []landlock.Rule{
		landlock.RODirs(readable...).IgnoreIfMissing(),
		landlock.RWDirs(writable...).WithRefer().IgnoreIfMissing(),
	}
	if err := landlock.V5.BestEffort().RestrictPaths(rules...); err != nil {
		return fmt.Errorf("confine to folders: %w", err)
	}
	return filter(append(compute(), serve()...))
}

// filter allows system calls by name. What another architecture does not have
// is left out.
func filter(allowed []string) error {
	runtime.LockOSThread() // no_new_privs is the thread's; the filter then takes all of them
	defer runtime.UnlockOSThread()
	slices.Sort(allowed)
	err := seccomp.LoadFilter(seccomp.Filter{
		NoNewPrivs: true,
		Flag:       seccomp.FilterFlagTSync,
		Policy: seccomp.Policy{
			DefaultAction: seccomp.ActionErrno,
			Syscalls: []seccomp.SyscallGroup{
				{Action: seccomp.ActionAllow, Names: allowed, NamesWithCondtions: []seccomp.NameWithConditions{{
					Name:       "clone", // threads, never processes
					Conditions: seccomp.ArgumentConditions{{Argument: 0, Operation: seccomp.BitsSet, Value: unix.CLONE_THREAD}},
				}}},
				// Its flags are in memory, where no filter sees them; without it clone is used.
				{Action: errno(unix.ENOSYS), Names: []string{"clone3"}},
			},
		},
	})
	if err != nil {
		return fmt.Errorf("confine: %w", err)
	}
	return nil
}

func errno(e unix.Errno) seccomp.Action {
	return seccomp.Action(unix.SECCOMP_RET_ERRNO | uint32(e))
}

// bound keeps a process from filling the disk or the table of files, and from
// leaving its memory behind.
func bound(openFiles, fileBytes uint64) error {
	var errs []error
	for resource, most := range map[int]uint64{unix.RLIMIT_NOFILE: openFiles, unix.RLIMIT_FSIZE: fileBytes, unix.RLIMIT_CORE: 0} {
		errs = append(errs, unix.Setrlimit(resource, &unix.Rlimit{Cur: most, Max: most}))
	}
	return errors.Join(errs...)
}
