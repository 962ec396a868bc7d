package source

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/kilnproject/kiln"
)

// gitTimeout bounds all that is asked of git for one snapshot.
const gitTimeout = 20 * time.Second

// Git says which commit and branch a folder is of, and whether the folder has
// changes, new files included, that the commit has not. What is elsewhere in
// the repository does not count, and of submodules only their commits. Outside
// of Git the result is empty.
//
// The repository's own configuration may be hostile: no hook, monitor, filter,
// transport or pager that it names is run.
func Git(ctx context.Context, dir string) (kiln.Source, error) {
	inside, err := insideGit(dir)
	if err != nil || !inside {
		return kiln.Source{}, err
	}
	program, err := exec.LookPath("git")
	if err != nil {
		return kiln.Source{}, kiln.Errorf(kiln.CodeUnavailable, "install git: apt-get install git", "the folder is of a Git repository and git is not installed: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, gitTimeout)
	defer cancel()
	g := git{program: program, dir: dir}
	off, err := g.filtersOff(ctx)
	if err != nil {
		return kiln.Source{}, err
	}
	out, err := g.run(ctx, append(off, "status", "--porcelain=v2", "--branch", "-z",
		"--untracked-files=normal", "--ignore-submodules=dirty", "--no-renames", "--no-ahead-behind", "--", "."))
	if err != nil {
		return kiln.Source{}, err
	}
	return parseStatus(out), nil
}

// insideGit looks for .git in a folder and those above it.
func insideGit(dir string) (bool, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return false, kiln.Errorf(kiln.CodeFailed, "", "find the folder: %w", err)
	}
	for {
		_, err := os.Lstat(filepath.Join(dir, ".git"))
		if err == nil {
			return true, nil
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
			return false, kiln.Errorf(kiln.CodeFailed, "", "look for Git: %w", err)
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return false, nil
		}
		dir = parent
	}
}

type git struct {
	program string
	dir     string
}

// hardened are the settings that keep git from running anything. Those on the
// command line win over the repository's.
func hardened() []string {
	return []string{
		"--no-pager", "--no-replace-objects", "--literal-pathspecs",
		"-c", "core.hooksPath=/dev/null",
		"-c", "core.fsmonitor=false",
		"-c", "core.untrackedCache=false",
		"-c", "core.excludesFile=/dev/null",
		"-c", "core.attributesFile=/dev/null",
		"-c", "safe.directory=*",
		"-c", "safe.bareRepository=explicit",
		"-c", "protocol.allow=never",
		"-c", "status.submoduleSummary=false",
		"-c", "color.ui=false",
	}
}

// environment is all that git sees of the process environment.
func environment() []string {
	return []string{
		"PATH=" + os.Getenv("PATH"),
		"HOME=/nonexistent",
		"LC_ALL=C",
		"GIT_CONFIG_NOSYSTEM=1",
		"GIT_CONFIG_GLOBAL=/dev/null",
		"GIT_ATTR_NOSYSTEM=1",
		"GIT_OPTIONAL_LOCKS=0",
		"GIT_TERMINAL_PROMPT=0",
		"GIT_ALLOW_PROTOCOL=none",
		"GIT_NO_LAZY_FETCH=1",
		"GIT_PROTOCOL_FROM_USER=0",
	}
}

// run runs git and returns what it wrote.
func (g git) run(ctx context.Context, args []string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, g.program, append(hardened(), args...)...)
	cmd.Dir = g.dir
	cmd.Env = environment()
	cmd.WaitDelay = time.Second
	var out, problem bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problem
	err := cmd.Run()
	if ctx.Err() != nil {
		return nil, kiln.Errorf(kiln.CodeFailed, "", "git did not answer in time: %w", context.Cause(ctx))
	}
	if err != nil {
		e := kiln.Errorf(kiln.CodeFailed, "see what `git status` says in this folder", "git cannot read the repository: %w", err)
		e.Evidence = lastLines(problem.String(), 5)
		return nil, e
	}
	return out.Bytes(), nil
}

func lastLines(s string, n int) []string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[max(0, len(lines)-n):]
}

// filtersOff returns the settings that turn off the content filters that the
// repository's configuration names: git status runs them on changed files.
func (g git) filtersOff(ctx context.Context) ([]string, error) {
	out, err := g.run(ctx, []string{"config", "--list", "--name-only", "-z"})
	if err != nil {
		return nil, err
	}
	var off []string
	seen := map[string]bool{}
	for key := range strings.SplitSeq(string(out), "\x00") {
		rest, ok := strings.CutPrefix(key, "filter.")
		dot := strings.LastIndexByte(rest, '.')
		if !ok || dot < 0 || seen[rest[:dot]] {
			continue
		}
		name := rest[:dot]
		seen[name] = true
		if strings.ContainsAny(name, "=\n") {
			return nil, kiln.Errorf(kiln.CodeRefused, "remove it from the repository's configuration", "the repository names a filter %q, which cannot be turned off", name)
		}
		off = append(off, "-c", "filter."+name+".clean=", "-c", "filter."+name+".smudge=", "-c", "filter."+name+".process=", "-c", "filter."+name+".required=false")
	}
	return off, nil
}

// parseStatus reads git-status's porcelain v2 with NUL ends.
func parseStatus(out []byte) kiln.Source {
	var s kiln.Source
	for record := range strings.SplitSeq(string(out), "\x00") {
		switch head, ok := strings.CutPrefix(record, "# "); {
		case record == "":
		case !ok:
			s.Dirty = true
		default:
			key, value, _ := strings.Cut(head, " ")
			if key == "branch.oid" && value != "(initial)" {
				s.Commit = value
			}
			if key == "branch.head" && value != "(detached)" {
				s.Branch = value
			}
		}
	}
	return s
}
