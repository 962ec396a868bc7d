package cli

import (
	"github.com/spf13/cobra"

	"github.com/kilnproject/kiln/internal/server"
)

func (a *app) pushCommand() *cobra.Command {
	return &cobra.Command{
		Use: "push IMAGE DESTINATION", Short: "Send an image to another registry", GroupID: groupChange,
		Long: `Sends an image that was baked or pushed to the control plane, and all that
refers to it (signatures, inventories), to another registry. IMAGE is its name,
such as web or team/web:v1, or the digest of its manifest. DESTINATION is
HOST/NAME:TAG. The control plane's machine sends it, with the credentials that
docker login or podman login left there for the user that kilnd runs as.`,
		Args: cobra.ExactArgs(2),
		RunE: func(command *cobra.Command, args []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			p := a.newProgress()
			result, err := client.Push(command.Context(), server.PushRequest{Image: args[0], Destination: args[1]}, p.show)
			p.close()
			if err != nil {
				return a.ended(err, p, "the push")
			}
			if a.json {
				return a.printJSON(result)
			}
			return a.print("%s\n", escape(result.Destination))
		},
	}
}
