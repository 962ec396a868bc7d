package spec

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/kilnproject/kiln/internal/hclfile"
)

// maxRead bounds what all files of a definition hold together, in bytes.
const maxRead = 16 << 20

// maxLinks is how many symbolic links one path may go through, as in Linux.
const maxLinks = 40

// folder reads files of a definition's folder and remembers which.
type folder struct {
	fsys  fs.FS
	seen  map[string]bool
	cache map[string][]byte
	total int
}

func newFolder(fsys fs.FS) *folder {
	return &folder{fsys: fsys, seen: map[string]bool{}, cache: map[string][]byte{}}
}

// read returns the paths that were read, and the links that led to them,
// sorted.
func (f *folder) read() []string {
	var out []string
	for p := range f.seen {
		out = append(out, p)
	}
	slices.Sort(out)
	return out
}

// Files returns the names of the files that make the definition of a folder,
// sorted.
func Files(fsys fs.FS) ([]string, error) {
	entries, err := fs.ReadDir(fsys, ".")
	if err != nil {
		return nil, fmt.Errorf("read the folder: %w", err)
	}
	var names []string
	for _, e := range entries {
		if !e.IsDir() && IsDefinition(e.Name()) {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

// IsDefinition says whether a file of the folder, by its name, is part of the
// definition.
func IsDefinition(name string) bool {
	return path.Ext(name) == ".hcl" && !strings.HasPrefix(name, ".") && name != "kilnd.hcl"
}

// file returns the content of a regular file of the folder, at most
// hclfile.MaxBytes. Symbolic links are followed inside of the folder only.
func (f *folder) file(name string) ([]byte, error) {
	if b, ok := f.cache[name]; ok {
		return b, nil
	}
	at, err := f.resolve(name)
	if err != nil {
		return nil, err
	}
	b, err := f.content(at)
	if err != nil {
		return nil, err
	}
	if f.total += len(b); f.total > maxRead {
		return nil, fmt.Errorf("the definition's files have more than %d bytes together", maxRead)
	}
	f.cache[name] = b
	return b, nil
}

func (f *folder) content(at string) ([]byte, error) {
	info, err := fs.Stat(f.fsys, at)
	if err != nil {
		return nil, plain(err)
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("it is not a regular file")
	}
	file, err := f.fsys.Open(at)
	if err != nil {
		return nil, plain(err)
	}
	defer func() { _ = file.Close() }()
	b, err := io.ReadAll(io.LimitReader(file, hclfile.MaxBytes+1))
	if err != nil {
		return nil, plain(err)
	}
	if len(b) > hclfile.MaxBytes {
		return nil, fmt.Errorf("it has more than %d bytes", hclfile.MaxBytes)
	}
	return b, nil
}

// resolve follows the symbolic links of a path, each inside of the folder, and
// notes the path and the links.
func (f *folder) resolve(name string) (string, error) {
	clean := path.Clean(name)
	switch {
	case name == "" || strings.ContainsRune(name, 0) || !utf8.ValidString(name):
		return "", errors.New("it is not a path")
	case path.IsAbs(clean) || clean == ".." || strings.HasPrefix(clean, "../"):
		return "", errors.New("it leaves the definition's folder; only files inside of it can be read")
	}
	done, rest := ".", strings.Split(clean, "/")
	for links := 0; len(rest) > 0; {
		step := path.Join(done, rest[0])
		rest = rest[1:]
		if step == ".." || strings.HasPrefix(step, "../") {
			return "", errors.New("a symbolic link leads out of the definition's folder")
		}
		info, err := fs.Lstat(f.fsys, step)
		if err != nil {
			return "", plain(err)
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			done = step
			continue
		}
		if links++; links > maxLinks {
			return "", errors.New("too many symbolic links")
		}
		target, err := fs.ReadLink(f.fsys, step)
		if err != nil {
			return "", plain(err)
		}
		if path.IsAbs(target) {
			return "", errors.New("a symbolic link leads out of the definition's folder")
		}
		f.seen[step] = true
		rest = append(strings.Split(target, "/"), rest...)
	}
	f.seen[done] = true
	return done, nil
}

// plain takes the operation and the path off a file system's error, which
// depend on the file system at hand.
func plain(err error) error {
	var pathError *fs.PathError
	if errors.As(err, &pathError) {
		err = pathError.Err
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return missingError{}
	case errors.Is(err, fs.ErrPermission):
		return errors.New("it may not be read")
	}
	return err
}

// missingError is fs.ErrNotExist in words that are the same everywhere.
type missingError struct{}

func (missingError) Error() string        { return "there is no such file" }
func (missingError) Is(target error) bool { return target == fs.ErrNotExist }
