package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/server"
)

func (a *app) ledgerCommand() *cobra.Command {
	command := &cobra.Command{
		Use: "ledger", Short: "Check the history, and go on after damage", GroupID: groupMachine, Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error { return command.Help() },
	}
	command.AddCommand(a.ledgerVerifyCommand(), a.ledgerAcceptCommand(), a.ledgerAdoptCommand())
	return command
}

func (a *app) ledgerVerifyCommand() *cobra.Command {
	var request server.VerifyRequest
	command := &cobra.Command{
		Use: "verify", Short: "Check every record of the ledger; needs no control plane",
		Long: `Checks that every event, release, rollout, instance and setting is what was
written, and that the file is whole. With a running control plane it asks that
one; else it reads the data directory itself, as root. The exit code is 1 when a
record is damaged.

The tip that it prints stands for the whole history. Kept elsewhere, it tells
later (--tip) whether the history was written anew.`,
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			report, err := a.verifyLedger(command.Context(), request)
			if err != nil {
				return err
			}
			if err := a.printReport(report); err != nil {
				return err
			}
			if len(report.Faults) > 0 {
				return exitStatus(ExitFailed)
			}
			return nil
		},
	}
	command.Flags().StringVar(&request.Tip, "tip", "", "tip that an earlier verification printed: the history must go through it")
	return command
}

func (a *app) verifyLedger(ctx context.Context, request server.VerifyRequest) (kiln.LedgerReport, error) {
	client, err := a.client()
	if err != nil {
		return kiln.LedgerReport{}, err
	}
	p := a.newProgress()
	report, err := client.VerifyLedger(ctx, request, p.show)
	p.close()
	if a.nobodyHere(err) {
		return offline[kiln.LedgerReport](ctx, a, "ledger", "verify", "--tip", request.Tip)
	}
	return report, err
}

func (a *app) ledgerAcceptCommand() *cobra.Command {
	var yes bool
	command := &cobra.Command{
		Use: "accept", Short: "Go on with a damaged ledger; needs no control plane",
		Long: `While the ledger is damaged, what runs goes on, and every change is refused.
Where there is no backup to restore, this goes on with what can be read: it
becomes a new file, damaged releases come from their copies, other damaged rows
are given up, and damaged events stay as they are, marked. The history tells
what was damaged and who went on. The damaged file is kept beside the new one.`,
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			ctx := command.Context()
			report, err := a.verifyLedger(ctx, server.VerifyRequest{})
			if err != nil {
				return err
			}
			for _, f := range report.Faults {
				a.say("%s", a.style(a.Err).safe(f.Record+": "+f.Problem))
			}
			if len(report.Faults) > 0 {
				if err := a.confirm(yes, fmt.Sprintf("Go on without %d damaged records?", len(report.Faults)+report.More)); err != nil {
					return err
				}
			}
			if report, err = a.acceptLedger(ctx, report.Damage); err != nil {
				return err
			}
			if a.json {
				return a.printJSON(report)
			}
			return a.print("the ledger goes on without %d damaged records; the damaged file is ledger/ledger.db.damaged in the data directory\n", len(report.Faults)+report.More)
		},
	}
	command.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return command
}

func (a *app) acceptLedger(ctx context.Context, damage kiln.Digest) (kiln.LedgerReport, error) {
	client, err := a.client()
	if err != nil {
		return kiln.LedgerReport{}, err
	}
	p := a.newProgress()
	report, err := client.AcceptLedger(ctx, server.AcceptRequest{Damage: damage}, p.show)
	p.close()
	if a.nobodyHere(err) {
		return offline[kiln.LedgerReport](ctx, a, "ledger", "accept", "--damage", string(damage))
	}
	return report, err
}

func (a *app) ledgerAdoptCommand() *cobra.Command {
	return &cobra.Command{
		Use: "adopt", Short: "Make a copied data directory this machine's own",
		Long: `A data directory that was copied from another machine is refused by kilnd: two
machines would serve the same. When Kiln has ended there for good, this makes
the directory this machine's. What ran there is started here by the next kilnd.`,
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			switch remote, err := a.remote(); {
			case err != nil:
				return err
			case remote:
				return kiln.Errorf(kiln.CodeInvalid, "run it there, as root", "kiln ledger adopt works on a data directory of this machine")
			}
			client, err := a.client()
			if err != nil {
				return err
			}
			if _, err := client.Version(command.Context()); !unavailable(err) {
				return kiln.Errorf(kiln.CodeConflict, "", "a control plane runs on %s: the directory is this machine's", a.data)
			}
			if _, err := offline[kiln.LedgerReport](command.Context(), a, "ledger", "adopt"); err != nil {
				return err
			}
			if a.json {
				return a.printJSON(struct{}{})
			}
			return a.print("the data directory is this machine's now\n")
		},
	}
}

// nobodyHere says that no control plane runs on the data directory, which is of
// this machine.
func (a *app) nobodyHere(err error) bool {
	remote, _ := a.remote()
	return unavailable(err) && !remote
}

// offline has kilnd work on a data directory on which no control plane runs,
// and reads what it prints. What it says on standard error is an error of ours.
func offline[T any](ctx context.Context, a *app, command string, args ...string) (T, error) {
	data, err := filepath.Abs(a.data)
	if err != nil {
		var none T
		return none, err
	}
	return ofDaemon[T](ctx, a, append([]string{command, "--data", data}, args...)...)
}

// ofDaemon runs a command of kilnd and reads what it prints.
func ofDaemon[T any](ctx context.Context, a *app, args ...string) (T, error) {
	var result T
	program, err := findDaemon()
	if err != nil {
		return result, err
	}
	var out bytes.Buffer
	daemon := exec.CommandContext(ctx, program, args...)
	daemon.Env, daemon.Stdin, daemon.Stdout, daemon.Stderr = a.Environ, a.In, &out, a.Err
	// It removes what is half made when it is told to end.
	daemon.Cancel, daemon.WaitDelay = func() error { return daemon.Process.Signal(syscall.SIGTERM) }, endTimeout
	var status *exec.ExitError
	switch err := daemon.Run(); {
	case errors.As(err, &status) && status.ExitCode() > 0:
		return result, exitStatus(status.ExitCode())
	case err != nil:
		return result, err
	}
	return result, json.Unmarshal(out.Bytes(), &result)
}

func (a *app) printReport(r kiln.LedgerReport) error {
	if a.json {
		return a.printJSON(r)
	}
	s := a.style(a.Out)
	for _, f := range r.Faults {
		if err := a.print("%s %s: %s\n", s.paint(red, "damaged:"), s.safe(f.Record), s.safe(f.Problem)); err != nil {
			return err
		}
	}
	if r.More > 0 {
		if err := a.print("%s %d more records\n", s.paint(red, "damaged:"), r.More); err != nil {
			return err
		}
	}
	for _, note := range r.Notes {
		if err := a.print("%s\n", s.safe(note)); err != nil {
			return err
		}
	}
	what := fmt.Sprintf("%d events and %d other records are what was written", r.Events, r.Rows)
	if n := len(r.Faults) + r.More; n > 0 {
		what = fmt.Sprintf("%d events and %d other records were checked, and %d are damaged", r.Events, r.Rows, n)
		a.say("%s restore a backup, or go on without them: kiln ledger accept", a.style(a.Err).paint(cyan+";"+bold, "hint:"))
	}
	return a.print("%s (%s)\ntip %s\n", what, took(r.Took), r.Tip)
}
