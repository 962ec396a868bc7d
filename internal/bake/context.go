package bake

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"
)

// folder is one build context: the part of a tree below a path, as a file
// system that BuildKit reads. Nothing of it is written to disk. Every file
// belongs to root and has the fixed time.
type folder struct {
	store   Store
	entries []kiln.TreeEntry // paths relative to the context, in walk order
	byPath  map[string]int
}

var _ fsutil.FS = (*folder)(nil)

// maxControlFile bounds a Dockerfile or ignore file, in bytes.
const maxControlFile = 1 << 20

// newFolder cuts the context root out of a tree. The definition itself is not
// part of a context: a new count or a written lock must not bake anew what it
// does not change.
func newFolder(store Store, tree kiln.Tree, root string) (*folder, error) {
	root = path.Clean(root)
	definition := func(string) bool { return false }
	if root == "." {
		definition = isDefinition
	}
	if root != "." && !fs.ValidPath(root) {
		return nil, kiln.Errorf(kiln.CodeInvalid, "A context is a folder below the definition's.", "context %q leaves the tree", root)
	}
	f := &folder{store: store}
	found := root == "."
	for _, e := range tree.Entries {
		if e.Path == root && e.Mode.IsDir() {
			found = true
		}
		rel, ok := e.Path, true
		if root != "." {
			rel, ok = strings.CutPrefix(e.Path, root+"/")
		}
		if !ok || rel == "" || rel == "." || definition(rel) {
			continue
		}
		if !fs.ValidPath(rel) {
			return nil, kiln.Errorf(kiln.CodeInvalid, "", "the tree has an entry %q, which is not a clean relative path", e.Path)
		}
		found = true
		e.Path = rel
		f.entries = append(f.entries, e)
	}
	if !found {
		return nil, kiln.Errorf(kiln.CodeNotFound, "Correct the image's context.", "the context %q is not in the tree", root)
	}
	slices.SortFunc(f.entries, func(a, b kiln.TreeEntry) int { return comparePaths(a.Path, b.Path) })
	f.byPath = make(map[string]int, len(f.entries))
	for i, e := range f.entries {
		f.byPath[e.Path] = i
	}
	return f, nil
}

// isDefinition says whether a file beside the definition belongs to it, by the
// rule of the package that reads it.
func isDefinition(name string) bool {
	return name == "kiln.lock" ||
		path.Ext(name) == ".hcl" && !strings.Contains(name, "/") && !strings.HasPrefix(name, ".") && name != "kilnd.hcl"
}

// comparePaths orders paths as a walk meets them: a folder's content comes
// before a sibling whose name merely begins like the folder's.
func comparePaths(a, b string) int {
	return slices.Compare(strings.Split(a, "/"), strings.Split(b, "/"))
}

// Walk calls fn for each entry below target, parents first.
func (f *folder) Walk(ctx context.Context, target string, fn fs.WalkDirFunc) error {
	target = path.Clean("/" + target)[1:]
	skip := ""
	for _, e := range f.entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		if target != "" && e.Path != target && !strings.HasPrefix(e.Path, target+"/") {
			continue
		}
		if skip != "" && strings.HasPrefix(e.Path, skip+"/") {
			continue
		}
		err := fn(e.Path, &fsutil.DirEntryInfo{Stat: stat(e)}, nil)
		switch {
		case errors.Is(err, fs.SkipAll):
			return nil
		case errors.Is(err, fs.SkipDir) && e.Mode.IsDir():
			skip = e.Path
		case errors.Is(err, fs.SkipDir):
			skip = path.Dir(e.Path)
		case err != nil:
			return err
		}
	}
	return nil
}

func stat(e kiln.TreeEntry) *types.Stat {
	s := &types.Stat{
		Path:     e.Path,
		Mode:     uint32(e.Mode & (fs.ModePerm | fs.ModeDir | fs.ModeSymlink)),
		Size:     e.Size,
		ModTime:  time.Unix(Epoch, 0).UnixNano(),
		Linkname: e.Link,
	}
	if !e.Mode.IsRegular() {
		s.Size = 0
	}
	return s
}

