package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/control"
)

func (a *app) planCommand() *cobra.Command {
	var d definitionFlags
	command := &cobra.Command{
		Use: "plan [ENVIRONMENT]", Short: "Show what kiln up would do, and exit 2 when it would do something", GroupID: groupLook,
		Long: `Shows what kiln up would create, replace and destroy, with the reason for each,
and which images it would bake, and a rule by which it would be refused. It
changes nothing. The exit code is 0 when there is nothing to do and 2 when there
is something, a refusal too.`,
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completeEnvironments,
		RunE: func(command *cobra.Command, args []string) error {
			p := a.newProgress()
			result, err := a.plan(command, d, environmentArg(args), p)
			p.close()
			if err != nil {
				return err
			}
			if err := a.printPlan(result); err != nil {
				return err
			}
			if nothing(result) {
				return nil
			}
			return exitStatus(ExitChanges)
		},
	}
	d.register(command)
	return command
}

func (a *app) plan(command *cobra.Command, d definitionFlags, environment string, p *progress) (control.PlanResult, error) {
	client, err := a.client()
	if err != nil {
		return control.PlanResult{}, err
	}
	if _, err := client.Version(command.Context()); err != nil {
		return control.PlanResult{}, err
	}
	request, client, err := a.prepare(command.Context(), d, environment, p)
	if err != nil {
		return control.PlanResult{}, err
	}
	return client.Plan(command.Context(), request.UpRequest)
}

// planLines bounds what a plan says of an image's packages, and of its findings.
const planLines = 5

func nothing(r control.PlanResult) bool {
	return len(r.Steps)+len(r.Bakes)+len(r.Routes) == 0 && r.Release == "" && r.Refused == nil
}

func (a *app) printPlan(r control.PlanResult) error {
	if a.json {
		return a.printJSON(r)
	}
	s := a.style(a.Out)
	against := "nothing is live"
	if r.Live > 0 {
		against = fmt.Sprintf("release %d is live", r.Live)
	}
	for _, line := range r.Overlay {
		a.say("%s", s.safe(line))
	}
	if nothing(r) {
		return a.print("%s\n", s.paint(bold, fmt.Sprintf("%s: nothing to replace; %s", r.Environment, against)))
	}
	if err := a.print("%s\n", s.paint(bold, fmt.Sprintf("%s: %s; kiln up would", r.Environment, against))); err != nil {
		return err
	}
	for _, b := range r.Bakes {
		if err := a.print("  %s  %s: %s\n", s.paint(green, "bake   "), b.Image, s.safe(b.Reason)); err != nil {
			return err
		}
	}
	if err := a.printSteps(r.Steps); err != nil {
		return err
	}
	for _, route := range r.Routes {
		if err := a.print("  %s  %s\n", s.paint(yellow, "route  "), s.safe(route)); err != nil {
			return err
		}
	}
	if r.Release != "" {
		if err := a.print("  %s  %s\n", s.paint(green, "release"), s.safe(r.Release)); err != nil {
			return err
		}
	}
	for _, image := range r.Images {
		if err := a.printImageChange(image, planLines); err != nil {
			return err
		}
	}
	if err := a.printVerdicts(r.Verdicts); err != nil {
		return err
	}
	return a.printRefusal(r.Refused)
}

// printRefusal shows the rule by which up would be refused; nil is none.
func (a *app) printRefusal(e *kiln.Error) error {
	s := a.style(a.Out)
	if e == nil {
		return nil
	}
	if err := a.print("  %s  %s\n", s.paint(red, "refuse "), s.safe(e.Message)); err != nil {
		return err
	}
	if e.Hint == "" {
		return nil
	}
	return a.print("           %s\n", s.paint(dim, s.safe(e.Hint)))
}
