package seal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Protection is what keeps a sealed file from being changed.
type Protection string

// The protections. None is a warning: only the file's mode is in the way.
const (
	ProtectionVerity    Protection = "fs-verity" // the kernel verifies every block that is read
	ProtectionImmutable Protection = "immutable" // chattr +i
	ProtectionNone      Protection = "none"
)

// immutableFlag is FS_IMMUTABLE_FL of linux/fs.h.
const immutableFlag = 0x10

// verityArg is struct fsverity_enable_arg of linux/fsverity.h.
type verityArg struct {
	version       uint32
	hashAlgorithm uint32
	blockSize     uint32
	saltSize      uint32
	saltPtr       uint64
	sigSize       uint32
	_             uint32
	sigPtr        uint64
	_             [11]uint64
}

// protect makes an open file unchangeable as well as its file system can. The
// file must be open for reading only. Done already, it says so.
func protect(f *os.File) Protection {
	arg := verityArg{version: 1, hashAlgorithm: 1 /* SHA-256 */, blockSize: 4096}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.FS_IOC_ENABLE_VERITY, uintptr(unsafe.Pointer(&arg))) //nolint:gosec // as ioctl wants it
	if errno == 0 || errno == unix.EEXIST {
		return ProtectionVerity
	}
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		return ProtectionNone
	}
	if flags&immutableFlag != 0 {
		return ProtectionImmutable
	}
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags|immutableFlag); err != nil {
		return ProtectionNone
	}
	return ProtectionImmutable
}

// unprotect takes back of protect what would keep the file from being removed.
// fs-verity stays: it hinders writing only.
func unprotect(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil || flags&immutableFlag == 0 {
		return f.Close() // a file system without flags has not set one
	}
	err = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags&^immutableFlag)
	return errors.Join(err, f.Close())
}

// removeProtected removes a file that protect may have been applied to.
func removeProtected(path string) error {
	err := unprotect(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := errors.Join(err, os.Remove(path)); err != nil {
		return fmt.Errorf("remove seal: %w", err)
	}
	return nil
}
