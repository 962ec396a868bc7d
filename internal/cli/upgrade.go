package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/install"
	"github.com/kilnproject/kiln/internal/systemd"
	"github.com/kilnproject/kiln/internal/upgrade"
)

// Keeper reaches the keeper of a data directory. Where none runs the error's
// code is unavailable.
type Keeper interface {
	Who(ctx context.Context, data string) (version string, pid int, err error)
	// Replace makes it another program in place; on an error it is what it was.
	Replace(ctx context.Context, data, program string) error
}

const (
	// rehearsalLimit bounds one program's rehearsal.
	rehearsalLimit = 20 * time.Second
	// daemonEnd is how long a control plane may take to end before it is killed.
	daemonEnd = 20 * time.Second
)

type upgradeFlags struct {
	from   string
	wait   time.Duration
	resume bool
	starts bool
}

func (a *app) upgradeCommand() *cobra.Command {
	var f upgradeFlags
	command := &cobra.Command{
		Use: "upgrade", Short: "Replace Kiln's own programs while traffic goes on", GroupID: groupMachine,
		Long: `Replaces what runs of Kiln by a new version, one by one: the keeper, which goes
on as the same process, with its gateway, then the files, then the control plane.
Instances and connections are handed over. Both new programs are rehearsed
first; when one does not come up, all goes back to the old version, and the
error says why.

With --from the new kiln and kilnd are in that folder. Without, they are in place
already, as a package's upgrade leaves them, and only what runs is replaced.

One minor version may lie between what runs and the new version. An upgrade that
was cut short goes on, or back, when the control plane is started again, or with
--resume.`,
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error { return a.upgrade(command.Context(), f) },
	}
	flags := command.Flags()
	flags.StringVar(&f.from, "from", "", "folder with the new kiln and kilnd")
	flags.DurationVar(&f.wait, "wait", 2*time.Minute, "how long the new control plane may take until it answers")
	flags.BoolVar(&f.resume, "resume", false, "only end an upgrade that was cut short")
	flags.BoolVar(&f.starts, "starting", false, "with --resume: whoever calls starts the control plane then")
	_ = flags.MarkHidden("starting")
	return command
}

func (a *app) upgrade(ctx context.Context, f upgradeFlags) error {
	if err := needRoot("kiln upgrade"); err != nil {
		return err
	}
	if remote, err := a.remote(); remote || err != nil {
		return kiln.Errorf(kiln.CodeRefused, "run it on that machine", "kiln upgrade replaces what runs on this machine, and --server names another")
	}
	data, err := filepath.Abs(a.data)
	if err != nil {
		return err
	}
	p := &parts{app: a, data: data, wait: f.wait}
	if f.resume {
		was, err := upgrade.Resume(ctx, data, p, !f.starts, a.say)
		if err != nil || was || f.starts {
			return err
		}
		return a.upgraded("no upgrade was cut short", nil)
	}
	o, err := p.options(ctx, f.from)
	if err != nil {
		return err
	}
	if o == nil {
		return a.upgraded("what runs is what is installed: nothing to upgrade", nil)
	}
	result, err := upgrade.Run(ctx, *o, p)
	if err != nil {
		return err
	}
	text := fmt.Sprintf("%s is upgraded to %s", result.From, result.To)
	if result.From == "" {
		text = "nothing ran; " + result.To + " is in place"
	}
	return a.upgraded(text, &result)
}

func (a *app) upgraded(text string, result *upgrade.Result) error {
	if a.json {
		return a.printJSON(result)
	}
	return a.print("%s\n", text)
}

// resumeUpgrade ends an upgrade that was cut short, before a control plane is
// started.
func (a *app) resumeUpgrade(ctx context.Context, data string) error {
	_, err := upgrade.Resume(ctx, data, &parts{app: a, data: data}, false, a.say)
	return err
}

// parts are the processes of a data directory, for an upgrade.
type parts struct {
	app  *app
	data string
	wait time.Duration
}

// options say what is upgraded; nil when what runs is what is in place.
func (p *parts) options(ctx context.Context, from string) (*upgrade.Options, error) {
	daemon, err := p.daemonPID()
	if err != nil {
		return nil, err
	}
	_, keeper, err := p.app.Keeper.Who(ctx, p.data)
	if err != nil && !unavailable(err) {
		return nil, err
	}
	if daemon == 1 {
		return nil, kiln.Errorf(kiln.CodeRefused, "make the container of an image with the new version", "kilnd is process 1, and its end is that of the machine")
	}
	place, err := placeOf(daemon, keeper)
	if err != nil {
		return nil, err
	}
	o := &upgrade.Options{Data: p.data, Place: place, New: place, Old: place, Report: p.app.say}
	if from != "" {
		if from, err = filepath.Abs(from); err != nil {
			return nil, err
		}
		o.New = upgrade.In(from)
		return o, packaged(place)
	}
	same := true
	for pid, name := range map[int]*string{keeper: &o.Old.Kiln, daemon: &o.Old.Kilnd} {
		if pid > 0 && !runs(pid, *name) {
			same, *name = false, exeOf(pid)
		}
	}
	if same {
		return nil, nil //nolint:nilnil // as it says
	}
	return o, nil
}

