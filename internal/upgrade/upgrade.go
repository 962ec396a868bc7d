// Package upgrade replaces the programs of Kiln that run on a data directory by
// others, one by one: the keeper with its gateway, the files, the control plane.
// Before that both are rehearsed, and the old ones kept; what does not come up is
// taken back. Each step is written down before it is taken, so that an upgrade
// that was cut short goes on, or back, at the next start.
//
// The package decides and moves files. What runs is behind Processes.
package upgrade

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/kilnproject/kiln"
)

// Programs are the paths of the two executables.
type Programs struct {
	Kiln  string `json:"kiln"`
	Kilnd string `json:"kilnd"`
}

// In are the programs of a folder.
func In(dir string) Programs {
	return Programs{Kiln: filepath.Join(dir, "kiln"), Kilnd: filepath.Join(dir, "kilnd")}
}

// Rehearsal is what a program says of itself, in JSON, when it is rehearsed.
type Rehearsal struct {
	Version  string `json:"version"`
	Protocol int    `json:"protocol"` // between control plane and keeper
}

// Command is how a control plane was started, without the program.
type Command struct {
	Args []string `json:"args"`
	Env  []string `json:"env"`
}

// Running is what runs. A part that does not, or does not answer, has no
// version.
type Running struct {
	Keeper, Daemon string // versions
	// Command is that of the control plane that runs, nil where none does.
	Command *Command
}

// Processes are the parts of Kiln that run on a data directory. Everything may
// be asked for again.
type Processes interface {
	Running(ctx context.Context) (Running, error)
	// Rehearse runs both programs as they will be run; c may be nil. They change
	// nothing.
	Rehearse(ctx context.Context, p Programs, c *Command) (keeper, daemon Rehearsal, err error)
	// Keeper makes the keeper that runs, and its gateway, the program. On an
	// error the keeper before goes on.
	Keeper(ctx context.Context, program string) error
	// Files is called after the files were replaced, with the kiln that is in
	// place now.
	Files(ctx context.Context, program string) error
	// End ends the control plane where one runs.
	End(ctx context.Context) error
	// Start starts the control plane that is in place, and returns once it
	// answers.
	Start(ctx context.Context, program string, c Command) error
	// GoBack has a control plane that does not run undo what a newer one did.
	GoBack(ctx context.Context, program string, c Command) error
}

// Options say what is upgraded.
type Options struct {
	Data string // data directory
	// Place is where the programs are that run now, and will be the new ones.
	Place Programs
	// New are the new programs; they are copied. Where they are those of Place
	// already, as after a package's upgrade, Old are the programs that run.
	New, Old Programs
	// Report is told of each step.
	Report func(format string, args ...any)
}

// Result is what became of an upgrade.
type Result struct {
	From string `json:"from"`
	To   string `json:"to"`
}

// Run upgrades. Without an error all that ran is the new programs, else all is
// the old ones, or the error says what is not.
func Run(ctx context.Context, o Options, ps Processes) (Result, error) {
	lock, err := take(o.Data)
	if err != nil {
		return Result{}, err
	}
	defer func() { _ = lock.Close() }()
	if left, err := read(o.Data); err != nil || left != nil {
		return Result{}, errors.Join(err, unfinished(left))
	}
	j, err := prepare(ctx, o, ps)
	if err != nil {
		return Result{}, err
	}
	// From here on a Ctrl-C would leave half of it: it goes on, or back.
	ctx = context.WithoutCancel(ctx)
	u := &run{journal: j, ps: ps, report: o.Report}
	if err := u.forward(ctx); err != nil {
		return Result{}, u.back(ctx, err)
	}
	return Result{From: j.From, To: j.To}, nil
}

func unfinished(j *journal) error {
	if j == nil {
		return nil
	}
	return kiln.Errorf(kiln.CodeConflict, "kiln upgrade --resume", "an upgrade from %s to %s was cut short", j.From, j.To)
}

// prepare rehearses the new programs where they are copied to, and writes the
// first record.
func prepare(ctx context.Context, o Options, ps Processes) (*journal, error) {
	j := &journal{Form: journalForm, Step: staged, Place: o.Place, data: o.Data}
	if err := j.stage(o); err != nil {
		return nil, errors.Join(err, j.clear())
	}
	err := j.check(ctx, ps)
	if err == nil {
		err = j.write()
	}
	if err != nil {
		return nil, errors.Join(err, j.clear())
	}
	o.Report("rehearsed kiln and kilnd %s", j.To)
	return j, nil
}

// check refuses programs that do not start or are too far from what runs.
func (j *journal) check(ctx context.Context, ps Processes) error {
	running, err := ps.Running(ctx)
	if err != nil {
		return err
	}
	keeper, daemon, err := ps.Rehearse(ctx, j.new(), running.Command)
	if err != nil {
		return err
	}
	j.To, j.From, j.Command = daemon.Version, running.Daemon, running.Command
	if j.From == "" {
		j.From = running.Keeper
	}
	if keeper.Protocol != daemon.Protocol {
		return kiln.Errorf(kiln.CodeConflict, "give kiln and kilnd of the same version", "the new kiln is version %s, the new kilnd %s, and they do not understand each other", keeper.Version, daemon.Version)
	}
	for _, pair := range [][4]string{
		{"the new kiln", keeper.Version, "the new kilnd", daemon.Version},
		{"kilnd", running.Daemon, "the new kilnd", daemon.Version},
		{"the keeper", running.Keeper, "the new kiln", keeper.Version},
	} {
		if err := kiln.CheckSkew(pair[0], pair[1], pair[2], pair[3]); err != nil {
			return err
		}
	}
	return nil
}

// run is an upgrade under way.
type run struct {
	*journal
	ps     Processes
	report func(format string, args ...any)
}

