package cli

import (
	"cmp"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/kilnproject/kiln/internal/control"
)

func (a *app) repaveCommand() *cobra.Command {
	var request control.RepaveRequest
	command := &cobra.Command{
		Use: "repave [ENVIRONMENT...]", Short: "Bake again from newer bases, and replace what that changes", GroupID: groupChange,
		Long: `Bakes what runs again from what its bases are now: references of registries and
Debian packages are resolved anew, and every service whose image changed is
rolled out, through its gate and checks like any other release. It goes by what
the live release was baked from; no folder is needed. Without names it is about
all environments.

Until the definition's kiln.lock is written anew, the new pins win over it: the
next kiln up writes them into the file. With --plan nothing is changed, and the
exit code is 2 when there is something to do.`,
		ValidArgsFunction: a.completeEnvironments,
		RunE: func(command *cobra.Command, args []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			request.Environments = args
			p := a.newProgress()
			result, err := client.Repave(command.Context(), request, p.show)
			p.close()
			if err != nil {
				return a.ended(err, p, "the rollout")
			}
			if err := a.printRepave(result); err != nil {
				return err
			}
			return repaveStatus(result)
		},
	}
	command.Flags().StringVar(&request.Finding, "finding", "", "only where an image that runs has this finding, and the new one has not")
	command.Flags().BoolVar(&request.Plan, "plan", false, "say what would be done, and change nothing")
	return command
}

// repaveStatus is the exit of a repave that was answered: the first failure, or
// that there is something to do.
func repaveStatus(r control.RepaveResult) error {
	planned := false
	for _, e := range r.Environments {
		if e.Error != nil {
			return e.Error
		}
		planned = planned || e.Outcome == control.RepavePlanned
	}
	if planned {
		return exitStatus(ExitChanges)
	}
	return nil
}

func (a *app) printRepave(r control.RepaveResult) error {
	if a.json {
		return a.printJSON(r)
	}
	for _, e := range r.Environments {
		if err := a.printRepaved(e); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) printRepaved(r control.Repaved) error {
	s := a.style(a.Out)
	if err := a.print("%s\n", s.paint(bold, s.safe(r.Environment+": "+repavedTitle(r)))); err != nil {
		return err
	}
	for _, line := range r.Pins {
		if err := a.print("  %s  %s\n", s.paint(green, "pin    "), s.safe(line)); err != nil {
			return err
		}
	}
	for _, b := range r.Bakes {
		if err := a.print("  %s  %s: %s\n", s.paint(green, "bake   "), s.safe(b.Image), s.safe(b.Reason)); err != nil {
			return err
		}
	}
	if err := a.printSteps(r.Steps); err != nil {
		return err
	}
	if r.Before != nil && r.After != nil {
		if err := a.print("  findings %s\n", repavedFindings(*r.Before, *r.After)); err != nil {
			return err
		}
	}
	if r.Outcome == control.RepaveKept {
		a.say("%s: %s", escape(r.Environment), escape(r.Reason))
	}
	return a.printURLs(r.URLs)
}

func repavedTitle(r control.Repaved) string {
	switch r.Outcome {
	case control.RepaveDone:
		return fmt.Sprintf("release %d is live, baked from newer bases than %d", r.Release, r.From)
	case control.RepavePlanned:
		return fmt.Sprintf("release %d is live; kiln repave would", r.From)
	case control.RepaveNothing:
		return fmt.Sprintf("nothing to repave; release %d is live: %s", r.From, r.Reason)
	case control.RepaveKept:
		return fmt.Sprintf("nothing was changed; release %d is live", r.From)
	case control.RepaveFailed:
		return cmp.Or(r.Error.Message, "it failed")
	}
	return string(r.Outcome)
}

// repavedFindings says how the findings changed, and when that did not help.
func repavedFindings(before, after control.FindingCount) string {
	text := fmt.Sprintf("%d, of which %d fail; before %d, of which %d", after.Open, after.Failing, before.Open, before.Failing)
	if after.Failing > before.Failing || after.Failing == before.Failing && after.Open >= before.Open {
		text += ": the newer bases have not fewer of them"
	}
	return text
}
