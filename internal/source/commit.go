package source

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/kilnproject/kiln"
)

// Bounds of what is read of a commit, the kernel's for a path and a link among
// them. In all it is what a snapshot may have.
const (
	maxPath       = 4095
	maxDefinition = 8 << 20
	// listOverhead is what a line of git's list has besides a path.
	listOverhead = 128
)

// Batch stores blobs. Nothing of it is in the store before Commit.
type Batch interface {
	Put(ctx context.Context, r io.Reader, want kiln.Digest) (kiln.Digest, int64, error)
	Commit(ctx context.Context) error
	Discard()
}

// object is a line of git's list.
type object struct {
	entry kiln.TreeEntry
	id    string // of a blob
}

// Definition stores what the definition at a commit is read from: the folder's
// own *.hcl files. Without the folder the tree is empty.
func (m *Mirror) Definition(ctx context.Context, commit string) (kiln.Tree, error) {
	return m.read(ctx, commit, false, func(o object) bool {
		return o.id != "" && o.entry.Mode.IsRegular() && path.Ext(o.entry.Path) == ".hcl"
	}, maxDefinition)
}

// Tree stores all of the folder at a commit. Permissions become those of a
// Snapshot; a submodule is an empty folder, as in a plain clone, and no filter
// that an attribute names is run.
func (m *Mirror) Tree(ctx context.Context, commit string) (kiln.Tree, error) {
	return m.read(ctx, commit, true, func(object) bool { return true }, defaultMaxBytes)
}

func (m *Mirror) read(ctx context.Context, commit string, deep bool, wanted func(object) bool, most int64) (kiln.Tree, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchLimit)
	defer cancel()
	objects, err := m.list(ctx, commit, deep, wanted, most)
	if err != nil {
		return kiln.Tree{}, err
	}
	if err := m.store(ctx, objects); err != nil {
		return kiln.Tree{}, err
	}
	tree := kiln.Tree{Entries: make([]kiln.TreeEntry, len(objects))}
	for i, o := range objects {
		tree.Entries[i] = o.entry
	}
	if err := m.o.Check(tree); err != nil {
		return kiln.Tree{}, err
	}
	return tree, nil
}

// list returns what is wanted of the folder at a commit, by path. It gives up as
// soon as that is too much: a small repository can hold trees without end.
func (m *Mirror) list(ctx context.Context, commit string, deep bool, wanted func(object) bool, most int64) ([]object, error) { //nolint:gocognit // one loop, and its bounds
	if !isCommit(commit) {
		return nil, kiln.Errorf(kiln.CodeInvalid, "", "%q is not a commit", commit)
	}
	root := commit + "^{tree}"
	if m.o.Folder != "." {
		there, err := m.folderThere(ctx, commit)
		if err != nil || !there {
			return nil, err
		}
		root = commit + ":" + m.o.Folder
	}
	args := []string{"ls-tree", "-z", "-l", "--full-tree"}
	if deep {
		args = append(args, "-r", "-t")
	}
	var out []object
	var bytesInAll int64
	err := m.stream(ctx, nil, nil, func(r io.Reader) error {
		lines := bufio.NewReaderSize(r, maxPath+listOverhead)
		for count := 0; ; count++ {
			o, err := readObject(lines)
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			if count >= defaultMaxEntries {
				return tooMuch("%d files and folders", defaultMaxEntries)
			}
			if wanted(o) {
				bytesInAll += o.entry.Size
				out = append(out, o)
			}
			if bytesInAll > most {
				return tooMuch("%d MiB", most>>20)
			}
		}
	}, append(args, root)...)
	slices.SortFunc(out, func(a, b object) int { return strings.Compare(a.entry.Path, b.entry.Path) })
	return out, err
}

// tooMuch refuses a commit that has more than is read of one.
func tooMuch(format string, args ...any) error {
	return kiln.Errorf(kiln.CodeRefused, "deploy from a folder with less in it", "the commit has more than "+format, args...)
}

// readObject reads the next line of git's list; io.EOF is its end.
func readObject(lines *bufio.Reader) (object, error) {
	line, err := lines.ReadSlice(0)
	switch {
	case errors.Is(err, io.EOF) && len(line) == 0:
		return object{}, io.EOF
	case errors.Is(err, bufio.ErrBufferFull):
		return object{}, kiln.Errorf(kiln.CodeRefused, "shorten it", "a path in the commit has more than %d bytes", maxPath)
	case errors.Is(err, io.EOF):
		return object{}, fmt.Errorf("read git's list: %w", io.ErrUnexpectedEOF)
	case err != nil:
		return object{}, fmt.Errorf("read git's list: %w", err)
	}
	return parseObject(string(line[:len(line)-1]))
}

// folderThere says whether a commit has the definition's folder.
func (m *Mirror) folderThere(ctx context.Context, commit string) (bool, error) {
	out, err := m.ask(ctx, nil, "ls-tree", "-z", "-d", "--full-tree", commit, "--", m.o.Folder)
	return len(out) > 0, err
}

