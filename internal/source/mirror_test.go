package source_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/source"
	"github.com/kilnproject/kiln/internal/store"
)

// blobs is a batch in memory.
type blobs map[kiln.Digest]string

func (b blobs) Put(_ context.Context, r io.Reader, _ kiln.Digest) (kiln.Digest, int64, error) {
	content, err := io.ReadAll(r)
	d := kiln.DigestOf(content)
	b[d] = string(content)
	return d, int64(len(content)), err
}
func (blobs) Commit(context.Context) error { return nil }
func (blobs) Discard()                     {}

// mirror opens one of a repository on this machine. change may alter it.
func mirror(t *testing.T, repository string, change func(*source.MirrorOptions)) (*source.Mirror, blobs, string) {
	t.Helper()
	kept, dir := blobs{}, filepath.Join(t.TempDir(), "a source's")
	o := source.MirrorOptions{
		Dir: dir, Program: []string{"git"}, Repository: repository, Protocol: "file", Folder: ".",
		NewBatch: func() source.Batch { return kept }, Check: store.CheckTree,
	}
	if change != nil {
		change(&o)
	}
	m, err := source.OpenMirror(t.Context(), o)
	must(t, err)
	return m, kept, dir
}

func show(tree kiln.Tree, kept blobs) []string {
	var out []string
	for _, e := range tree.Entries {
		out = append(out, fmt.Sprintf("%v %s %s%s", e.Mode, e.Path, kept[e.Digest], e.Link))
	}
	return out
}

func TestMirrorFollowsBranches(t *testing.T) {
	dir := repository(t)
	m, _, _ := mirror(t, dir, nil)
	first := git(t, dir, "rev-parse", "HEAD")
	heads, err := m.Fetch(t.Context())
	must(t, err)
	if diff := cmp.Diff(map[string]string{"main": first}, heads); diff != "" {
		t.Fatal(diff)
	}
	git(t, dir, "checkout", "-q", "-b", "feature/x")
	git(t, dir, "tag", "v1")
	git(t, dir, "commit", "-q", "--allow-empty", "-m", "second")
	second := git(t, dir, "rev-parse", "HEAD")
	heads, err = m.Fetch(t.Context())
	must(t, err)
	if diff := cmp.Diff(map[string]string{"main": first, "feature/x": second}, heads); diff != "" {
		t.Error(diff)
	}
	// History that was rewritten, and a branch that is gone.
	git(t, dir, "commit", "-q", "--amend", "--allow-empty", "-m", "another second")
	git(t, dir, "branch", "-D", "main")
	heads, err = m.Fetch(t.Context())
	must(t, err)
	if diff := cmp.Diff(map[string]string{"feature/x": git(t, dir, "rev-parse", "HEAD")}, heads); diff != "" {
		t.Error(diff)
	}
}

