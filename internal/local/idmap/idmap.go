// Package idmap shows a sealed root to a user namespace: the same files, with
// owner 0 appearing as the namespace's root. Nothing is copied; the mount is
// the kernel's translation (mount_setattr(2), MOUNT_ATTR_IDMAP).
package idmap

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Size is how many user and group IDs a namespace has.
const Size = 65536

// Userns makes a user namespace whose IDs 0 to 65535 are base and up on the
// host. It lives as long as the file.
func Userns(base uint32) (*os.File, error) {
	// A traced process stops at its exec, before it runs one instruction; its
	// tracer is the thread that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(base), Size: Size}}
	proc, err := os.StartProcess("/proc/self/exe", []string{"kiln-userns"}, &os.ProcAttr{
		Sys: &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids,
			Ptrace: true, Pdeathsig: syscall.SIGKILL,
		},
	})
	if err != nil {
		return nil, fmt.Errorf("make a user namespace from %d: %w", base, err)
	}
	file, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", proc.Pid))
	killed := proc.Kill()
	_, waited := proc.Wait()
	if err := errors.Join(err, killed, waited); err != nil {
		if file != nil {
			_ = file.Close()
		}
		return nil, fmt.Errorf("make a user namespace from %d: %w", base, err)
	}
	return file, nil
}

// Mount shows source at target, read-only, translated for the namespace. The
// target must be a directory.
func Mount(source, target string, userns *os.File) error {
	tree, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("clone mount %s: %w", source, err)
	}
	defer func() { _ = unix.Close(tree) }()
	attr := &unix.MountAttr{
		Attr_set:  unix.MOUNT_ATTR_IDMAP | unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV,
		Userns_fd: uint64(userns.Fd()),
	}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, attr); err != nil {
		return fmt.Errorf("translate mount %s: %w", source, err)
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	return nil
}

// Same says whether target shows the directory source.
func Same(source, target string) bool {
	var a, b unix.Stat_t
	if unix.Stat(source, &a) != nil || unix.Stat(target, &b) != nil {
		return false
	}
	return a.Dev == b.Dev && a.Ino == b.Ino
}

// Unmount takes every mount off target and removes the directory.
func Unmount(target string) error {
	for {
		err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", target, err)
		}
	}
	if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