// Open opens a regular file.
func (f *folder) Open(name string) (io.ReadCloser, error) {
	e, ok := f.entry(path.Clean("/" + name)[1:])
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	if !e.Mode.IsRegular() {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	if e.Size == 0 && e.Digest == "" {
		return io.NopCloser(strings.NewReader("")), nil
	}
	return f.store.Open(e.Digest)
}

func (f *folder) entry(name string) (kiln.TreeEntry, bool) {
	i, ok := f.byPath[name]
	if !ok {
		return kiln.TreeEntry{}, false
	}
	return f.entries[i], true
}

// maxLinks is how many symbolic links one path may lead over, as in the kernel.
const maxLinks = 40

// follow resolves the symbolic links of a path inside the context, as BuildKit
// does for a Dockerfile and its ignore file: an absolute one, and ".." too
// many, mean the context's root.
func (f *folder) follow(name string) (string, error) {
	done, rest := "", strings.Split(path.Clean("/" + name)[1:], "/")
	for links := 0; len(rest) > 0; {
		next := path.Join(done, rest[0])
		rest = rest[1:]
		e, ok := f.entry(next)
		if !ok || e.Mode&fs.ModeSymlink == 0 {
			done = next // what is only implied has no entry
			continue
		}
		if links++; links > maxLinks {
			return "", kiln.Errorf(kiln.CodeInvalid, "", "%s leads over too many symbolic links", name)
		}
		if !path.IsAbs(e.Link) {
			e.Link = path.Join("/", path.Dir(next), e.Link)
		}
		done, rest = "", append(strings.Split(path.Clean(e.Link)[1:], "/"), rest...)
	}
	return done, nil
}

// read returns a small file's content, fs.ErrNotExist where there is none.
func (f *folder) read(name string) ([]byte, error) {
	at, err := f.follow(name)
	if err != nil {
		return nil, err
	}
	if e, ok := f.entry(at); ok && !e.Mode.IsRegular() {
		return nil, kiln.Errorf(kiln.CodeInvalid, "", "%s is not a file", name)
	}
	r, err := f.Open(at)
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	b, err := io.ReadAll(io.LimitReader(r, maxControlFile+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if len(b) > maxControlFile {
		return nil, kiln.Errorf(kiln.CodeInvalid, "", "%s is larger than %d bytes", name, maxControlFile)
	}
	return b, nil
}

// visible lists the entries that the Dockerfile's ignore file lets through:
// FILE.dockerignore where it exists, else .dockerignore. It is what BuildKit
// will ask for, computed the same way, so that other files do not count as
// inputs.
func (f *folder) visible(dockerfile string) ([]kiln.TreeEntry, error) {
	patterns, err := f.ignorePatterns(dockerfile)
	if err != nil || len(patterns) == 0 {
		return f.entries, err
	}
	m, err := patternmatcher.New(patterns)
	if err != nil {
		return nil, kiln.Errorf(kiln.CodeInvalid, "Correct the pattern.", ".dockerignore: %w", err)
	}
	keep := make([]bool, len(f.entries))
	parents := map[string]patternmatcher.MatchInfo{}
	for i, e := range f.entries {
		hidden, info, err := m.MatchesUsingParentResults(e.Path, parents[path.Dir(e.Path)])
		if err != nil {
			return nil, kiln.Errorf(kiln.CodeInvalid, "Correct the pattern.", ".dockerignore: %w", err)
		}
		if e.Mode.IsDir() {
			parents[e.Path] = info
		}
		if keep[i] = !hidden; keep[i] {
			f.keepParents(keep, e.Path)
		}
	}
	var out []kiln.TreeEntry
	for i, e := range f.entries {
		if keep[i] {
			out = append(out, e)
		}
	}
	return out, nil
}

// keepParents marks the folders above a kept entry, however they matched.
func (f *folder) keepParents(keep []bool, name string) {
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		i, ok := f.byPath[dir]
		if !ok || keep[i] {
			return
		}
		keep[i] = true
	}
}

func (f *folder) ignorePatterns(dockerfile string) ([]string, error) {
	for _, name := range []string{dockerfile + ".dockerignore", ".dockerignore"} {
		b, err := f.read(path.Clean(name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return ignorefile.ReadAll(strings.NewReader(string(b)))
	}
	return nil, nil
}

// Store is the content-addressed store as baking needs it.
type Store interface {
	// Put writes a blob; want may be empty.
	Put(ctx context.Context, r io.Reader, want kiln.Digest) (kiln.Digest, int64, error)
	Open(d kiln.Digest) (*os.File, error)
	Has(d kiln.Digest) bool
	// Verify removes a blob that is damaged, and says so: kiln.ErrNotFound.
	Verify(ctx context.Context, d kiln.Digest) error
	// Dir is the root of the OCI image layout.
	Dir() string
	// Sync makes durable what others wrote below Dir.
	Sync() error
	// Hold keeps everything from being collected until release is called.
	Hold(ctx context.Context) (release func(), err error)
}
