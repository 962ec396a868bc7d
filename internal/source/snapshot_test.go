package source_test

import (
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/source"
)

// write makes files in a folder: content by path; a final slash makes a
// folder, "-> target" a symbolic link.
func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		at := filepath.Join(dir, name)
		if strings.HasSuffix(name, "/") {
			must(t, os.MkdirAll(at, 0o755))
			continue
		}
		must(t, os.MkdirAll(filepath.Dir(at), 0o755))
		if target, ok := strings.CutPrefix(content, "-> "); ok {
			must(t, os.Symlink(target, at))
			continue
		}
		must(t, os.WriteFile(at, []byte(content), 0o644))
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func image(context, file string) kiln.Image {
	return kiln.Image{Name: "i", Dockerfile: &kiln.Dockerfile{Context: context, File: file}}
}

func paths(t kiln.Tree) []string {
	var out []string
	for _, e := range t.Entries {
		out = append(out, e.Path)
	}
	return out
}

// take snapshots a folder outside of Git and returns its paths.
func take(t *testing.T, dir string, want source.Want) (kiln.Tree, source.Opener) {
	t.Helper()
	tree, open, _, err := source.Snapshot(t.Context(), dir, want)
	must(t, err)
	return tree, open
}

func TestSnapshotIgnore(t *testing.T) {
	base := map[string]string{
		"kiln.hcl": "x", "kiln.lock": "y", "other": "z",
		"web/Dockerfile": "FROM scratch", "web/main.go": "m", "web/a.log": "l", "web/deep/b.log": "l", "web/deep/keep.log": "k",
		"web/node_modules/x/index.js": "j", "web/node_modules/y/index.js": "j", "web/empty/": "", "web/.git/HEAD": "h", "web/link": "-> /etc/passwd",
	}
	always := []string{"kiln.hcl", "kiln.lock", "web", "web/Dockerfile"}
	tests := []struct {
		name, ignoreFile, ignore string
		want                     []string // below web, besides the Dockerfile and the ignore file
	}{
		{"nothing", "", "", []string{"a.log", "deep", "deep/b.log", "deep/keep.log", "empty", "link", "main.go", "node_modules", "node_modules/x", "node_modules/x/index.js", "node_modules/y", "node_modules/y/index.js"}},
		{"globs", ".dockerignore", "**/*.log\nnode_modules\n", []string{"deep", "empty", "link", "main.go"}},
		{"exception by name", ".dockerignore", "*\n!main.go\n!node_modules/x\n", []string{"main.go", "node_modules", "node_modules/x", "node_modules/x/index.js"}},
		{"exception by glob", ".dockerignore", "**\n!**/keep.log\n", []string{"deep", "deep/keep.log"}},
		{"of the Dockerfile", "Dockerfile.dockerignore", "*\n!main.go\n", []string{"main.go"}},
		{"git again", ".dockerignore", "*\n!.git\n", []string{".git", ".git/HEAD"}},
		{"comment, slash, bom", ".dockerignore", "\ufeff# c\n/deep/\n./node_modules\n\n", []string{"a.log", "empty", "link", "main.go"}},
		{"even the Dockerfile", ".dockerignore", "*\n", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, base)
			want := append([]string{}, always...)
			if tt.ignoreFile != "" {
				write(t, dir, map[string]string{"web/" + tt.ignoreFile: tt.ignore})
				want = append(want, "web/"+tt.ignoreFile)
			}
			for _, name := range tt.want {
				want = append(want, "web/"+name)
			}
			tree, _ := take(t, dir, source.Want{Files: []string{"kiln.hcl"}, Images: []kiln.Image{image("web", "Dockerfile")}})
			if diff := cmp.Diff(sorted(want), paths(tree)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func sorted(s []string) []string {
	out := append([]string{}, s...)
	for i := range out {
		for j := i + 1; j < len(out); j++ {
			if out[j] < out[i] {
				out[i], out[j] = out[j], out[i]
			}
		}
	}
	return out
}

func TestSnapshotTwoDockerfilesOfOneContext(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"A": "", "A.dockerignore": "*\n!a", "B": "", "B.dockerignore": "*\n!b", "a": "1", "b": "2", "c": "3",
	})
	tree, _ := take(t, dir, source.Want{Images: []kiln.Image{image(".", "A"), image(".", "B")}})
	want := []string{"A", "A.dockerignore", "B", "B.dockerignore", "a", "b"}
	if diff := cmp.Diff(want, paths(tree)); diff != "" {
		t.Error(diff)
	}
}

// TestSnapshotFollowsWhatBuildKitReads: a Dockerfile and its ignore file may be
// symbolic links, and what they lead to is taken though it is ignored.
func TestSnapshotFollowsWhatBuildKitReads(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"c/Dockerfile": "-> /docker/prod", "c/docker/prod": "-> ../../../docker/real", "c/docker/real": "FROM scratch\n",
		"c/.dockerignore": "-> docker/ignore", "c/docker/ignore": "*\n!kept\n", "c/kept": "1", "c/other": "2",
	})
	tree, _ := take(t, dir, source.Want{Images: []kiln.Image{image("c", "Dockerfile")}})
	want := []string{"c", "c/.dockerignore", "c/Dockerfile", "c/docker", "c/docker/ignore", "c/docker/prod", "c/docker/real", "c/kept"}
	if diff := cmp.Diff(want, paths(tree)); diff != "" {
		t.Error(diff)
	}
}

