package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/install"
	"github.com/kilnproject/kiln/internal/systemd"
)

// installFlags are what install takes.
type installFlags struct {
	root, prefix           string
	dryRun, noStart, force bool
}

func (a *app) installCommand() *cobra.Command {
	var f installFlags
	command := &cobra.Command{
		Use: "install", Short: "Install Kiln as a service of this machine, or into an image", GroupID: groupMachine,
		Long: `Puts the executables, a configuration that is all comments, systemd's units,
shell completion and manual pages in their places, makes the users and the
group, and starts Kiln now and at every boot. It says every path and what it
does with it. Repeated, it changes only what differs. A file that it did not
write, or that was changed since, is a conflict, found before anything is done;
the configuration is never overwritten.

With --root it installs into the root of an image or chroot and starts nothing.
Without systemd it says what to start.`,
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error { return a.install(command.Context(), f) },
	}
	flags := command.Flags()
	flags.StringVar(&f.root, "root", "", "root of an image or chroot to install into")
	flags.StringVar(&f.prefix, "prefix", "/usr/local", "where executables, completion and manual pages go")
	flags.BoolVar(&f.dryRun, "dry-run", false, "say what would be done, and do nothing")
	flags.BoolVar(&f.noStart, "no-start", false, "start nothing now, only at boot")
	flags.BoolVar(&f.force, "force", false, "also replace files that kiln install did not write")
	return command
}

func (a *app) install(ctx context.Context, f installFlags) error {
	o, err := a.installOptions(f) //nolint:contextcheck // its pages are of commands that are not run
	if err != nil {
		return err
	}
	starts, advice := a.starts(ctx, f, o)
	p := &stepPrinter{app: a}
	if f.dryRun {
		steps, err := install.Plan(o)
		if err != nil {
			return err
		}
		return p.plan(steps, starts)
	}
	if err := needRoot("kiln install"); err != nil {
		return err
	}
	if err := install.Install(ctx, o, p.step); err != nil {
		return err
	}
	if err := p.run(ctx, starts); err != nil {
		return err
	}
	if err := p.end(); err != nil {
		return err
	}
	a.say("%s", advice)
	return nil
}

// needRoot refuses what only root can do.
func needRoot(command string) error {
	if os.Geteuid() != 0 {
		return kiln.Errorf(kiln.CodeRefused, "sudo "+command+"; with --dry-run anybody may ask what it would do", "%s needs root", command)
	}
	return nil
}

func (a *app) installOptions(f installFlags) (install.Options, error) {
	o := install.Options{Root: f.root, Prefix: f.prefix, Version: a.Version, Force: f.force}
	var err error
	if o.Data, err = filepath.Abs(a.data); err != nil {
		return o, err
	}
	if o.Kiln, err = os.Executable(); err != nil {
		return o, fmt.Errorf("find this program: %w", err)
	}
	if o.Kilnd, err = findDaemon(); err != nil {
		err = kiln.Errorf(kiln.CodeNotFound, "put kilnd beside this kiln, or into PATH", "kilnd is not there to be installed")
		return o, err
	}
	o.Pages, err = Pages(a.Version)
	return o, err
}

// starts are the commands that start what was installed, and what to tell a
// person.
func (a *app) starts(ctx context.Context, f installFlags, o install.Options) (commands []string, advice string) {
	start := "systemctl start " + install.KeeperUnit + " " + install.DaemonUnit
	switch {
	case f.root != "":
		return nil, "nothing was started: that root is not this machine's; where systemd runs it starts Kiln at boot"
	case !systemd.Running():
		return nil, withoutSystemd(o)
	case f.noStart:
		return []string{"systemctl daemon-reload"}, "start it now: " + start
	case a.byHand(ctx, o.Data):
		return []string{"systemctl daemon-reload"}, "nothing was started: a control plane that was started by hand has " + o.Data +
			". At the next boot systemd starts Kiln; to change over now, end it: kiln shutdown, and then " + start
	}
	return []string{"systemctl daemon-reload", start}, "Kiln runs, and starts at boot; systemctl restart kilnd takes a new control plane, and touches no instance"
}

