// Package durable replaces files so that whoever reads one, also after a power
// cut, finds all of the old content or all of the new.
package durable

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Unfinished comes before the name of a file that is being written. What a
// process that was killed leaves of it, the next Write of that file takes over.
const Unfinished = ".new-"

// Write replaces a file, or makes it, with that mode. The error names the file.
// A file is for one writer at a time.
func Write(path string, content []byte, mode os.FileMode) error {
	if err := replace(path, content, mode); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func replace(path string, content []byte, mode os.FileMode) error {
	temporary := filepath.Join(filepath.Dir(path), Unfinished+filepath.Base(path))
	f, err := os.OpenFile(temporary, os.O_CREATE|os.O_WRONLY|os.O_TRUNC|unix.O_NOFOLLOW, mode|0o200)
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(temporary) }() // gone already once renamed
	_, err = f.Write(content)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(temporary, path); err != nil {
		return err
	}
	return SyncFolder(filepath.Dir(path))
}

// SyncFolder makes the names in a folder durable.
func SyncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
