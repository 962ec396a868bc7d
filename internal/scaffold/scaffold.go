// Package scaffold writes a first definition for a folder: from its Compose
// file, else from its Dockerfile, else a small page of its own to start from.
//
// It reads the folder only: neither the process environment nor files that a
// Compose file names outside of it. What it had to choose, and what it could
// not carry over, is a comment beside the line that it concerns.
package scaffold

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/kilnproject/kiln"
)

// definitionFile is what Generate writes.
const definitionFile = "kiln.hcl"

// maxFile bounds what is read of one file, in bytes.
const maxFile = 1 << 20

// Generate returns the files to write, by slash path, and notes for the person
// who asked. It never returns a file that is there already; a folder that has a
// definition is an error of code conflict.
func Generate(fsys fs.FS) (files map[string][]byte, notes []string, err error) {
	if found, err := definition(fsys); err != nil || found != "" {
		if err != nil {
			return nil, nil, err
		}
		return nil, nil, kiln.Errorf(kiln.CodeConflict, "change it, or remove it first", "there is a definition already: %s", found)
	}
	for _, name := range composeFiles() {
		src, err := read(fsys, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		return fromCompose(fsys, name, src)
	}
	src, err := read(fsys, "Dockerfile")
	if errors.Is(err, fs.ErrNotExist) {
		return starter(fsys)
	}
	if err != nil {
		return nil, nil, err
	}
	return fromDockerfile(src)
}

// composeFiles are the names that Compose looks for, in its order.
func composeFiles() []string {
	return []string{"compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml"}
}

// definition returns the name of a definition's file that is there.
func definition(fsys fs.FS) (string, error) {
	entries, err := fs.ReadDir(fsys, ".")
	if err != nil {
		return "", kiln.Errorf(kiln.CodeFailed, "", "read the folder: %w", err)
	}
	for _, e := range entries {
		if path.Ext(e.Name()) == ".hcl" && e.Name() != "kilnd.hcl" {
			return e.Name(), nil
		}
	}
	return "", nil
}

// read returns a regular file's content. Symbolic links are refused: they may
// lead out of the folder.
func read(fsys fs.FS, name string) ([]byte, error) {
	info, err := fs.Lstat(fsys, name)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if !info.Mode().IsRegular() {
		return nil, kiln.Errorf(kiln.CodeRefused, "replace it by the file itself", "%s is not a regular file", name)
	}
	f, err := fsys.Open(name)
	if err != nil {
		return nil, kiln.Errorf(kiln.CodeFailed, "", "read %s: %w", name, err)
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, kiln.Errorf(kiln.CodeFailed, "", "read %s: %w", name, err)
	}
	if len(b) > maxFile {
		return nil, kiln.Errorf(kiln.CodeRefused, "", "%s has more than %d bytes", name, maxFile)
	}
	return b, nil
}

// names gives each thing a name of its own that Kiln accepts.
type names map[string]bool

// maxName is the longest name of a block.
const maxName = 24

func (n names) make(from string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(from) {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9' && b.Len() > 0:
			b.WriteRune(r)
		case b.Len() > 0 && !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
	}
	base := strings.TrimRight(b.String()[:min(b.Len(), maxName-3)], "-")
	if base == "" {
		base = "app"
	}
	name := base
	for i := 2; n[name]; i++ {
		name = fmt.Sprintf("%s-%d", base, i)
	}
	n[name] = true
	return name
}