func TestMirrorReadsACommit(t *testing.T) {
	dir := repository(t)
	write(t, dir, map[string]string{"b/run.sh": "run", "b.c": "dot", "b/kiln.hcl": "inner", ".gitattributes": "* filter=evil text=auto eol=crlf\n"})
	must(t, os.Chmod(filepath.Join(dir, "b/run.sh"), 0o755))
	must(t, os.Symlink("../b.c", filepath.Join(dir, "b/link")))
	must(t, os.Symlink("/etc/passwd", filepath.Join(dir, "out")))
	git(t, dir, "add", "--", ".")
	git(t, dir, "update-index", "--add", "--cacheinfo", "160000,"+git(t, dir, "rev-parse", "HEAD")+",sub")
	git(t, dir, "commit", "-q", "-m", "more")
	m, kept, _ := mirror(t, dir, nil)
	heads, err := m.Fetch(t.Context())
	must(t, err)
	tree, err := m.Tree(t.Context(), heads["main"])
	must(t, err)
	want := []string{
		"-rw-r--r-- .gitattributes * filter=evil text=auto eol=crlf\n", "-rw-r--r-- .gitignore ignored\n", "drwxr-xr-x b ", "-rw-r--r-- b.c dot",
		"-rw-r--r-- b/kiln.hcl inner", "Lrwxrwxrwx b/link ../b.c", "-rwxr-xr-x b/run.sh run", "-rw-r--r-- kiln.hcl x", "Lrwxrwxrwx out /etc/passwd",
		"drwxr-xr-x sub ", "drwxr-xr-x web ", "-rw-r--r-- web/Dockerfile FROM scratch",
	}
	if diff := cmp.Diff(want, show(tree, kept)); diff != "" {
		t.Error(diff)
	}
	definition, err := m.Definition(t.Context(), heads["main"])
	must(t, err)
	if diff := cmp.Diff([]string{"-rw-r--r-- kiln.hcl x"}, show(definition, kept)); diff != "" {
		t.Error(diff)
	}
	inner, kept, _ := mirror(t, dir, func(o *source.MirrorOptions) { o.Folder = "b" })
	_, err = inner.Fetch(t.Context())
	must(t, err)
	tree, err = inner.Tree(t.Context(), heads["main"])
	must(t, err)
	if diff := cmp.Diff([]string{"-rw-r--r-- kiln.hcl inner", "Lrwxrwxrwx link ../b.c", "-rwxr-xr-x run.sh run"}, show(tree, kept)); diff != "" {
		t.Error(diff)
	}
	none, _, _ := mirror(t, dir, func(o *source.MirrorOptions) { o.Folder = "none" })
	_, err = none.Fetch(t.Context())
	must(t, err)
	if tree, err = none.Definition(t.Context(), heads["main"]); err != nil || len(tree.Entries) > 0 {
		t.Errorf("a folder that is not there: %+v %v", tree, err)
	}
}

// hash writes an object that git itself would not make.
func hash(t *testing.T, dir, kind string, content []byte) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "git", "hash-object", "-t", kind, "-w", "--literally", "--stdin")
	cmd.Dir, cmd.Stdin = dir, bytes.NewReader(content)
	out, err := cmd.Output()
	must(t, err)
	return strings.TrimSpace(string(out))
}

// entry is one of a tree object.
func entry(t *testing.T, mode, name, id string) []byte {
	t.Helper()
	raw := make([]byte, 20)
	_, err := fmt.Sscanf(id, "%x", &raw)
	must(t, err)
	return append([]byte(mode+" "+name+"\x00"), raw...)
}

// TestHostileTrees has a tree that must not be taken: neither by git, which
// fetches it, nor, where git let it pass, from the mirror.
func TestHostileTrees(t *testing.T) {
	dir := repository(t)
	blob := hash(t, dir, "blob", []byte("x"))
	parent := hash(t, dir, "tree", entry(t, "100644", "x", blob))
	for name, c := range map[string]struct {
		tree  []byte
		fetch bool // whether git takes it
	}{
		"climbs":       {entry(t, "40000", "..", parent), false},
		"is git's":     {entry(t, "40000", ".git", parent), false},
		"twice":        {append(entry(t, "100644", "a", blob), entry(t, "100644", "a", blob)...), false},
		"has a slash":  {entry(t, "100644", "a/../../b", blob), false},
		"control":      {entry(t, "100644", "a\x1b[2J", blob), true},
		"not UTF-8":    {entry(t, "100644", "a\xff", blob), true},
		"a long name":  {entry(t, "100644", strings.Repeat("n", 300), blob), true},
		"a long path":  {entry(t, "100644", strings.Repeat("n", 5000), blob), true},
		"a long link":  {entry(t, "120000", "l", hash(t, dir, "blob", make([]byte, 5000))), true},
		"a bad link":   {entry(t, "120000", "l", hash(t, dir, "blob", []byte("\xff"))), true},
		"missing blob": {entry(t, "100644", "a", strings.Repeat("ab", 20)), false},
	} {
		commit := git(t, dir, "commit-tree", "-m", name, hash(t, dir, "tree", c.tree))
		git(t, dir, "update-ref", "refs/heads/hostile", commit)
		m, _, _ := mirror(t, dir, nil)
		_, err := m.Fetch(t.Context())
		if (err == nil) != c.fetch {
			t.Errorf("%s: fetched: %v", name, err)
		}
		var e *kiln.Error
		if err != nil && (!errors.As(err, &e) || e.Hint == "" || len(e.Evidence) == 0) {
			t.Errorf("%s: the error says too little: %#v", name, err)
		}
		// A mirror that has it all the same.
		m, _, own := mirror(t, dir, nil)
		must(t, os.RemoveAll(filepath.Join(own, "mirror.git")))
		must(t, os.CopyFS(filepath.Join(own, "mirror.git"), os.DirFS(filepath.Join(dir, ".git"))))
		if tree, err := m.Tree(t.Context(), commit); err == nil {
			t.Errorf("%s: taken: %+v", name, tree)
		}
	}
}

