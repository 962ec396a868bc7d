package confine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/kilnproject/kiln"
)

const (
	// maxAnswer bounds what a worker says, in bytes.
	maxAnswer = 32 << 20
	// lastWords is how much of a worker's standard error goes into an error.
	lastWords = 2 << 10
	// firstFile is the descriptor of the first file that a worker is handed.
	firstFile = 3
)

// Program becomes a worker, which calls Serve.
type Program struct {
	Path string
	Args []string // before the task's name
	// UID and GID are who the worker is; with 0 it is who starts it.
	UID, GID int
}

// asked is what a worker reads from its standard input, which stays open as
// long as the work is wanted.
type asked struct {
	Files   int             `json:"files"`
	Request json.RawMessage `json:"request"`
}

// answered is what it writes to its standard output.
type answered struct {
	Answer json.RawMessage `json:"answer,omitempty"`
	Error  *kiln.Error     `json:"error,omitempty"`
}

// Call has a task done by a process of its own and decodes into answer, unless
// that is nil, what it says, also with an error of the task, which is a *kiln.Error. The process
// uses the files by position or has them for itself. It ends with ctx.
func (p Program) Call(ctx context.Context, task string, request, answer any, files ...*os.File) error {
	body, err := json.Marshal(request)
	if err != nil {
		return fmt.Errorf("ask %s: %w", task, err)
	}
	question, err := json.Marshal(asked{len(files), body})
	if err != nil {
		return fmt.Errorf("ask %s: %w", task, err)
	}
	out, err := p.run(ctx, task, question, files)
	if err != nil {
		return err
	}
	var a answered
	if err := json.Unmarshal(out, &a); err != nil {
		return fmt.Errorf("answer of %s: %w", task, err)
	}
	if answer != nil && len(a.Answer) > 0 {
		if err := json.Unmarshal(a.Answer, answer); err != nil {
			return fmt.Errorf("answer of %s: %w", task, err)
		}
	}
	if a.Error != nil {
		return a.Error
	}
	return nil
}

// run runs a worker to its end and returns what it said.
func (p Program) run(ctx context.Context, task string, question []byte, files []*os.File) ([]byte, error) {
	out, words := &Beginning{Most: maxAnswer}, &Beginning{Most: lastWords}
	cmd := exec.CommandContext(ctx, p.Path, append(slices.Clone(p.Args), task)...)
	cmd.Env, cmd.Dir, cmd.ExtraFiles = []string{}, "/", files
	cmd.Stdout, cmd.Stderr = out, words
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", task, err)
	}
	if err := Start(cmd, p.UID, p.GID); err != nil {
		return nil, kiln.Errorf(kiln.CodeUnavailable, "look whether "+p.Path+" is there and can be started", "start %s: %w", task, err)
	}
	// The kernel ends it before the control plane when memory is short. What
	// keeps this from being written keeps nothing else from working.
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", cmd.Process.Pid), []byte("500"), 0)
	_, asking := in.Write(question) // an end of the worker is told by Wait
	err = cmd.Wait()
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		return nil, kiln.Errorf(kiln.CodeFailed, "free memory, or look into kilnd.log", "the process for %s ended: %w%s", task, err, after(words.String()))
	case asking != nil:
		return nil, fmt.Errorf("ask %s: %w", task, asking)
	}
	return out.Bytes(), nil
}

func after(words string) string {
	if words = strings.TrimSpace(words); words != "" {
		return ": " + words
	}
	return ""
}

// Task does something with a request and open files. What it returns is
// answered, also when there is an error.
type Task func(ctx context.Context, request json.RawMessage, files []*os.File) (any, error)

// Serve is the worker: it gives up what it does not need, reads one request,
// does it, and answers. It returns an error where it could not even answer.
func Serve(ctx context.Context, do Task) error {
	if err := errors.Join(bound(4096, 256<<30), ToOpenFiles()); err != nil {
		return err
	}
	d := json.NewDecoder(os.Stdin)
	var a asked
	if err := d.Decode(&a); err != nil {
		return fmt.Errorf("read the request: %w", err)
	}
	go func() { // the one who asked has ended
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(1)
	}()
	files := make([]*os.File, a.Files)
	for i := range files {
		files[i] = os.NewFile(uintptr(firstFile+i), "file")
	}
	answer, err := do(ctx, a.Request, files)
	return json.NewEncoder(os.Stdout).Encode(reply(answer, err))
}

func reply(answer any, err error) answered {
	var a answered
	b, merr := json.Marshal(answer)
	if err = errors.Join(err, merr); err == nil {
		return answered{Answer: b}
	}
	a.Answer = b
	if k := (*kiln.Error)(nil); errors.As(err, &k) {
		a.Error = k
	} else {
		a.Error = kiln.Errorf(kiln.CodeFailed, "", "%w", err)
	}
	return a
}
