package cli

import (
	"context"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/kilnproject/kiln/internal/install"
	"github.com/kilnproject/kiln/internal/systemd"
)

// uninstallFlags are what uninstall takes.
type uninstallFlags struct {
	root               string
	dryRun, purge, yes bool
}

func (a *app) uninstallCommand() *cobra.Command {
	var f uninstallFlags
	command := &cobra.Command{
		Use: "uninstall", Short: "End what runs, and remove what kiln install made", GroupID: groupMachine,
		Long: `Ends every environment and Kiln's own processes, in order, and removes what
kiln install made. It says every path and what it does with it. What was changed
since it was installed stays, and so do the data directory, with the history and
all that was baked, and the users whose files are in it.

With --purge all of that goes as well.`,
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error { return a.uninstall(command.Context(), f) },
	}
	flags := command.Flags()
	flags.StringVar(&f.root, "root", "", "root of an image or chroot to uninstall from")
	flags.BoolVar(&f.dryRun, "dry-run", false, "say what would be done, and do nothing")
	flags.BoolVar(&f.purge, "purge", false, "also remove the data directory, the configuration and the users")
	flags.BoolVarP(&f.yes, "yes", "y", false, "do not ask")
	return command
}

func (a *app) uninstall(ctx context.Context, f uninstallFlags) error {
	o := install.RemoveOptions{Root: f.root, Purge: f.purge}
	steps, err := install.PlanRemoval(o)
	if err != nil {
		return err
	}
	record, err := install.Read(f.root)
	if err != nil {
		return err
	}
	live := f.root == ""
	p := &stepPrinter{app: a}
	if f.dryRun {
		return a.planUninstall(ctx, p, record.Data, live, steps)
	}
	if err := needRoot("kiln uninstall"); err != nil {
		return err
	}
	question := "End every environment and remove Kiln? " + record.Data + " is kept."
	if f.purge {
		question = "End every environment and remove Kiln and " + record.Data + ", with all that was released and baked?"
	}
	if err := a.confirm(f.yes, question); err != nil {
		return err
	}
	if live {
		if err := install.Used(*record); err != nil {
			return err
		}
		if err := a.endAll(ctx, record.Data, p); err != nil {
			return err
		}
	}
	if err := install.Uninstall(ctx, o, p.step); err != nil {
		return err
	}
	if live && systemd.Running() {
		if err := p.run(ctx, []string{"systemctl daemon-reload"}); err != nil {
			return err
		}
	}
	return p.end()
}

func (a *app) planUninstall(ctx context.Context, p *stepPrinter, data string, live bool, steps []install.Step) error {
	if live {
		if a.left(ctx, data) {
			if err := p.command("kiln --data " + data + " shutdown --yes"); err != nil {
				return err
			}
		}
		if systemd.Running() {
			if err := p.command(stopUnits()); err != nil {
				return err
			}
		}
	}
	return p.plan(steps, nil)
}

func stopUnits() string { return "systemctl stop " + install.DaemonUnit + " " + install.KeeperUnit }

// left says whether something of Kiln's runs on a data directory, or may.
func (a *app) left(ctx context.Context, data string) bool {
	a.data = data
	if a.answers(ctx) == nil {
		return true
	}
	// Without a control plane: a keeper, or instances whose keeper died too.
	entries, err := os.ReadDir(filepath.Join(data, "local", "instances"))
	return locked(filepath.Join(data, "run", "keep.lock")) || err == nil && len(entries) > 0
}

// endAll ends what runs, in order: environments, gateway, keeper, control
// plane. Where only the control plane is missing it is started for that.
func (a *app) endAll(ctx context.Context, data string, p *stepPrinter) error {
	if a.left(ctx, data) {
		if err := p.command("kiln --data " + data + " shutdown --yes"); err != nil {
			return err
		}
		if err := a.shutdown(ctx); err != nil {
			return err
		}
	}
	if !systemd.Running() {
		return nil
	}
	return p.run(ctx, []string{stopUnits()})
}

// shutdown ends everything on the data directory. A control plane that has died
// is started for that.
func (a *app) shutdown(ctx context.Context) error {
	progress := a.newProgress()
	client, err := a.running(ctx, progress)
	if err == nil {
		err = client.Shutdown(ctx, progress.show)
	}
	progress.close()
	if err != nil {
		return a.ended(err, progress, "the shutdown")
	}
	return a.awaitGone(ctx, client)
}