// TestATreeWithoutEndIsGivenUp has 20 folders in 20 folders, and so on.
func TestATreeWithoutEndIsGivenUp(t *testing.T) {
	dir := repository(t)
	id, mode := hash(t, dir, "blob", []byte("x")), "100644"
	for range 8 {
		var tree []byte
		for i := range 20 {
			tree = append(tree, entry(t, mode, string(rune('a'+i)), id)...)
		}
		id, mode = hash(t, dir, "tree", tree), "40000"
	}
	git(t, dir, "update-ref", "refs/heads/main", git(t, dir, "commit-tree", "-m", "bomb", id))
	m, kept, _ := mirror(t, dir, nil)
	heads, err := m.Fetch(t.Context())
	must(t, err)
	if _, err := m.Tree(t.Context(), heads["main"]); err == nil || !strings.Contains(err.Error(), "more than 200000 files") || len(kept) > 0 {
		t.Errorf("%v; %d blobs", err, len(kept))
	}
	if _, err := m.Definition(t.Context(), heads["main"]); err != nil {
		t.Errorf("what is not read must not matter: %v", err)
	}
}

func TestABrokenRepositoryIsRefused(t *testing.T) {
	dir := repository(t)
	git(t, dir, "gc", "-q")
	packs, err := filepath.Glob(filepath.Join(dir, ".git/objects/pack/*.pack"))
	must(t, err)
	must(t, os.Chmod(packs[0], 0o600))
	pack, err := os.ReadFile(packs[0])
	must(t, err)
	pack[len(pack)/2] ^= 0xff
	must(t, os.WriteFile(packs[0], pack, 0o600))
	m, _, _ := mirror(t, dir, nil)
	if heads, err := m.Fetch(t.Context()); err == nil {
		t.Errorf("taken: %v", heads)
	}
}

func TestAMirrorIsBounded(t *testing.T) {
	dir := repository(t)
	noise := make([]byte, 256<<10)
	for i, x := 0, uint32(1); i < len(noise); i++ {
		x = x*1664525 + 1013904223
		noise[i] = byte(x >> 24)
	}
	must(t, os.WriteFile(filepath.Join(dir, "big"), noise, 0o600))
	git(t, dir, "add", ".")
	git(t, dir, "commit", "-q", "-m", "big")
	m, _, own := mirror(t, dir, func(o *source.MirrorOptions) { o.MaxBytes = 128 << 10 })
	if _, err := m.Fetch(t.Context()); err == nil || !strings.Contains(err.Error(), "more than 0 MiB") {
		t.Errorf("got %v", err)
	}
	if left, err := filepath.Glob(filepath.Join(own, "mirror.git/objects/pack/*")); err != nil || len(left) > 0 {
		t.Errorf("left on the disk: %v %v", left, err)
	}
}

// TestWhatAKilledGitLeavesIsRemoved has its lock and its unfinished pack.
func TestWhatAKilledGitLeavesIsRemoved(t *testing.T) {
	dir := repository(t)
	m, _, own := mirror(t, dir, nil)
	_, err := m.Fetch(t.Context())
	must(t, err)
	git(t, dir, "commit", "-q", "--allow-empty", "-m", "second")
	at := filepath.Join(own, "mirror.git")
	write(t, at, map[string]string{"refs/heads/main.lock": "", "packed-refs.lock": "", "objects/pack/tmp_pack_x": "half"})
	outside := filepath.Join(t.TempDir(), "outside.lock")
	must(t, os.WriteFile(outside, nil, 0o600))
	must(t, os.Symlink(filepath.Dir(outside), filepath.Join(at, "objects/elsewhere")))
	heads, err := m.Fetch(t.Context())
	must(t, err)
	if heads["main"] != git(t, dir, "rev-parse", "HEAD") {
		t.Errorf("got %v", heads)
	}
	if _, err := os.Stat(filepath.Join(at, "objects/pack/tmp_pack_x")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("an unfinished pack is left")
	}
	if _, err := os.Stat(outside); err != nil {
		t.Error("a link out of the mirror was followed")
	}
}

