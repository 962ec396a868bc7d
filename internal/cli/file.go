package cli

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/kilnproject/kiln"
)

// fileError makes what the file system says an error with a code.
func fileError(err error) error {
	switch {
	case err == nil || asShown(err) != nil:
		return err
	case errors.Is(err, fs.ErrNotExist):
		return kiln.Errorf(kiln.CodeNotFound, "", "%w", err)
	case errors.Is(err, fs.ErrPermission):
		return kiln.Errorf(kiln.CodeRefused, "", "%w", err)
	default:
		return kiln.Errorf(kiln.CodeFailed, "", "%w", err)
	}
}

// readFile reads a regular file of a folder, behind symbolic links that stay
// inside of it. The error wraps fs.ErrNotExist when there is none.
func readFile(root *os.Root, name string) ([]byte, error) {
	at, err := behindLinks(root, name)
	if err != nil {
		return nil, fileError(err)
	}
	content, err := root.ReadFile(at)
	return content, fileError(err)
}

// maxLinks is how many symbolic links lead to one file, as in the kernel.
const maxLinks = 40

// behindLinks returns what of a folder a name stands for: itself, or the file
// that its symbolic links lead to. It must be a regular file, if there is one.
// The folder may be a stranger's and this process root's, so a link that leads
// out of it is refused.
func behindLinks(root *os.Root, name string) (string, error) {
	for range maxLinks {
		info, err := root.Lstat(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return name, nil
		case err != nil:
			return "", err
		case info.Mode().IsRegular():
			return name, nil
		case info.Mode().Type() != fs.ModeSymlink:
			return "", kiln.Errorf(kiln.CodeRefused, "move it out of the way", "%s is not a file", filepath.Join(root.Name(), name))
		}
		target, err := root.Readlink(name)
		if err != nil {
			return "", err
		}
		next := filepath.Join(filepath.Dir(name), target)
		if filepath.IsAbs(target) || !filepath.IsLocal(next) {
			return "", kiln.Errorf(kiln.CodeRefused, "make it a file of the folder", "%s is a symbolic link that leads out of the folder, to %s", filepath.Join(root.Name(), name), target)
		}
		name = next
	}
	return "", kiln.Errorf(kiln.CodeRefused, "make it a file of the folder", "%s leads over too many symbolic links", filepath.Join(root.Name(), name))
}

// replaceFile puts content in the place of a file of a folder, in one step,
// with the file's mode and owner as they were. A symbolic link stays one: its
// target is replaced.
func replaceFile(root *os.Root, name string, content []byte) error {
	at, err := behindLinks(root, name)
	if err != nil {
		return fileError(err)
	}
	fresh := filepath.Join(filepath.Dir(at), "."+filepath.Base(at)+"-"+rand.Text())
	err = fill(root, fresh, at, content)
	if err == nil {
		err = root.Rename(fresh, at)
	}
	if err != nil {
		_ = root.Remove(fresh)
		return fileError(err)
	}
	folder, err := root.Open(filepath.Dir(at))
	if err != nil {
		return fileError(err)
	}
	defer func() { _ = folder.Close() }()
	return fileError(folder.Sync())
}

// fill writes a new file, with mode and owner of the one that it will replace,
// or else the owner of its folder.
func fill(root *os.Root, fresh, at string, content []byte) error {
	like, err := root.Lstat(at)
	if errors.Is(err, fs.ErrNotExist) {
		like, err = root.Stat(filepath.Dir(at))
	}
	if err != nil {
		return err
	}
	mode := fs.FileMode(0o644)
	if !like.IsDir() {
		mode = like.Mode().Perm()
	}
	f, err := root.OpenFile(fresh, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	keepOwner(f, like)
	if err := f.Chmod(mode); err != nil { // after the owner, whose change takes bits
		return errors.Join(err, f.Close())
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Sync(), f.Close())
}
