package cli

import (
	"github.com/spf13/cobra"
)

func (a *app) shutdownCommand() *cobra.Command {
	var yes bool
	command := &cobra.Command{
		Use: "shutdown", Short: "End every environment and Kiln's own processes", GroupID: groupMachine,
		Long: `Ends every environment, then the gateway, the keeper and the control plane of
the data directory. What was baked and the history stay. To restart only the
control plane, end kilnd: instances, gateway and keeper outlive it.`,
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			if _, err := client.Version(command.Context()); err != nil {
				return err
			}
			if err := a.confirm(yes, "End every environment, and Kiln itself?"); err != nil {
				return err
			}
			p := a.newProgress()
			err = client.Shutdown(command.Context(), p.show)
			p.close()
			if err != nil {
				return a.ended(err, p, "the shutdown")
			}
			if err := a.awaitGone(command.Context(), client); err != nil {
				return err
			}
			if a.json {
				return a.printJSON(struct{}{})
			}
			return a.print("everything has ended\n")
		},
	}
	command.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return command
}
