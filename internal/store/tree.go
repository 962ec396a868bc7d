package store

import (
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/kilnproject/kiln"
)

// Bounds of a tree. The kernel's are 255 bytes for a name and 4095 for a path.
const (
	maxTreeEntries = 500_000
	maxName        = 255
	maxPath        = 4095
)

// CheckTree refuses a tree that is not sorted, names a path twice, climbs out
// of its root, puts something beneath a file or a symbolic link, has other
// types than files, folders and links, set-id bits, or digests and sizes that
// do not fit the type. Folders that are only implied are allowed.
func CheckTree(t kiln.Tree) error {
	if len(t.Entries) > maxTreeEntries {
		return kiln.Errorf(kiln.CodeInvalid, "leave out what is not needed with .dockerignore", "the tree has %d entries, more than %d", len(t.Entries), maxTreeEntries)
	}
	types := make(map[string]fs.FileMode, len(t.Entries))
	last := ""
	for _, e := range t.Entries {
		if err := checkEntry(e); err != nil {
			return kiln.Errorf(kiln.CodeInvalid, "", "tree: entry %q: %w", e.Path, err)
		}
		if e.Path <= last {
			return kiln.Errorf(kiln.CodeInvalid, "", "tree: entry %q is out of order or twice there", e.Path)
		}
		for dir := path.Dir(e.Path); dir != "."; dir = path.Dir(dir) {
			mode, known := types[dir]
			if known && !mode.IsDir() {
				return kiln.Errorf(kiln.CodeInvalid, "", "tree: entry %q is beneath %q, which is not a folder", e.Path, dir)
			}
			if known {
				break // its own parents were checked when it came
			}
			types[dir] = fs.ModeDir
		}
		types[e.Path] = e.Mode
		last = e.Path
	}
	return nil
}

func checkEntry(e kiln.TreeEntry) error {
	if err := checkPath(e.Path); err != nil {
		return err
	}
	if e.Mode&^(fs.ModeDir|fs.ModeSymlink|fs.ModePerm) != 0 {
		return fmt.Errorf("mode %v is not allowed", e.Mode)
	}
	switch e.Mode.Type() {
	case fs.ModeDir:
		if e.Digest != "" || e.Link != "" || e.Size != 0 {
			return fmt.Errorf("a folder has neither content nor target")
		}
	case fs.ModeSymlink:
		if e.Digest != "" || e.Size != 0 {
			return fmt.Errorf("a symbolic link has no content")
		}
		if e.Link == "" || len(e.Link) > maxPath || strings.ContainsRune(e.Link, 0) {
			return fmt.Errorf("its target is empty, too long or has a NUL")
		}
	case 0:
		if e.Link != "" {
			return fmt.Errorf("a file has no target")
		}
		if e.Size < 0 || e.Size > DefaultMaxBlob {
			return fmt.Errorf("a size of %d bytes is not allowed", e.Size)
		}
		if _, err := kiln.ParseDigest(string(e.Digest)); err != nil {
			return err
		}
	default:
		return fmt.Errorf("mode %v is not allowed", e.Mode)
	}
	return nil
}

func checkPath(p string) error {
	switch {
	case !fs.ValidPath(p) || p == ".":
		return fmt.Errorf("the path is not a clean slash path below the root")
	case strings.ContainsRune(p, 0):
		return fmt.Errorf("the path has a NUL")
	case len(p) > maxPath:
		return fmt.Errorf("the path has more than %d bytes", maxPath)
	}
	for part := range strings.SplitSeq(p, "/") {
		if len(part) > maxName {
			return fmt.Errorf("a name has more than %d bytes", maxName)
		}
	}
	return nil
}
