package cli

import (
	"github.com/spf13/cobra"

	"github.com/kilnproject/kiln/internal/control"
)

func (a *app) bakeCommand() *cobra.Command {
	var d definitionFlags
	command := &cobra.Command{
		Use: "bake [ENVIRONMENT]", Short: "Bake the images and the bundle, and release nothing", GroupID: groupChange,
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completeEnvironments,
		RunE: func(command *cobra.Command, args []string) error {
			p := a.newProgress()
			result, err := a.bake(command, d, environmentArg(args), p)
			p.close()
			if err != nil {
				return a.ended(err, p, "the bake")
			}
			if a.json {
				return a.printJSON(result)
			}
			if err := a.print("%s\n", a.style(a.Out).paint(bold, "bundle "+string(result.Bundle))); err != nil {
				return err
			}
			if err := a.printBaked(result.Images); err != nil {
				return err
			}
			return a.printVerdicts(result.Verdicts)
		},
	}
	d.register(command)
	return command
}

func (a *app) bake(command *cobra.Command, d definitionFlags, environment string, p *progress) (control.BakeResult, error) {
	request, client, err := a.prepare(command.Context(), d, environment, p)
	if err != nil {
		return control.BakeResult{}, err
	}
	result, err := client.Bake(command.Context(), request.UpRequest, p.show)
	if err != nil {
		return result, err
	}
	return result, a.writeLock(request.lock, result.Lock, result.Overlay)
}
