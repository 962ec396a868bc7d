package cli

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/server"
	"github.com/kilnproject/kiln/internal/upgrade"
)

// program writes a shell script that stands in for kilnd.
func program(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kilnd")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestADaemonThatDoesNotStartSaysWhy(t *testing.T) {
	data := t.TempDir()
	if err := os.WriteFile(filepath.Join(data, "kilnd.log"), []byte("error: of an earlier start\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := launch(data, program(t, "echo data $2; echo 'error: no luck today'; exit 6"), upgrade.Command{Args: []string{"--data", data}})
	if err != nil {
		t.Fatal(err)
	}
	err = d.await(t.Context(), server.NewClient(filepath.Join(data, "kiln.sock"), "dev"))
	var shown *kiln.Error
	if !errors.As(err, &shown) || shown.Code != kiln.CodeUnavailable || !strings.Contains(shown.Hint, "kilnd.log") {
		t.Fatalf("%v", err)
	}
	if got := strings.Join(shown.Evidence, "\n"); got != "data "+data+"\nerror: no luck today" {
		t.Errorf("evidence: %q", got)
	}
}

func TestAProgramThatCannotRunIsAnError(t *testing.T) {
	if _, err := launch(t.TempDir(), filepath.Join(t.TempDir(), "absent"), upgrade.Command{}); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func TestOnlyTheLastLinesAreShown(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, []byte(strings.Repeat("x\n", 100_000)+"a\nb\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := lastLines(path, 0, 3); len(got) != 3 || got[2] != "b" {
		t.Errorf("%q", got)
	}
	if got := lastLines(path, 200_000, 9); len(got) != 2 {
		t.Errorf("%q", got)
	}
	if got := lastLines(path+"-absent", 0, 3); got != nil {
		t.Errorf("%q", got)
	}
}

func TestALockedDirectoryIsKnown(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kilnd.lock")
	if locked(path) {
		t.Error("what is not there is not locked")
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if !locked(path) {
		t.Error("it is locked")
	}
}

func TestFilesAreReplacedInOneStep(t *testing.T) {
	dir := t.TempDir()
	target, link := filepath.Join(dir, "real.hcl"), filepath.Join(dir, "kiln.hcl")
	if err := os.WriteFile(target, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real.hcl", link); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.Close() }()
	if err := replaceFile(root, "kiln.hcl", []byte("new")); err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(link)
	if err != nil || info.Mode().Type() != os.ModeSymlink {
		t.Errorf("the link is %v, %v", info.Mode(), err)
	}
	content, err := os.ReadFile(target)
	if err != nil || string(content) != "new" {
		t.Errorf("%q %v", content, err)
	}
	if info, err := os.Stat(target); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("left over: %v %v", entries, err)
	}
	if err := replaceFile(root, filepath.Join("no", "folder"), nil); asShown(err) == nil || asShown(err).Code != kiln.CodeNotFound {
		t.Errorf("%v", err)
	}
}

// TestNoFileOutsideOfTheFolderIsReplaced: the folder may be a stranger's and
// this process root's.
func TestNoFileOutsideOfTheFolderIsReplaced(t *testing.T) {
	above := t.TempDir()
	dir := filepath.Join(above, "repository")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	victim := filepath.Join(above, "victim")
	if err := os.WriteFile(victim, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.Close() }()
	for name, target := range map[string]string{"absolute": victim, "climbs": "../victim", "twice": "climbs", "absent": "../fresh", "folder": ".", "loop": "loop", "beneath": "up/victim", "up": ".."} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"absolute", "climbs", "twice", "absent", "folder", "loop", "beneath", "pipe"} {
		if err := replaceFile(root, name, []byte("theirs")); asShown(err) == nil {
			t.Errorf("replace %s: %v", name, err)
		}
		if _, err := readFile(root, name); asShown(err) == nil {
			t.Errorf("read %s: %v", name, err)
		}
	}
	if content, err := os.ReadFile(victim); err != nil || string(content) != "mine" {
		t.Errorf("the file outside holds %q, %v", content, err)
	}
	entries, err := os.ReadDir(above)
	if err != nil || len(entries) != 2 {
		t.Errorf("outside: %v %v", entries, err)
	}
}