// parseObject reads "MODE TYPE ID SIZE\tPATH".
func parseObject(line string) (object, error) {
	head, name, _ := strings.Cut(line, "\t")
	fields := strings.Fields(head)
	if len(fields) != 4 || !isCommit(fields[2]) {
		return object{}, kiln.Errorf(kiln.CodeFailed, "", "git's list has a line that is none: %.100q", line)
	}
	if err := checkName(name); err != nil {
		return object{}, err
	}
	if slices.ContainsFunc(strings.Split(name, "/"), func(part string) bool { return strings.EqualFold(part, ".git") }) {
		return object{}, kiln.Errorf(kiln.CodeRefused, "remove it", "the commit has a %s, which is git's own", name)
	}
	o := object{entry: kiln.TreeEntry{Path: name}, id: fields[2]}
	switch fields[0] {
	case "040000", "160000":
		o.entry.Mode, o.id = fs.ModeDir|0o755, ""
		return o, nil
	case "100644", "100664":
		o.entry.Mode = 0o644
	case "100755":
		o.entry.Mode = 0o755
	case "120000":
		o.entry.Mode = fs.ModeSymlink | 0o777
	default:
		return object{}, kiln.Errorf(kiln.CodeRefused, "remove it", "%s has the mode %q: a tree holds files, folders and symbolic links", name, fields[0])
	}
	size, err := strconv.ParseInt(fields[3], 10, 64)
	switch {
	case err != nil || size < 0:
		return object{}, kiln.Errorf(kiln.CodeFailed, "git fsck in a clone names what is broken", "%s has the size %q", name, fields[3])
	case o.entry.Mode.Type() == fs.ModeSymlink && size > maxPath:
		return object{}, kiln.Errorf(kiln.CodeRefused, "remove it", "the symbolic link %s has a target of more than %d bytes", name, maxPath)
	}
	o.entry.Size = size
	return o, nil
}

// store puts the files' contents into the store, and gives entries their
// digests, or targets.
func (m *Mirror) store(ctx context.Context, objects []object) error {
	byID := map[string][]*object{}
	var ids strings.Builder
	var order []string
	for i, o := range objects {
		if o.id == "" {
			continue
		}
		if byID[o.id] == nil {
			order = append(order, o.id)
			ids.WriteString(o.id + "\n")
		}
		byID[o.id] = append(byID[o.id], &objects[i])
	}
	if len(order) == 0 {
		return nil
	}
	batch := m.o.NewBatch()
	defer batch.Discard()
	err := m.stream(ctx, nil, strings.NewReader(ids.String()), func(r io.Reader) error {
		contents := bufio.NewReaderSize(r, hashBuffer)
		for _, id := range order {
			if err := take(ctx, batch, contents, id, byID[id]); err != nil {
				return err
			}
		}
		return nil
	}, "cat-file", "--batch")
	if err != nil {
		return err
	}
	return batch.Commit(ctx)
}

// take reads one blob as git cat-file writes it: "ID blob SIZE\n", content,
// "\n". It is that of every one of some objects.
func take(ctx context.Context, batch Batch, r *bufio.Reader, id string, same []*object) error {
	name, size := same[0].entry.Path, same[0].entry.Size
	head, err := r.ReadSlice('\n')
	if err != nil || string(head) != fmt.Sprintf("%s blob %d\n", id, size) {
		return kiln.Errorf(kiln.CodeFailed, "git fsck in a clone names what is broken; the mirror can be removed, and is made again",
			"git does not have %s as the commit says: %.100q", name, strings.TrimSpace(string(head)))
	}
	content := io.LimitReader(r, size)
	if slices.ContainsFunc(same, (*object).link) {
		target, err := io.ReadAll(content)
		if err != nil || !utf8.Valid(target) {
			return kiln.Errorf(kiln.CodeRefused, "rename its target", "the symbolic link %s has a target that is not UTF-8", name)
		}
		content = bytes.NewReader(target)
		for _, o := range same {
			if o.link() {
				o.entry.Link, o.entry.Size = string(target), 0
			}
		}
	}
	if err := put(ctx, batch, content, size, same); err != nil {
		return err
	}
	if end, err := r.ReadByte(); err != nil || end != '\n' {
		return kiln.Errorf(kiln.CodeFailed, "", "git's answer ends within %s", name)
	}
	return nil
}

func (o *object) link() bool { return o.entry.Mode.Type() == fs.ModeSymlink }

// put stores the content of those of some objects that are files.
func put(ctx context.Context, batch Batch, content io.Reader, size int64, same []*object) error {
	var digest kiln.Digest
	for _, o := range same {
		if o.link() {
			continue
		}
		if digest == "" {
			d, n, err := batch.Put(ctx, content, "")
			if err != nil {
				return fmt.Errorf("store %s: %w", o.entry.Path, err)
			}
			if n != size {
				return kiln.Errorf(kiln.CodeFailed, "", "git's answer ends within %s", o.entry.Path)
			}
			digest = d
		}
		o.entry.Digest = digest
	}
	return nil
}