// recorder is a program that writes down how it was called, and says to
// standard error what it was given.
func recorder(t *testing.T) (program []string, seen func() string) {
	t.Helper()
	dir := t.TempDir()
	script := filepath.Join(dir, "git")
	must(t, os.WriteFile(script, []byte(`#!/bin/sh
case "$*" in
*" fetch "*)
	{ echo "args: $*"; echo "stage: fetch"; env; } >> `+dir+`/seen
	[ -n "$GIT_SSH_COMMAND" ] && { eval "set -- $GIT_SSH_COMMAND"; stat -c "key: %a" "$5"; cat "$5"; } >> `+dir+`/seen
	printf 'fatal: \033[2Jno %s\n' "$GIT_CONFIG_VALUE_0 s3cret" >&2; exit 128 ;;
*) exec git "$@" ;;
esac
`), 0o700))
	return []string{script}, func() string {
		b, err := os.ReadFile(filepath.Join(dir, "seen"))
		must(t, err)
		return string(b)
	}
}

func TestCredentialsAreNowhereButInTheEnvironment(t *testing.T) {
	t.Setenv("GIT_DIR", "/nowhere")
	program, seen := recorder(t)
	m, _, _ := mirror(t, "https://git.example.com/shop.git", func(o *source.MirrorOptions) {
		o.Program, o.Protocol = program, "https"
		o.Credential = func() ([]byte, error) { return []byte("s3cret\n"), nil }
	})
	_, err := m.Fetch(t.Context())
	var e *kiln.Error
	if !errors.As(err, &e) {
		t.Fatal(err)
	}
	shown := e.Message + e.Hint + strings.Join(e.Evidence, "")
	if strings.Contains(shown, "s3cret") || strings.Contains(shown, "Z2l0OnMzY3JldA") || strings.ContainsRune(shown, 0x1b) || !strings.Contains(shown, "no Authorization: Basic ...") {
		t.Errorf("shown: %q", shown)
	}
	lines := strings.Split(seen(), "\n")
	for _, want := range []string{
		"GIT_CONFIG_VALUE_0=Authorization: Basic Z2l0OnMzY3JldA==", "GIT_ALLOW_PROTOCOL=https", "GIT_TERMINAL_PROMPT=0", "GIT_CONFIG_NOSYSTEM=1",
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("lacks %s in %v", want, lines)
		}
	}
	if strings.Contains(lines[0], "s3cret") || strings.Contains(seen(), "GIT_DIR") || strings.Contains(lines[0], "Basic") {
		t.Errorf("seen: %v", lines)
	}
}

func TestAKeyIsThereForOneFetch(t *testing.T) {
	program, seen := recorder(t)
	m, _, own := mirror(t, "git@git.example.com:shop.git", func(o *source.MirrorOptions) {
		o.Program, o.Protocol = program, "ssh"
		o.Credential = func() ([]byte, error) { return []byte("PRIVATE"), nil }
	})
	if _, err := m.Fetch(t.Context()); err == nil {
		t.Fatal("fetched")
	}
	if got := seen(); !strings.Contains(got, "key: 600\nPRIVATE\n") || !strings.Contains(got, "StrictHostKeyChecking=yes") {
		t.Errorf("seen: %s", got)
	}
	if _, err := os.Stat(filepath.Join(own, "key")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the key is left")
	}
}

// TestOnlyTheRepositorysProtocol has git asked for others, as if the
// configuration had let them pass.
func TestOnlyTheRepositorysProtocol(t *testing.T) {
	owned := filepath.Join(t.TempDir(), "owned")
	for _, repository := range []string{"ext::sh -c touch% " + owned, "--upload-pack=touch " + owned, "file://" + repository(t)} {
		m, _, _ := mirror(t, repository, func(o *source.MirrorOptions) { o.Protocol = "https" })
		if _, err := m.Fetch(t.Context()); err == nil {
			t.Errorf("%s was fetched", repository)
		}
	}
	if _, err := os.Stat(owned); err == nil {
		t.Error("a repository's name ran a program")
	}
}
