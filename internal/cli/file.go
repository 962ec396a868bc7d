package cli

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/kilnproject/kiln"
)

// fileError makes what the file system says an error with a code.
func fileError(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return kiln.Errorf(kiln.CodeNotFound, "", "%w", err)
	case errors.Is(err, fs.ErrPermission):
		return kiln.Errorf(kiln.CodeRefused, "", "%w", err)
	default:
		return kiln.Errorf(kiln.CodeFailed, "", "%w", err)
	}
}

// replaceFile puts content in the place of a file, in one step, with the
// file's mode and owner as they were. A symbolic link stays one: its target is
// replaced.
func replaceFile(path string, content []byte) (err error) {
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	dir := filepath.Dir(path)
	temp, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-*")
	if err != nil {
		return fileError(err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(temp.Name())
			err = fileError(err)
		}
	}()
	if err := fill(temp, path, content); err != nil {
		_ = temp.Close()
		return err
	}
	if err := temp.Close(); err != nil {
		return err
	}
	if err := os.Rename(temp.Name(), path); err != nil {
		return err
	}
	folder, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = folder.Close() }()
	return folder.Sync()
}

func fill(temp *os.File, path string, content []byte) error {
	like, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		like, err = os.Stat(filepath.Dir(path))
	}
	if err != nil {
		return err
	}
	mode := fs.FileMode(0o644)
	if !like.IsDir() {
		mode = like.Mode().Perm()
	}
	if err := temp.Chmod(mode); err != nil {
		return err
	}
	keepOwner(temp, like)
	if _, err := temp.Write(content); err != nil {
		return err
	}
	return temp.Sync()
}
