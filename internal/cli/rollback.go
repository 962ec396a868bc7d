package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/kilnproject/kiln/internal/control"
	"github.com/kilnproject/kiln/internal/server"
)

func (a *app) rollbackCommand() *cobra.Command {
	var request control.RollbackRequest
	command := &cobra.Command{
		Use: "rollback [ENVIRONMENT]", Short: "Go back to an earlier release", GroupID: groupChange,
		Long: `Goes back to the parked release by one swap of the traffic, or to an older one
by starting it first; it never bakes. The release that is left is condemned:
kiln up refuses it until --again.`,
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completeEnvironments,
		RunE: func(command *cobra.Command, args []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			if request.Environment, err = chooseEnvironment(command.Context(), client, environmentArg(args)); err != nil {
				return err
			}
			if request.From, err = standsNow(command.Context(), client, request.Environment); err != nil {
				return err
			}
			p := a.newProgress()
			result, err := client.Rollback(command.Context(), request, p.show)
			p.close()
			if err != nil {
				return a.ended(err, p, "the rollback")
			}
			if a.json {
				return a.printJSON(result)
			}
			return a.printRollback(request.Environment, result)
		},
	}
	command.Flags().IntVar(&request.Release, "to", 0, "number of the release; the one before when not said")
	return command
}

// standsNow is the release that a rollback leaves: the one that is being rolled
// out, else the live one; 0 for none. With it a request that arrives twice goes
// back once.
func standsNow(ctx context.Context, client *server.Client, environment string) (int, error) {
	status, err := client.Status(ctx)
	if err != nil {
		return 0, err
	}
	for _, e := range status.Environments {
		switch {
		case e.Name != environment:
		case e.Rollout != nil:
			return e.Rollout.To, nil
		case e.Live != nil:
			return e.Live.Number, nil
		}
	}
	return 0, nil
}

func (a *app) printRollback(environment string, r control.RollbackResult) error {
	if r.CalledOff {
		return a.printCalledOff(environment, r)
	}
	how := "started again"
	if r.Parked {
		how = "it was parked: one swap"
	}
	s := a.style(a.Out)
	text := fmt.Sprintf("%s: back to release %d from %d in %s (%s)", environment, r.To, r.From, took(r.Took), how)
	if err := a.print("%s\nrelease %d is condemned; kiln up --again would apply it\n", s.paint(bold, text), r.From); err != nil {
		return err
	}
	return a.printURLs(r.URLs)
}

// printCalledOff tells of a rollback that ended a rollout before it was live.
func (a *app) printCalledOff(environment string, r control.RollbackResult) error {
	left := "nothing is live"
	if r.To > 0 {
		left = fmt.Sprintf("release %d serves as before", r.To)
	}
	text := fmt.Sprintf("%s: the rollout of release %d was called off in %s; %s", environment, r.From, took(r.Took), left)
	if err := a.print("%s\n", a.style(a.Out).paint(bold, text)); err != nil {
		return err
	}
	return a.printURLs(r.URLs)
}
