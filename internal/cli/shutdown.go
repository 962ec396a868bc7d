package cli

import (
	"context"

	"github.com/spf13/cobra"
)

func (a *app) shutdownCommand() *cobra.Command {
	var yes, leftovers bool
	command := &cobra.Command{
		Use: "shutdown", Short: "End every environment and Kiln's own processes", GroupID: groupMachine,
		Long: `Ends every environment, then the gateway, the keeper and the control plane of
the data directory. What was baked and the history stay. To restart only the
control plane, end kilnd: instances, gateway and keeper outlive it.`,
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			ctx := command.Context()
			if leftovers && !a.left(ctx, a.data) {
				return a.print("nothing is left to end\n")
			}
			if err := a.answers(ctx); err != nil && !leftovers {
				return err
			}
			if err := a.confirm(yes, "End every environment, and Kiln itself?"); err != nil {
				return err
			}
			if err := a.shutdown(ctx); err != nil {
				return err
			}
			if a.json {
				return a.printJSON(struct{}{})
			}
			return a.print("everything has ended\n")
		},
	}
	flags := command.Flags()
	flags.BoolVar(&leftovers, "leftovers", false, "where only the control plane is missing, start it for this; nothing left is no error")
	flags.BoolVarP(&yes, "yes", "y", false, "do not ask")
	return command
}

// answers is nil when a control plane does.
func (a *app) answers(ctx context.Context) error {
	client, err := a.client()
	if err == nil {
		_, err = client.Version(ctx)
	}
	return err
}
