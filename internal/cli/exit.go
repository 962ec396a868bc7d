package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kilnproject/kiln"
)

// The exit codes. exitTable documents them; they never change their meaning.
const (
	ExitOK          = 0
	ExitFailed      = 1
	ExitChanges     = 2
	ExitInvalid     = 3
	ExitNotFound    = 4
	ExitConflict    = 5
	ExitRefused     = 6
	ExitUnavailable = 7
	ExitNoRoom      = 8
	ExitInternal    = 70
	ExitInterrupted = 130
)

// exitRow is one line of the documented table.
type exitRow struct {
	Exit    int
	Code    kiln.Code // of the errors that lead to it; empty for none
	Meaning string
}

// exitTable is the one table of exit codes: the help, the reference and the
// program's end all come from it.
func exitTable() []exitRow {
	return []exitRow{
		{ExitOK, "", "it was done, or there was nothing to do"},
		{ExitFailed, kiln.CodeFailed, "it was tried and did not work; for doctor: something is in the way; for ledger verify: a record is damaged; for verify: something that was signed does not hold; for fmt --check: a file is not in canonical format; for scan: an image does not pass its gate"},
		{ExitChanges, "", "plan: there is something to do; for repave --plan, too; scan: it cannot be told whether an image passes, and none fails"},
		{ExitInvalid, kiln.CodeInvalid, "the definition, a flag or an argument is wrong"},
		{ExitNotFound, kiln.CodeNotFound, "it names what is not there"},
		{ExitConflict, kiln.CodeConflict, "it cannot be done in the present state"},
		{ExitRefused, kiln.CodeRefused, "it could be done, and a rule says no"},
		{ExitUnavailable, kiln.CodeUnavailable, "a needed process or machine is out of reach"},
		{ExitNoRoom, kiln.CodeNoRoom, "disk, memory or addresses do not suffice"},
		{ExitInternal, kiln.CodeInternal, "a defect of Kiln"},
		{ExitInterrupted, "", "interrupted (Ctrl-C)"},
	}
}

// exitCode maps an error to the process's exit code.
func exitCode(err error) int {
	var shown *kiln.Error
	switch {
	case err == nil:
		return ExitOK
	case errors.As(err, &shown):
		for _, row := range exitTable() {
			if row.Code == shown.Code {
				return row.Exit
			}
		}
		return ExitInternal
	case errors.Is(err, context.Canceled):
		return ExitInterrupted
	default:
		return ExitFailed
	}
}

// exitStatus ends the command with a code and without a word.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit %d", int(e)) }

// followed ends a command that shows news until it is interrupted: there is
// nothing to say about that.
func followed(err error) error {
	if errors.Is(err, context.Canceled) {
		return exitStatus(ExitInterrupted)
	}
	return err
}

func exitCodesText() string {
	var b strings.Builder
	b.WriteString("The exit codes of every command:\n\n")
	for _, row := range exitTable() {
		fmt.Fprintf(&b, "  %3d  %s\n", row.Exit, row.Meaning)
	}
	return b.String()
}

// exitCodesTopic is "kiln help exit-codes".
func exitCodesTopic() *cobra.Command {
	return &cobra.Command{Use: "exit-codes", Short: "The exit codes of every command", Long: exitCodesText()}
}

// refusedCommand is a command that does not exist, with what to use instead.
func refusedCommand(name string) *cobra.Command {
	return &cobra.Command{
		Use: name, Hidden: true, DisableFlagParsing: true, Short: "Does not exist, on purpose",
		RunE: func(*cobra.Command, []string) error {
			return kiln.Errorf(kiln.CodeRefused,
				"to look: kiln logs, kiln events, kiln ps; to change something: change the definition and run kiln up, which replaces what runs",
				"there is no kiln %s, on purpose: what runs is what was baked, and nobody enters it", name)
		},
	}
}