// byHand says whether processes of Kiln that are not systemd's units have a
// data directory.
func (a *app) byHand(ctx context.Context, data string) bool {
	for unit, lock := range map[string]string{install.DaemonUnit: "kilnd.lock", install.KeeperUnit: "run/keep.lock"} {
		if !locked(filepath.Join(data, lock)) {
			continue
		}
		if p, err := systemd.Show(ctx, unit, "ActiveState"); err != nil || p["ActiveState"] == "inactive" || p["ActiveState"] == "failed" {
			return true
		}
	}
	return false
}

// withoutSystemd says how to start what was installed where nothing does.
func withoutSystemd(o install.Options) string {
	daemon := filepath.Join(o.Prefix, "bin", "kilnd")
	if o.Data != DefaultData {
		daemon += " --data " + o.Data
	}
	return `nothing was started: no systemd runs here. Start Kiln as root:
  ` + daemon + `
It starts the keeper, and the keeper the gateway; to start or end kilnd again
touches neither. At boot, start it from whatever runs there, such as a line in
root's crontab:
  @reboot ` + daemon + ` >>` + filepath.Join(o.Data, "kilnd.log") + ` 2>&1`
}

// stepLine is one line of what is done to a machine.
type stepLine struct {
	Action string `json:"action"`
	Kind   string `json:"kind"`
	Name   string `json:"name"`
	Detail string `json:"detail,omitempty"`
}

// stepPrinter prints what is done, each line before it is done; for a program
// all of it at the end.
type stepPrinter struct {
	app   *app
	lines []stepLine
}

func (p *stepPrinter) line(l stepLine) error {
	if p.app.json {
		p.lines = append(p.lines, l)
		return nil
	}
	text := fmt.Sprintf("%-8s %-8s %s", l.Action, l.Kind, l.Name)
	if l.Detail != "" {
		text += "  (" + l.Detail + ")"
	}
	return p.app.print("%s\n", p.app.style(p.app.Out).safe(text))
}

func (p *stepPrinter) step(s install.Step) error {
	var details []string
	add := func(text string) {
		if text != "" {
			details = append(details, text)
		}
	}
	add(s.Item.What)
	if s.Item.Mode != 0 && s.Action != install.Remove {
		group := s.Item.Group
		if group == "" {
			group = "root"
		}
		add(fmt.Sprintf("%04o root:%s", s.Item.Mode, group))
	}
	if s.Item.Target != "" {
		add("to " + s.Item.Target)
	}
	add(s.Why)
	return p.line(stepLine{string(s.Action), string(s.Item.Kind), s.Item.Name, strings.Join(details, "; ")})
}

func (p *stepPrinter) command(text string) error {
	return p.line(stepLine{Action: "run", Kind: "command", Name: text})
}

// plan prints what would be done.
func (p *stepPrinter) plan(steps []install.Step, commands []string) error {
	for _, s := range steps {
		if err := p.step(s); err != nil {
			return err
		}
	}
	for _, c := range commands {
		if err := p.command(c); err != nil {
			return err
		}
	}
	return p.end()
}

// run runs commands of systemctl's.
func (p *stepPrinter) run(ctx context.Context, commands []string) error {
	for _, c := range commands {
		if err := p.command(c); err != nil {
			return err
		}
		if err := systemd.Run(ctx, strings.Fields(c)[1:]...); err != nil {
			return kiln.Errorf(kiln.CodeFailed, "journalctl -u kilnd -u kiln-keep may say why", "%w", err)
		}
	}
	return nil
}

func (p *stepPrinter) end() error {
	if !p.app.json {
		return nil
	}
	return p.app.printJSON(slices.Concat([]stepLine{}, p.lines))
}
