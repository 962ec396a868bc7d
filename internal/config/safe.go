package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/kilnproject/kiln"
)

// guard is who may do what with a file.
type guard struct {
	forbidden fs.FileMode // bits that must not be set
	mend      string      // the change of mode that mends it
	why       string      // what others could do with them
}

// trusted is for a file that its owner alone can change.
func trusted() guard { return guard{0o022, "chmod go-w", "change"} }

// private is for one that, besides, only its group may read.
func private() guard { return guard{0o027, "chmod g-w,o=", "read or change"} }

// secret is for one that only its owner may read.
func secret() guard { return guard{0o077, "chmod go=", "read or change"} }

// Secret reads a file that only its owner may read, which is root or the user
// of this process.
func Secret(path string) ([]byte, error) { return readSafe(path, secret(), maxSecret) }

const maxSecret = 64 << 10

// readSafe reads a regular file that nobody but root and the user of this
// process can have written, and whose folders nobody else can have exchanged.
func readSafe(path string, g guard, most int64) ([]byte, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, unreadable(path, err)
	}
	if err := safeFolders(filepath.Dir(real)); err != nil {
		return nil, err
	}
	// Not blocking: a pipe in its place must not hold anything up.
	f, err := os.OpenFile(real, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, unreadable(path, err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, unreadable(path, err)
	}
	if err := g.check(path, info); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	switch {
	case err != nil:
		return nil, unreadable(path, err)
	case int64(len(b)) > most:
		return nil, kiln.Errorf(kiln.CodeInvalid, "", "%s has more than %d bytes", path, most)
	}
	return b, nil
}

// check refuses what is no file, or not under its owner's control alone.
func (g guard) check(path string, info fs.FileInfo) error {
	owner, _ := info.Sys().(*syscall.Stat_t)
	switch {
	case !info.Mode().IsRegular():
		return kiln.Errorf(kiln.CodeRefused, "", "%s is not a regular file", path)
	case !ours(owner):
		return kiln.Errorf(kiln.CodeRefused, fmt.Sprintf("look at what is in it, then: chown root:root %s", path),
			"%s belongs to user %d: whoever that is could change what Kiln does", path, owner.Uid)
	case info.Mode().Perm()&g.forbidden != 0:
		return kiln.Errorf(kiln.CodeRefused, fmt.Sprintf("look at what is in it, then: %s %s", g.mend, path),
			"%s has mode %04o: others than its owner may %s it", path, info.Mode().Perm(), g.why)
	}
	return nil
}

// ours says whether a file belongs to root or to the user of this process.
func ours(owner *syscall.Stat_t) bool {
	return owner != nil && (owner.Uid == 0 || int64(owner.Uid) == int64(os.Geteuid()))
}

// safeFolders refuses a path in which another user could exchange a folder.
func safeFolders(dir string) error {
	for {
		info, err := os.Lstat(dir)
		if err != nil {
			return unreadable(dir, err)
		}
		owner, _ := info.Sys().(*syscall.Stat_t)
		open := info.Mode().Perm()&0o022 != 0 && info.Mode()&fs.ModeSticky == 0
		if !ours(owner) || open {
			return kiln.Errorf(kiln.CodeRefused, "keep it in a folder that belongs to root, such as /etc/kiln, and that nobody else may write",
				"the folder %s belongs to user %d and has mode %04o: others could put another file in its place", dir, owner.Uid, info.Mode().Perm())
		}
		if parent := filepath.Dir(dir); parent != dir {
			dir = parent
			continue
		}
		return nil
	}
}

func unreadable(path string, err error) error {
	code := kiln.CodeFailed
	switch {
	case errors.Is(err, fs.ErrNotExist):
		code = kiln.CodeNotFound
	case errors.Is(err, fs.ErrPermission):
		code = kiln.CodeRefused
	}
	var at *fs.PathError
	if errors.As(err, &at) {
		err = at.Err
	}
	return kiln.Errorf(code, "", "%s cannot be read: %w", path, err)
}