// packaged refuses to replace what a package has put there.
func packaged(place upgrade.Programs) error {
	record, err := install.Read("")
	if err != nil || record != nil || filepath.Dir(place.Kiln) != "/usr/bin" {
		return err
	}
	return kiln.Errorf(kiln.CodeConflict, "install the new package: it upgrades what runs", "Kiln is installed by a package")
}

func exeOf(pid int) string { return fmt.Sprintf("/proc/%d/exe", pid) }

// runs says whether a process runs a file.
func runs(pid int, program string) bool {
	one, err1 := os.Stat(exeOf(pid))
	other, err2 := os.Stat(program)
	return err1 == nil && err2 == nil && os.SameFile(one, other)
}

// placeOf is where the programs that run are, or were before a package replaced
// them; where none runs, those that would.
func placeOf(daemon, keeper int) (upgrade.Programs, error) {
	for _, pid := range []int{daemon, keeper} {
		if pid == 0 {
			continue
		}
		path, err := os.Readlink(exeOf(pid))
		if err != nil {
			return upgrade.Programs{}, fmt.Errorf("find the program of process %d: %w", pid, err)
		}
		place := upgrade.In(filepath.Dir(strings.TrimSuffix(path, " (deleted)")))
		if _, err := os.Stat(place.Kilnd); err == nil {
			return place, nil
		}
	}
	found, err := findDaemon()
	return upgrade.In(filepath.Dir(found)), err
}

// daemonPID is the process that holds the data directory, 0 where none does.
func (p *parts) daemonPID() (int, error) {
	path := filepath.Join(p.data, "kilnd.lock")
	if !locked(path) {
		return 0, nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0, kiln.Errorf(kiln.CodeUnavailable, "try again", "a control plane starts just now")
	}
	return pid, nil
}

// Running is for upgrade.Processes.
func (p *parts) Running(ctx context.Context) (upgrade.Running, error) {
	var out upgrade.Running
	var err error
	if out.Keeper, _, err = p.app.Keeper.Who(ctx, p.data); err != nil && !unavailable(err) {
		return out, err
	}
	pid, err := p.daemonPID()
	if err != nil || pid == 0 {
		return out, err
	}
	if out.Command, err = commandOf(pid); err != nil {
		return out, err
	}
	p.app.data = p.data
	client, err := p.app.client()
	if err != nil {
		return out, err
	}
	v, err := client.Version(ctx)
	if unavailable(err) {
		return out, nil // it hangs, and is replaced all the more
	}
	out.Daemon = v.Version
	return out, err
}

// commandOf is how a process was started.
func commandOf(pid int) (*upgrade.Command, error) {
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return nil, fmt.Errorf("find how kilnd was started: %w", err)
	}
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return nil, fmt.Errorf("find how kilnd was started: %w", err)
	}
	words := split(args)
	if len(words) == 0 {
		return nil, kiln.Errorf(kiln.CodeUnavailable, "try again", "process %d has ended", pid)
	}
	return &upgrade.Command{Args: words[1:], Env: slices.DeleteFunc(split(env), forSystemd)}, nil
}

func split(b []byte) []string {
	b = bytes.TrimSuffix(b, []byte{0})
	if len(b) == 0 {
		return nil
	}
	return strings.Split(string(b), "\x00")
}

// forSystemd says whether a variable was meant for one process of systemd's.
func forSystemd(variable string) bool {
	name, _, _ := strings.Cut(variable, "=")
	return slices.Contains([]string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "INVOCATION_ID", "JOURNAL_STREAM"}, name)
}

// Rehearse is for upgrade.Processes.
func (p *parts) Rehearse(ctx context.Context, programs upgrade.Programs, c *upgrade.Command) (keeper, daemon upgrade.Rehearsal, err error) {
	if c == nil {
		c = &upgrade.Command{Args: []string{"--data", p.data}, Env: p.app.Environ}
	}
	keeper, err = rehearse(ctx, programs.Kiln, []string{"keep", "--data", p.data, "--rehearse"}, c.Env)
	if err != nil {
		return keeper, daemon, err
	}
	daemon, err = rehearse(ctx, programs.Kilnd, append(slices.Clone(c.Args), "--rehearse"), c.Env)
	return keeper, daemon, err
}

