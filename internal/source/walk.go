package source

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/kilnproject/kiln"
)

// found is an entry with its file's identity when it was found.
type found struct {
	kiln.TreeEntry
	info fs.FileInfo // of regular files
}

// walker collects entries, each once.
type walker struct {
	ctx        context.Context
	root       *os.Root
	entries    map[string]*found
	bytes      int64
	maxBytes   int64
	maxEntries int
}

func newWalker(ctx context.Context, root *os.Root, want Want) *walker {
	w := &walker{ctx: ctx, root: root, entries: map[string]*found{}, maxBytes: want.MaxBytes, maxEntries: want.MaxEntries}
	if w.maxBytes == 0 {
		w.maxBytes = defaultMaxBytes
	}
	if w.maxEntries == 0 {
		w.maxEntries = defaultMaxEntries
	}
	return w
}

// sorted returns the entries by path.
func (w *walker) sorted() []*found {
	out := make([]*found, 0, len(w.entries))
	for _, f := range w.entries {
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b *found) int { return strings.Compare(a.Path, b.Path) })
	return out
}

// single takes one file or symbolic link; the error wraps fs.ErrNotExist when
// there is none.
func (w *walker) single(name string) error {
	name = path.Clean(name)
	if !fs.ValidPath(name) || name == "." {
		return kiln.Errorf(kiln.CodeInvalid, "", "%q is not a path below the folder", name)
	}
	if err := w.above(name); err != nil {
		return err
	}
	info, err := w.root.Lstat(name)
	if err != nil {
		return missing(name, err)
	}
	if info.IsDir() {
		return kiln.Errorf(kiln.CodeInvalid, "", "%s is a folder, not a file", name)
	}
	return w.add(w.root, name, name, info)
}

func missing(name string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return kiln.Errorf(kiln.CodeNotFound, "paths of the definition are relative to its folder; those of a Dockerfile to its context", "there is no %s: %w", name, fs.ErrNotExist)
	}
	return kiln.Errorf(kiln.CodeFailed, "", "read %s: %w", name, err)
}

// above takes the folders that hold name. A symbolic link among them is
// refused: what is behind it would not be where the tree says.
func (w *walker) above(name string) error {
	parent := path.Dir(name)
	if parent == "." || w.entries[parent] != nil {
		return nil
	}
	if err := w.above(parent); err != nil {
		return err
	}
	info, err := w.root.Lstat(parent)
	if err != nil {
		return missing(parent, err)
	}
	if !info.IsDir() {
		return kiln.Errorf(kiln.CodeRefused, "name the folder itself", "%s is %s, not a folder", parent, kind(info.Mode()))
	}
	return w.folder(parent)
}

func (w *walker) folder(name string) error {
	if w.entries[name] != nil {
		return nil
	}
	if err := w.count(name, 0); err != nil {
		return err
	}
	w.entries[name] = &found{TreeEntry: kiln.TreeEntry{Path: name, Mode: fs.ModeDir | 0o755}}
	return nil
}

// context takes a build context: all but what each of its Dockerfiles' ignore
// files leaves out, and always those files and the Dockerfiles.
func (w *walker) context(c buildContext) error {
	start := w.root
	if c.path != "." {
		if err := w.above(c.path + "/."); err != nil {
			return contextError(c.path, err)
		}
		sub, err := w.root.OpenRoot(c.path)
		if err != nil {
			return contextError(c.path, missing(c.path, err))
		}
		defer func() { _ = sub.Close() }()
		start = sub
	}
	var ignores []*ignore
	for _, dockerfile := range c.dockerfiles {
		if _, err := w.control(c.path, dockerfile); err != nil {
			return contextError(c.path, err)
		}
		i, err := w.ignore(c.path, dockerfile)
		if err != nil {
			return contextError(c.path, err)
		}
		ignores = append(ignores, i)
	}
	return w.descend(start, c.path, ".", ignores)
}

func contextError(context string, err error) error {
	var e *kiln.Error
	if errors.As(err, &e) {
		e.Message = "build context " + context + ": " + e.Message
	}
	return err
}

// maxLinks is how many symbolic links lead to one file, as in the kernel.
const maxLinks = 40

// control takes a file of a context that BuildKit reads itself, whatever the
// ignore files say, and returns its path in the folder. It follows symbolic
// links as BuildKit does: inside of the context, whose root absolute ones and
// ".." too many mean.
func (w *walker) control(context, file string) (string, error) {
	for range maxLinks {
		name := path.Join(context, file)
		if err := w.single(name); err != nil {
			return "", err
		}
		e := w.entries[name]
		switch {
		case e.Mode&fs.ModeSymlink == 0:
			return name, nil
		case path.IsAbs(e.Link):
			file = path.Clean(e.Link)[1:]
		default:
			file = path.Join("/", path.Dir(file), e.Link)[1:]
		}
	}
	return "", kiln.Errorf(kiln.CodeRefused, "", "%s leads over too many symbolic links", path.Join(context, file))
}

// ignore takes and reads the ignore file of a Dockerfile.
func (w *walker) ignore(context, dockerfile string) (*ignore, error) {
	for _, file := range ignoreFiles(dockerfile) {
		name, err := w.control(context, file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		b, err := readSmall(w.root, name)
		if err != nil {
			return nil, err
		}
		return newIgnore(file, b)
	}
	return newIgnore("", nil)
}

// descend takes the content of one folder: below is its path within the
// context, which the ignore files speak of.
func (w *walker) descend(dir *os.Root, context, below string, ignores []*ignore) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	names, err := list(dir)
	if err != nil {
		return kiln.Errorf(kiln.CodeFailed, "make it readable, or name it in .dockerignore", "read the folder %s: %w", path.Join(context, below), err)
	}
	for _, e := range names {
		within := path.Join(below, e.Name())
		hidden, whole, err := hides(ignores, within, e.IsDir())
		if err != nil {
			return err
		}
		if whole || hidden && !e.IsDir() {
			continue
		}
		if err := w.entry(dir, e, context, within, hidden, ignores); err != nil {
			return err
		}
	}
	return nil
}