func TestSnapshotEntries(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"c/Dockerfile": "FROM scratch\n", "c/run": "#!", "c/l": "-> run"})
	must(t, os.Chmod(filepath.Join(dir, "c/run"), 0o4711))
	must(t, os.Chmod(filepath.Join(dir, "c"), 0o700))
	tree, open := take(t, dir, source.Want{Images: []kiln.Image{image("c", "Dockerfile")}})
	want := kiln.Tree{Entries: []kiln.TreeEntry{
		{Path: "c", Mode: fs.ModeDir | 0o755},
		{Path: "c/Dockerfile", Mode: 0o644, Size: 13, Digest: kiln.DigestOf([]byte("FROM scratch\n"))},
		{Path: "c/l", Mode: fs.ModeSymlink | 0o777, Link: "run"},
		{Path: "c/run", Mode: 0o755, Size: 2, Digest: kiln.DigestOf([]byte("#!"))},
	}}
	if diff := cmp.Diff(want, tree); diff != "" {
		t.Fatal(diff)
	}
	r, err := open(tree.Entries[1].Digest)
	must(t, err)
	b, err := io.ReadAll(r)
	must(t, err)
	must(t, r.Close())
	if string(b) != "FROM scratch\n" {
		t.Errorf("read %q", b)
	}
	if _, err := open(kiln.DigestOf([]byte("?"))); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("unknown digest: %v", err)
	}
}

func TestOpenerNoticesChange(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"kiln.hcl": "before"})
	tree, open := take(t, dir, source.Want{Files: []string{"kiln.hcl"}})
	write(t, dir, map[string]string{"kiln.hcl": "after!"})
	r, err := open(tree.Entries[0].Digest)
	must(t, err)
	defer func() { _ = r.Close() }()
	if _, err := io.ReadAll(r); err == nil || !strings.Contains(err.Error(), "kiln.hcl changed") {
		t.Errorf("got %v", err)
	}
}