// forward takes the steps from where the journal is.
func (u *run) forward(ctx context.Context) error {
	steps := []struct {
		step step
		say  string
		do   func(context.Context) error
	}{
		{replaceKeeper, "replaced the keeper and the gateway", func(ctx context.Context) error { return u.ps.Keeper(ctx, u.new().Kiln) }},
		{replaceFiles, "replaced the files", func(ctx context.Context) error { return u.files(ctx, u.new()) }},
		{replaceDaemon, "replaced the control plane", u.daemon},
	}
	if u.Command == nil {
		steps = steps[:2] // none ran
	}
	for _, s := range steps {
		if err := u.at(s.step); err != nil {
			return err
		}
		if err := s.do(ctx); err != nil {
			return err
		}
		u.report("%s", s.say)
	}
	return u.clear()
}

// daemon is the last step.
func (u *run) daemon(ctx context.Context) error {
	if err := u.ps.End(ctx); err != nil {
		return err
	}
	return u.ps.Start(ctx, u.Place.Kilnd, *u.Command)
}

// back undoes what was done because of a cause.
func (u *run) back(ctx context.Context, cause error) error {
	reached := u.Step
	if reached != goingBack {
		u.Reached = reached
	}
	u.report("going back to %s: %v", u.From, cause)
	if err := u.undo(ctx, true); err != nil {
		return &kiln.Error{
			Code: kiln.CodeFailed, Message: fmt.Sprintf("the upgrade to %s failed, and going back to %s too: %v; after %v", u.To, u.From, err, cause),
			Hint: "kiln upgrade --resume tries again; traffic goes on", Evidence: evidence(cause), Err: err,
		}
	}
	out := &kiln.Error{Code: kiln.CodeFailed, Message: fmt.Sprintf("%s did not come up, and %s runs on: %v", u.To, u.From, cause), Evidence: evidence(cause), Err: cause}
	if known := (*kiln.Error)(nil); errors.As(cause, &known) {
		out.Hint = known.Hint
	}
	return out
}

func evidence(err error) []string {
	if known := (*kiln.Error)(nil); errors.As(err, &known) {
		return known.Evidence
	}
	return nil
}

// undo goes back, from wherever the upgrade is. Without start, whoever called
// starts the control plane.
func (u *run) undo(ctx context.Context, start bool) error {
	if err := u.at(goingBack); err != nil {
		return err
	}
	daemon := u.Reached == replaceDaemon && u.Command != nil
	if daemon && start {
		if err := u.ps.End(ctx); err != nil {
			return err
		}
	}
	if err := u.ps.Keeper(ctx, u.oldOrPlaced().Kiln); err != nil {
		return err
	}
	if u.InPlace || u.Reached != replaceKeeper && u.Reached != staged {
		if err := u.files(ctx, u.old()); err != nil {
			return err
		}
	}
	if daemon {
		if err := u.ps.GoBack(ctx, u.Place.Kilnd, *u.Command); err != nil {
			return err
		}
	}
	if daemon && start {
		if err := u.ps.Start(ctx, u.Place.Kilnd, *u.Command); err != nil {
			return err
		}
	}
	return u.clear()
}

// files puts programs into their place.
func (u *run) files(ctx context.Context, from Programs) error {
	if err := u.put(from); err != nil {
		return err
	}
	return u.ps.Files(ctx, u.Place.Kiln)
}

// Resume ends an upgrade that was cut short: it goes on where only the control
// plane was to be replaced, and that was not tried again before, and else back.
// With start it starts the control plane itself; without, the caller does, and
// Settle ends it then. It returns false where there is none, or another process
// is at it.
func Resume(ctx context.Context, data string, ps Processes, start bool, report func(format string, args ...any)) (bool, error) {
	if !exists(data) {
		return false, nil
	}
	lock, err := take(data)
	if errors.Is(err, kiln.ErrConflict) && !start {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer func() { _ = lock.Close() }()
	j, err := read(data)
	if err != nil || j == nil {
		return false, err
	}
	ctx = context.WithoutCancel(ctx)
	u := &run{journal: j, ps: ps, report: report}
	cause := kiln.Errorf(kiln.CodeFailed, "", "the upgrade was cut short")
	switch {
	case j.Step == replaceDaemon && j.Tries == 0:
		j.Tries++
		if err := j.write(); err != nil {
			return true, err
		}
		report("going on with the upgrade to %s", j.To)
		if !start {
			return true, nil
		}
		if err := u.forwardDaemon(ctx); err != nil {
			return true, u.back(ctx, err)
		}
		return true, nil
	case start:
		return true, u.back(ctx, cause)
	}
	if j.Step != goingBack {
		j.Reached = j.Step
	}
	report("going back to %s: the upgrade to %s was cut short", j.From, j.To)
	return true, u.undo(ctx, false)
}

// forwardDaemon is the last step again.
func (u *run) forwardDaemon(ctx context.Context) error {
	if err := u.daemon(ctx); err != nil {
		return err
	}
	u.report("replaced the control plane")
	return u.clear()
}

// Settle ends an upgrade that was cut short, and that no process is at, when the
// control plane of its version answers: it is done then, or it never came to
// its files. It returns the version, empty where there was nothing to end.
func Settle(data, version string) (string, error) {
	if !exists(data) {
		return "", nil
	}
	lock, err := take(data)
	if errors.Is(err, kiln.ErrConflict) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer func() { _ = lock.Close() }()
	j, err := read(data)
	if err != nil || j == nil {
		return "", err
	}
	if j.Step == replaceDaemon && version == j.To || (j.Step == staged || j.Step == replaceKeeper) && version == j.From {
		return version, j.clear()
	}
	return "", nil
}
