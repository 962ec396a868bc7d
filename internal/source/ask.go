package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/confine"
)

const (
	// maxAnswer bounds what is taken of an answer as a whole, and maxWords what
	// is kept of git's complaints, in bytes.
	maxAnswer = 4 << 20
	maxWords  = 8 << 10
	maxLine   = 300
	// maxSeconds of a processor is what one git may use.
	maxSeconds = 900
)

// settings are git's for a mirror. They are in a file, because the other end of
// a path reads them, too, and not what is given to this one.
const settings = `[core]
	hooksPath = /dev/null
	fsmonitor = false
	attributesFile = /dev/null
	bigFileThreshold = 16m
[transfer]
	fsckObjects = true
[fetch]
	fsckObjects = true
	unpackLimit = 1
	recurseSubmodules = false
[submodule]
	recurse = false
[protocol]
	allow = never
[http]
	followRedirects = false
	lowSpeedLimit = 1000
	lowSpeedTime = 60
[credential]
	helper =
[gc]
	autoDetach = false
	autoPackLimit = 20
	pruneExpire = now
[maintenance]
	autoDetach = false
[pack]
	threads = 1
	windowMemory = 64m
[safe]
	directory = *
`

// ask runs git and returns what it wrote.
func (m *Mirror) ask(ctx context.Context, environment []string, args ...string) ([]byte, error) {
	var out []byte
	err := m.stream(ctx, environment, nil, func(r io.Reader) (err error) {
		if out, err = io.ReadAll(io.LimitReader(r, maxAnswer+1)); err == nil && len(out) > maxAnswer {
			err = kiln.Errorf(kiln.CodeRefused, "", "git's answer has more than %d bytes", maxAnswer)
		}
		return err
	}, args...)
	return out, err
}

// stream runs git and has its output read while it is written. An error of read
// ends it. So does the end of ctx, with all that git started.
func (m *Mirror) stream(ctx context.Context, environment []string, input io.Reader, read func(io.Reader) error, args ...string) error {
	cmd := m.command(ctx, environment, args)
	words := &confine.Beginning{Most: maxWords}
	cmd.Stdin, cmd.Stderr = input, words
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("start git: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return kiln.Errorf(kiln.CodeUnavailable, "apt-get install git", "git cannot be started: %w", err)
	}
	m.confine(cmd.Process.Pid)
	reading := read(out)
	if reading != nil {
		_ = cmd.Cancel()
	}
	err = cmd.Wait()
	switch {
	case ctx.Err() != nil:
		return kiln.Errorf(kiln.CodeUnavailable, "look whether the network and the other end are as quick as they should be", "git did not come to an end: %w", context.Cause(ctx))
	case reading != nil:
		return reading
	case err != nil && !errors.Is(err, exec.ErrWaitDelay):
		return m.complaint(args[0], err, words.String())
	}
	return nil
}

func (m *Mirror) command(ctx context.Context, environment, args []string) *exec.Cmd {
	if args[0] != "init" {
		args = append([]string{"--no-pager", "--literal-pathspecs", "--git-dir=" + m.path(mirrorDir)}, args...)
	}
	cmd := exec.CommandContext(ctx, m.o.Program[0], append(m.o.Program[1:len(m.o.Program):len(m.o.Program)], args...)...)
	cmd.Dir = "/"
	cmd.Env = append([]string{
		"PATH=" + os.Getenv("PATH"),
		"HOME=" + m.o.Dir,
		"LC_ALL=C",
		"GIT_CONFIG_NOSYSTEM=1",
		"GIT_CONFIG_GLOBAL=" + m.path(configFile),
		"GIT_ATTR_NOSYSTEM=1",
		"GIT_TERMINAL_PROMPT=0",
		"GIT_ALLOW_PROTOCOL=" + m.o.Protocol,
		"GIT_NO_LAZY_FETCH=1",
		"GIT_NO_REPLACE_OBJECTS=1",
	}, environment...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// confine bounds a process that has begun, and what it starts: while it still
// becomes another user. The kernel ends it before the control plane when memory
// is short. What cannot be bounded is bounded by what follows: the size is looked
// at once more.
func (m *Mirror) confine(pid int) {
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte("500"), 0)
	for resource, most := range map[int]uint64{unix.RLIMIT_FSIZE: uint64(m.o.MaxBytes), unix.RLIMIT_CPU: maxSeconds, unix.RLIMIT_CORE: 0} {
		_ = unix.Prlimit(pid, resource, &unix.Rlimit{Cur: most, Max: most}, nil)
	}
}

// complaint is the error for what git wrote: its last lines without what is
// secret and without what a terminal would obey.
func (m *Mirror) complaint(what string, err error, words string) error {
	for _, secret := range m.secret {
		words = strings.ReplaceAll(words, secret, "...")
	}
	var lines []string
	for _, line := range lastLines(words, 5) {
		line = strings.Map(func(r rune) rune {
			if unicode.IsControl(r) || r == unicode.ReplacementChar {
				return -1
			}
			return r
		}, line)
		if line = strings.TrimSpace(line[:min(len(line), maxLine)]); line != "" {
			lines = append(lines, strings.ToValidUTF8(line, ""))
		}
	}
	why := err.Error()
	if len(lines) > 0 {
		why = lines[0]
	}
	e := kiln.Errorf(kiln.CodeFailed, "", "git %s: %s", what, why)
	e.Evidence = lines
	return e
}