func TestSnapshotRefuses(t *testing.T) {
	context := []kiln.Image{image("c", "Dockerfile")}
	tests := []struct {
		name  string
		make  func(t *testing.T, dir string)
		want  source.Want
		error string
	}{
		{"socket", func(t *testing.T, dir string) {
			l, err := net.Listen("unix", filepath.Join(dir, "c/s"))
			must(t, err)
			t.Cleanup(func() { _ = l.Close() })
		}, source.Want{Images: context}, "c/s is a socket"},
		{"pipe", func(t *testing.T, dir string) { must(t, unix.Mkfifo(filepath.Join(dir, "c/p"), 0o600)) }, source.Want{Images: context}, "c/p is a named pipe"},
		{"pipe as ignore file", func(t *testing.T, dir string) {
			must(t, unix.Mkfifo(filepath.Join(dir, "c/.dockerignore"), 0o600))
		}, source.Want{Images: context}, "c/.dockerignore"},
		{"folder as ignore file", func(t *testing.T, dir string) { write(t, dir, map[string]string{"c/.dockerignore/": ""}) }, source.Want{Images: context}, "c/.dockerignore is a folder"},
		{"ignore file behind a link", func(t *testing.T, dir string) {
			write(t, dir, map[string]string{"c/.dockerignore": "-> up/ignore", "c/up": "-> /etc"})
		}, source.Want{Images: context}, "c/up is a symbolic link"},
		{"ignore file in a circle", func(t *testing.T, dir string) {
			write(t, dir, map[string]string{"c/.dockerignore": "-> .dockerignore"})
		}, source.Want{Images: context}, "too many symbolic links"},
		{"Dockerfile outside", func(t *testing.T, dir string) { write(t, dir, map[string]string{"c/D": "-> /etc/passwd"}) }, source.Want{Images: []kiln.Image{image("c", "D")}}, "there is no c/etc"},
		{"newline", func(t *testing.T, dir string) { write(t, dir, map[string]string{"c/a\nb": ""}) }, source.Want{Images: context}, "control characters"},
		{"latin1", func(t *testing.T, dir string) { write(t, dir, map[string]string{"c/\xe9": ""}) }, source.Want{Images: context}, "not UTF-8"},
		{"no context", nil, source.Want{Images: []kiln.Image{image("d", "Dockerfile")}}, "build context d: there is no d"},
		{"no dockerfile", nil, source.Want{Images: []kiln.Image{image("c", "Other")}}, "build context c: there is no c/Other"},
		{"context is a link", func(t *testing.T, dir string) { write(t, dir, map[string]string{"d": "-> c"}) }, source.Want{Images: []kiln.Image{image("d", "Dockerfile")}}, "d is a symbolic link, not a folder"},
		{"context is a link out", func(t *testing.T, dir string) { write(t, dir, map[string]string{"d": "-> /etc"}) }, source.Want{Images: []kiln.Image{image("d", "passwd")}}, "d is a symbolic link, not a folder"},
		{"climbs", nil, source.Want{Files: []string{"../x"}}, "not a path below"},
		{"absolute", nil, source.Want{Files: []string{"/etc/passwd"}}, "not a path below"},
		{"too many", func(t *testing.T, dir string) {
			write(t, dir, map[string]string{"c/m/1": "", "c/m/2": "", "c/m/3": ""})
		}, source.Want{Images: context, MaxEntries: 4}, "the build context c has more than 4 files"},
		{"too large", func(t *testing.T, dir string) {
			write(t, dir, map[string]string{"c/big": strings.Repeat("x", 3<<20)})
		}, source.Want{Images: context, MaxBytes: 2 << 20}, "the build context c has more than 2 MiB"},
		{"bad pattern", func(t *testing.T, dir string) { write(t, dir, map[string]string{"c/.dockerignore": "[a-\n"}) }, source.Want{Images: context}, "build context c"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, map[string]string{"c/Dockerfile": "FROM scratch"})
			if tt.make != nil {
				tt.make(t, dir)
			}
			_, _, _, err := source.Snapshot(t.Context(), dir, tt.want)
			var e *kiln.Error
			if !errors.As(err, &e) || !strings.Contains(err.Error(), tt.error) {
				t.Errorf("got %v, want %q", err, tt.error)
			}
		})
	}
}

func TestTooMuchNamesTheLargest(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"Dockerfile": "", "a/big": strings.Repeat("x", 1<<20), "b/1": "", "b/2": "", "z/large": strings.Repeat("x", 2<<20)})
	_, _, _, err := source.Snapshot(t.Context(), dir, source.Want{Images: []kiln.Image{image(".", "Dockerfile")}, MaxBytes: 2 << 20})
	var e *kiln.Error
	if !errors.As(err, &e) || !strings.Contains(e.Hint, ".dockerignore") || !strings.Contains(e.Hint, "largest so far is a (1 MiB)") {
		t.Errorf("got %v with hint %q", err, e.Hint)
	}
}
