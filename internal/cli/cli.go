// Package cli is the command line: one file per command, each of which parses,
// calls the control plane or the package that knows, and prints. Standard
// output is data, standard error is speech. It decides nothing about releases
// and holds no state.
package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/server"
)

// DefaultData is the data directory when neither --data nor KILN_DATA says.
const DefaultData = "/var/lib/kiln"

// Options are what the command line gets from its process.
type Options struct {
	Args    []string // without the program's name
	Environ []string // "KEY=value"
	In      io.Reader
	Out     io.Writer
	Err     io.Writer
	Version string
	// Keeper is how a data directory's keeper is reached; kiln upgrade needs it.
	Keeper Keeper
	// Processes are the commands that run Kiln's own processes.
	Processes []*cobra.Command
}

// app is one run of the command line.
type app struct {
	Options
	data    string
	away    away
	dir     string
	json    bool
	noColor bool
	now     func() time.Time
	// entered is set once flags and arguments have been accepted: what fails
	// before is a mistake of usage.
	entered bool
}

// Run runs one command and returns the process's exit code.
func Run(ctx context.Context, options Options) int {
	a := &app{Options: options, now: time.Now}
	root := a.root() //nolint:contextcheck // each command gets ctx from cobra
	root.SetArgs(options.Args)
	command, err := root.ExecuteContextC(ctx)
	if err == nil {
		return ExitOK
	}
	if quiet := exitStatus(0); errors.As(err, &quiet) {
		return int(quiet)
	}
	if !a.entered && asShown(err) == nil {
		err = &kiln.Error{Code: kiln.CodeInvalid, Message: err.Error(), Hint: command.CommandPath() + " --help"}
	}
	a.printError(err)
	return exitCode(err)
}

// asShown is err as what a user is shown, nil when it is not that.
func asShown(err error) *kiln.Error {
	var shown *kiln.Error
	errors.As(err, &shown)
	return shown
}

const rootLong = `Kiln bakes images from a definition in Git, runs them read-only, puts traffic
on them, and replaces them by the next release. Nothing that runs is modified.

There is no exec and no ssh, on purpose: what runs is what was baked. To look,
use kiln logs, kiln events and kiln ps; to change something, change the
definition and run kiln up.`

// root builds the commands anew; nothing is shared between runs.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use: "kiln", Short: "Immutable services, from a definition to live traffic", Long: rootLong,
		SilenceErrors: true, SilenceUsage: true,
		PersistentPreRun: func(*cobra.Command, []string) { a.entered = true },
	}
	root.SetIn(a.In)
	root.SetOut(a.Out)
	root.SetErr(a.Err)
	flags := root.PersistentFlags()
	data := DefaultData
	if v := a.getenv("KILN_DATA"); v != "" {
		data = v
	}
	flags.StringVar(&a.data, "data", data, "data directory of the control plane (KILN_DATA)")
	a.registerAway(flags)
	flags.StringVarP(&a.dir, "dir", "C", ".", "folder of the definition")
	flags.BoolVar(&a.json, "json", false, "print JSON")
	flags.BoolVar(&a.noColor, "no-color", false, "no colours, also on a terminal (NO_COLOR)")
	root.AddGroup(&cobra.Group{ID: groupChange, Title: "Change what runs:"}, &cobra.Group{ID: groupLook, Title: "Look:"},
		&cobra.Group{ID: groupWrite, Title: "Write a definition:"}, &cobra.Group{ID: groupMachine, Title: "This machine:"})
	root.SetHelpCommandGroupID(groupMachine)
	root.SetCompletionCommandGroupID(groupMachine)
	root.AddCommand(
		a.upCommand(), a.rollbackCommand(), a.repaveCommand(), a.downCommand(), a.bakeCommand(), a.pushCommand(),
		a.planCommand(), a.statusCommand(), a.psCommand(), a.releasesCommand(), a.diffCommand(), a.verifyCommand(), a.logsCommand(), a.eventsCommand(),
		a.scanCommand(), a.sbomCommand(),
		a.validateCommand(), a.fmtCommand(), a.initCommand(),
		a.backupCommand(), a.restoreCommand(),
		a.configCommand(), a.dbCommand(), a.doctorCommand(), a.keyCommand(), a.ledgerCommand(), a.notifyCommand(), a.installCommand(), a.uninstallCommand(), a.reloadCommand(),
		a.shutdownCommand(), a.tokenCommand(), a.upgradeCommand(), a.versionCommand(),
		exitCodesTopic(), refusedCommand("exec"), refusedCommand("ssh"),
	)
	root.AddCommand(a.Processes...)
	return root
}

// The groups of the help.
const (
	groupChange  = "change"
	groupLook    = "look"
	groupWrite   = "write"
	groupMachine = "machine"
)

func (a *app) getenv(name string) string {
	for _, pair := range a.Environ {
		if len(pair) > len(name) && pair[len(name)] == '=' && pair[:len(name)] == name {
			return pair[len(name)+1:]
		}
	}
	return ""
}

// client returns the API's client; nothing is dialled yet.
func (a *app) client() (*server.Client, error) {
	if remote, err := a.remote(); remote || err != nil {
		if err != nil {
			return nil, err
		}
		return a.remoteClient()
	}
	data, err := filepath.Abs(a.data)
	if err != nil {
		return nil, err
	}
	return server.NewClient(filepath.Join(data, server.SocketName), a.Version), nil
}

// terminal says whether w is one and how many columns it has.
func terminal(w io.Writer) (columns int, ok bool) {
	f, isFile := w.(*os.File)
	if !isFile || !term.IsTerminal(int(f.Fd())) {
		return 0, false
	}
	columns, _, err := term.GetSize(int(f.Fd()))
	if err != nil || columns <= 0 {
		columns = 80
	}
	return columns, true
}

// Explain writes what an error says on a stream of speech and returns the exit
// code that belongs to it; kilnd ends like kiln does.
func Explain(speech io.Writer, err error) int {
	a := &app{Options: Options{Err: speech, Environ: os.Environ()}, dir: "."}
	a.printError(err)
	return exitCode(err)
}

// Warn writes warnings on a stream of speech.
func Warn(speech io.Writer, warnings kiln.Diagnostics) {
	a := &app{Options: Options{Err: speech, Environ: os.Environ()}, dir: "."}
	a.printDiagnostics(warnings)
}

// style returns how to write to w: with colours only on a terminal that wants
// them (no-color.org).
func (a *app) style(w io.Writer) style {
	_, ok := terminal(w)
	return style{terminal: ok, color: ok && !a.noColor && a.getenv("NO_COLOR") == "" && a.getenv("TERM") != "dumb"}
}