func rehearse(ctx context.Context, program string, args, env []string) (upgrade.Rehearsal, error) {
	var said upgrade.Rehearsal
	out, err := try(ctx, program, args, env)
	if err == nil {
		if json.Unmarshal(out, &said) != nil || said.Version == "" {
			err = kiln.Errorf(kiln.CodeFailed, "--from names a folder with kiln and kilnd", "it does not say that it is a program of Kiln's")
		}
	}
	if err == nil {
		return said, nil
	}
	failure := kiln.Errorf(kiln.CodeFailed, "nothing was changed", "the new %s does not start: %w", filepath.Base(program), err)
	failure.Evidence = asEvidence(err)
	return said, failure
}

func asEvidence(err error) []string {
	if known := asShown(err); known != nil {
		return known.Evidence
	}
	return nil
}

// try runs a program to its end, and returns what it says.
func try(ctx context.Context, program string, args, env []string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, rehearsalLimit)
	defer cancel()
	command := exec.CommandContext(ctx, program, args...)
	command.Env, command.Dir, command.WaitDelay = env, "/", time.Second
	var out, speech bytes.Buffer
	command.Stdout, command.Stderr = &out, &speech
	err := command.Run()
	if ctx.Err() != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = fmt.Errorf("it did not end within %s", rehearsalLimit)
	}
	if err == nil {
		return out.Bytes(), nil
	}
	failure := kiln.Errorf(kiln.CodeFailed, "", "%w", err)
	if lines := strings.Split(strings.TrimSpace(speech.String()), "\n"); lines[0] != "" {
		failure.Evidence = lines[max(0, len(lines)-8):]
	}
	return nil, failure
}

// Keeper is for upgrade.Processes.
func (p *parts) Keeper(ctx context.Context, program string) error {
	_, pid, err := p.app.Keeper.Who(ctx, p.data)
	if unavailable(err) {
		return nil // whoever starts one takes what is in place
	}
	if err != nil || runs(pid, program) {
		return err
	}
	return p.app.Keeper.Replace(ctx, p.data, program)
}

// Files is for upgrade.Processes: units, completion and manual pages follow the
// executables where `kiln install` put them.
func (p *parts) Files(ctx context.Context, program string) error {
	record, err := install.Read("")
	if err != nil || record == nil || record.Data != p.data || filepath.Join(record.Prefix, "bin", "kiln") != program {
		return err
	}
	_, err = try(ctx, program, []string{"install", "--no-start", "--prefix", record.Prefix, "--data", record.Data}, p.app.Environ)
	if err != nil {
		failure := kiln.Errorf(kiln.CodeFailed, "", "install what belongs to the executables: %w", err)
		failure.Evidence = asEvidence(err)
		return failure
	}
	return nil
}

// unit says whether systemd has the control plane.
func (p *parts) unit(ctx context.Context) bool {
	if !installed(ctx, p.data) {
		return false
	}
	pid, err := p.daemonPID()
	shown, showErr := systemd.Show(ctx, install.DaemonUnit, "MainPID", "ActiveState")
	if err != nil || showErr != nil {
		return false
	}
	return pid == 0 || shown["MainPID"] == strconv.Itoa(pid)
}

// End is for upgrade.Processes.
func (p *parts) End(ctx context.Context) error {
	if p.unit(ctx) {
		return systemd.Run(ctx, "stop", install.DaemonUnit)
	}
	pid, err := p.daemonPID()
	if err != nil || pid == 0 {
		return err
	}
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		if err := unix.Kill(pid, signal); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("end the control plane: %w", err)
		}
		if p.awaitUnlocked(ctx, daemonEnd) {
			return nil
		}
	}
	return kiln.Errorf(kiln.CodeFailed, "", "the control plane, process %d, does not end", pid)
}

func (p *parts) awaitUnlocked(ctx context.Context, limit time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for locked(filepath.Join(p.data, "kilnd.lock")) {
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
	return true
}

// Start is for upgrade.Processes.
func (p *parts) Start(ctx context.Context, program string, c upgrade.Command) error {
	p.app.data = p.data
	client, err := p.app.client()
	if err != nil {
		return err
	}
	if p.unit(ctx) {
		if err := systemd.Start(ctx, install.DaemonUnit); err != nil {
			return err
		}
		return (&daemon{unit: install.DaemonUnit, limit: p.wait}).await(ctx, client)
	}
	d, err := launch(p.data, program, c)
	if err != nil {
		return kiln.Errorf(kiln.CodeUnavailable, "", "start %s: %w", program, err)
	}
	d.limit = p.wait
	err = d.await(ctx, client)
	if err != nil {
		_ = unix.Kill(-d.pid, unix.SIGKILL) // it leads a session of its own
		p.awaitUnlocked(ctx, daemonEnd)
	}
	return err
}

// GoBack is for upgrade.Processes.
func (p *parts) GoBack(ctx context.Context, program string, c upgrade.Command) error {
	_, err := try(ctx, program, append(slices.Clone(c.Args), "--go-back"), c.Env)
	return err
}