// hides says what all ignore files say together: an entry is left out when no
// Dockerfile sees it.
func hides(ignores []*ignore, name string, folder bool) (hidden, whole bool, err error) {
	hidden, whole = true, true
	for _, i := range ignores {
		h, all, err := i.hides(name, folder)
		if err != nil {
			return false, false, err
		}
		hidden, whole = hidden && h, whole && all
	}
	return hidden, whole, nil
}

func (w *walker) entry(dir *os.Root, e fs.DirEntry, context, within string, hidden bool, ignores []*ignore) error {
	name := path.Join(context, within)
	if !e.IsDir() {
		info, err := dir.Lstat(e.Name())
		if err != nil {
			return changed(name)
		}
		if err := w.above(name); err != nil {
			return err
		}
		return w.add(dir, e.Name(), name, info)
	}
	if err := checkName(name); err != nil {
		return err
	}
	if !hidden {
		if err := w.above(name + "/."); err != nil {
			return err
		}
	}
	sub, err := dir.OpenRoot(e.Name())
	if err != nil {
		return kiln.Errorf(kiln.CodeFailed, "make it readable, or name it in .dockerignore", "open the folder %s: %w", name, err)
	}
	defer func() { _ = sub.Close() }()
	return w.descend(sub, context, within, ignores)
}

// add takes a file or a symbolic link, which dir has under base.
func (w *walker) add(dir *os.Root, base, name string, info fs.FileInfo) error {
	if w.entries[name] != nil {
		return nil
	}
	if err := checkName(name); err != nil {
		return err
	}
	f := &found{TreeEntry: kiln.TreeEntry{Path: name}}
	switch mode := info.Mode(); {
	case mode.IsRegular():
		f.Mode, f.Size, f.info = 0o644, info.Size(), info
		if mode&0o111 != 0 {
			f.Mode = 0o755
		}
	case mode&fs.ModeSymlink != 0:
		target, err := dir.Readlink(base)
		if err != nil {
			return changed(name)
		}
		if !utf8.ValidString(target) {
			return kiln.Errorf(kiln.CodeRefused, "rename its target", "the symbolic link %s has a target that is not UTF-8", name)
		}
		f.Mode, f.Link = fs.ModeSymlink|0o777, target
	default:
		return kiln.Errorf(kiln.CodeRefused, "remove it, or name it in .dockerignore", "%s is %s; a tree holds files, folders and symbolic links", name, kind(mode))
	}
	if err := w.count(name, f.Size); err != nil {
		return err
	}
	w.entries[name] = f
	return nil
}

// kind names what a tree cannot hold.
func kind(mode fs.FileMode) string {
	switch {
	case mode.IsRegular():
		return "a file"
	case mode.IsDir():
		return "a folder"
	case mode&fs.ModeSymlink != 0:
		return "a symbolic link"
	case mode&fs.ModeSocket != 0:
		return "a socket"
	case mode&fs.ModeNamedPipe != 0:
		return "a named pipe"
	case mode&fs.ModeDevice != 0:
		return "a device"
	}
	return "not a regular file"
}

// checkName refuses names that do not survive every form that a tree takes.
func checkName(name string) error {
	bad := !utf8.ValidString(name) || strings.IndexFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f }) >= 0
	if bad {
		return kiln.Errorf(kiln.CodeRefused, "rename it, or name it in .dockerignore", "the name %q holds control characters or is not UTF-8", name)
	}
	return nil
}

// errTooMuch is what exceeds a bound.
type errTooMuch struct{ what string }

func (e errTooMuch) Error() string { return e.what }

func (w *walker) count(name string, size int64) error {
	w.bytes += size
	switch {
	case len(w.entries) >= w.maxEntries:
		return errTooMuch{fmt.Sprintf("more than %d files and folders (at %s)", w.maxEntries, name)}
	case w.bytes > w.maxBytes:
		return errTooMuch{fmt.Sprintf("more than %d MiB (at %s)", w.maxBytes>>20, name)}
	}
	return nil
}

// tooMuch explains which part of a context is the largest.
func (w *walker) tooMuch(context string, err error) error {
	if !errors.As(err, &errTooMuch{}) {
		return err
	}
	sizes, counts := map[string]int64{}, map[string]int{}
	largest, most := "", ""
	prefix := context + "/"
	if context == "." {
		prefix = ""
	}
	for name, f := range w.entries {
		rest, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		top, _, _ := strings.Cut(rest, "/")
		sizes[top] += f.Size
		counts[top]++
		if largest == "" || sizes[top] > sizes[largest] || sizes[top] == sizes[largest] && top < largest {
			largest = top
		}
		if most == "" || counts[top] > counts[most] || counts[top] == counts[most] && top < most {
			most = top
		}
	}
	hint := fmt.Sprintf("name what the image does not need in %s", path.Join(context, ".dockerignore"))
	if largest != "" {
		hint += fmt.Sprintf("; the largest so far is %s (%d MiB), the one with most entries %s (%d)", largest, sizes[largest]>>20, most, counts[most])
	}
	return kiln.Errorf(kiln.CodeRefused, hint, "the build context %s has %w", context, err)
}

// list returns a folder's entries, sorted.
func list(dir *os.Root) ([]fs.DirEntry, error) {
	f, err := dir.Open(".")
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	entries, err := f.ReadDir(-1)
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return entries, err
}
