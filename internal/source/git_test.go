package source_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/source"
)

// repository makes one with a commit on branch main.
func repository(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("git is not installed")
	}
	dir := t.TempDir()
	git(t, dir, "init", "-q", "-b", "main")
	write(t, dir, map[string]string{"kiln.hcl": "x", ".gitignore": "ignored\n", "web/Dockerfile": "FROM scratch"})
	git(t, dir, "add", ".")
	git(t, dir, "commit", "-q", "-m", "first")
	return dir
}

func git(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "git", append([]string{"-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "protocol.file.allow=always"}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func ask(t *testing.T, dir string) kiln.Source {
	t.Helper()
	s, err := source.Git(t.Context(), dir)
	must(t, err)
	return s
}

func TestGitStates(t *testing.T) {
	dir := repository(t)
	clean := kiln.Source{Commit: git(t, dir, "rev-parse", "HEAD"), Branch: "main"}
	dirty := clean
	dirty.Dirty = true
	if got := ask(t, dir); got != clean {
		t.Fatalf("clean: %+v", got)
	}
	write(t, dir, map[string]string{"ignored": "x"})
	if got := ask(t, dir); got != clean {
		t.Errorf("an ignored file: %+v", got)
	}
	write(t, dir, map[string]string{"new file": "x"})
	if got := ask(t, dir); got != dirty {
		t.Errorf("a new file: %+v", got)
	}
	if got := ask(t, filepath.Join(dir, "web")); got != clean {
		t.Errorf("a folder without changes: %+v", got)
	}
	must(t, os.Remove(filepath.Join(dir, "new file")))
	write(t, dir, map[string]string{"kiln.hcl": "y"})
	if got := ask(t, dir); got != dirty {
		t.Errorf("a changed file: %+v", got)
	}
	git(t, dir, "add", ".")
	if got := ask(t, dir); got != dirty {
		t.Errorf("a staged file: %+v", got)
	}
	git(t, dir, "commit", "-q", "-m", "second")
	git(t, dir, "checkout", "-q", "--detach")
	if got := ask(t, dir); got.Branch != "" || got.Dirty || got.Commit == clean.Commit {
		t.Errorf("detached: %+v", got)
	}
	git(t, dir, "checkout", "-q", "-b", "feature/ü x"[:9])
	must(t, os.Remove(filepath.Join(dir, "web/Dockerfile")))
	if got := ask(t, dir); !strings.HasPrefix(got.Branch, "feature/") || !got.Dirty {
		t.Errorf("a removed file on a branch: %+v", got)
	}
}

func TestGitOutsideEmptyAndWorktree(t *testing.T) {
	if got := ask(t, t.TempDir()); got != (kiln.Source{}) {
		t.Errorf("outside: %+v", got)
	}
	dir := repository(t)
	empty := t.TempDir()
	git(t, empty, "init", "-q", "-b", "trunk")
	if got := ask(t, empty); got != (kiln.Source{Branch: "trunk"}) {
		t.Errorf("without a commit: %+v", got)
	}
	other := filepath.Join(t.TempDir(), "other")
	git(t, dir, "worktree", "add", "-q", "-b", "side", other)
	if got := ask(t, other); got.Branch != "side" || got.Dirty {
		t.Errorf("a worktree: %+v", got)
	}
	broken := t.TempDir()
	write(t, broken, map[string]string{".git": "gitdir: /nowhere"})
	if _, err := source.Git(t.Context(), broken); err == nil {
		t.Error("a broken repository is not reported")
	}
}

// TestGitIgnoresProcessEnvironment points git elsewhere by its variables.
func TestGitIgnoresProcessEnvironment(t *testing.T) {
	dir, other := repository(t), repository(t)
	git(t, other, "checkout", "-q", "-b", "other")
	t.Setenv("GIT_DIR", filepath.Join(other, ".git"))
	t.Setenv("GIT_WORK_TREE", other)
	t.Setenv("GIT_INDEX_FILE", "/nonexistent")
	t.Setenv("GIT_CONFIG_COUNT", "1")
	t.Setenv("GIT_CONFIG_KEY_0", "core.fsmonitor")
	t.Setenv("GIT_CONFIG_VALUE_0", "touch "+filepath.Join(dir, "owned"))
	if got := ask(t, dir); got.Branch != "main" || got.Dirty {
		t.Errorf("got %+v", got)
	}
}

// TestHostileRepositoryRunsNothing gives a repository every setting that is
// known to run a program on git status.
func TestHostileRepositoryRunsNothing(t *testing.T) {
	dir := repository(t)
	owned := filepath.Join(t.TempDir(), "owned")
	script := filepath.Join(dir, ".git", "evil")
	must(t, os.WriteFile(script, []byte("#!/bin/sh\ntouch "+owned+"\ncat\n"), 0o755))
	for _, hook := range []string{"post-index-change", "post-checkout", "fsmonitor-watchman", "reference-transaction"} {
		must(t, os.MkdirAll(filepath.Join(dir, ".git/hooks"), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, ".git/hooks", hook), []byte("#!/bin/sh\ntouch "+owned+"\n"), 0o755))
	}
	write(t, dir, map[string]string{".gitattributes": "* filter=evil diff=evil\n*.x filter=Weird.Name\n", "a.x": "x"})
	git(t, dir, "add", "--", ".gitattributes", "a.x")
	git(t, dir, "commit", "-q", "-m", "attributes")
	for key, value := range map[string]string{
		"core.fsmonitor": script, "core.hooksPath": ".git/hooks", "core.pager": script, "pager.status": "true", "core.editor": script,
		"core.sshCommand": script, "core.gitProxy": script, "core.askPass": script, "diff.external": script, "diff.evil.textconv": script,
		"diff.evil.command": script, "filter.evil.clean": script, "filter.evil.smudge": script, "filter.evil.process": script,
		"filter.evil.required": "true", "filter.Weird.Name.clean": script, "credential.helper": "!" + script, "alias.status": "!" + script,
		"core.alternateRefsCommand": script, "gpg.program": script, "status.submoduleSummary": "true",
		"remote.origin.url": "ext::" + script, "remote.origin.promisor": "true", "protocol.ext.allow": "always", "remote.origin.uploadpack": script,
		"extensions.partialClone": "origin", "core.repositoryFormatVersion": "1",
	} {
		git(t, dir, "config", key, value)
	}
	_ = os.Remove(owned)
	write(t, dir, map[string]string{"kiln.hcl": "z", "a.x": "y", "new": "n"})
	got := ask(t, dir)
	if !got.Dirty || got.Branch != "main" {
		t.Errorf("got %+v", got)
	}
	if _, err := os.Stat(owned); err == nil {
		t.Fatal("the repository ran a program")
	}
	// The same without protection, so that the test is known to test.
	cmd := exec.CommandContext(t.Context(), "git", "-c", "core.fsmonitor=false", "status")
	cmd.Dir = dir
	_ = cmd.Run()
	if _, err := os.Stat(owned); err != nil {
		t.Log("git itself ran nothing here; this version may have other rules")
	}
}

func TestGitOfAnotherOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("changing owners needs root")
	}
	dir := repository(t)
	must(t, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, 12345, 12345)
	}))
	if got := ask(t, dir); got.Branch != "main" || got.Commit == "" {
		t.Errorf("got %+v", got)
	}
}

func BenchmarkSnapshot(b *testing.B) {
	dir := b.TempDir()
	for i := range 2000 {
		at := filepath.Join(dir, "c", string(rune('a'+i%20)), string(rune('a'+i/20%20)))
		if err := os.MkdirAll(at, 0o755); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(at, strings.Repeat("f", i%50+1)), make([]byte, 10_000), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "c/Dockerfile"), nil, 0o644); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, _, _, err := source.Snapshot(b.Context(), dir, source.Want{Images: []kiln.Image{image("c", "Dockerfile")}}); err != nil {
			b.Fatal(err)
		}
	}
}
