package cli

import (
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/control"
)

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status [ENVIRONMENT]", Short: "Show what is live, what is parked and what is wrong", GroupID: groupLook,
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completeEnvironments,
		RunE: func(command *cobra.Command, args []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			status, err := client.Status(command.Context())
			if err != nil {
				return err
			}
			if name := environmentArg(args); name != "" {
				status.Environments = slices.DeleteFunc(status.Environments, func(e control.EnvironmentStatus) bool { return e.Name != name })
				if len(status.Environments) == 0 {
					return kiln.Errorf(kiln.CodeNotFound, "kiln status", "there is no environment %q", name)
				}
			}
			if a.json {
				return a.printJSON(status)
			}
			return a.printStatus(status)
		},
	}
}

func (a *app) printStatus(status control.Status) error {
	if len(status.Environments)+len(status.Problems) == 0 {
		a.say("there is no environment yet; kiln up makes one")
	}
	for _, p := range status.Problems {
		if err := a.print("%s %s\n", a.style(a.Out).paint(red, "problem:"), a.style(a.Out).safe(p)); err != nil {
			return err
		}
	}
	for i, e := range status.Environments {
		if i > 0 {
			if err := a.print("\n"); err != nil {
				return err
			}
		}
		if err := a.printEnvironment(e); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) printEnvironment(e control.EnvironmentStatus) error {
	s := a.style(a.Out)
	live := "nothing is live"
	if e.Live != nil {
		live = a.describeRelease(*e.Live)
	}
	if err := a.print("%s  %s\n", s.paint(bold, e.Name), live); err != nil {
		return err
	}
	if e.Parked != nil {
		until := ""
		if !e.ParkedUntil.IsZero() {
			until = fmt.Sprintf(", for %s more", span(e.ParkedUntil.Sub(a.now())))
		}
		if err := a.print("  parked: %s%s\n", a.describeRelease(*e.Parked), until); err != nil {
			return err
		}
	}
	if r := e.Rollout; r != nil {
		from := ""
		if r.From != 0 {
			from = fmt.Sprintf("%d -> ", r.From)
		}
		if err := a.print("  %s release %s%d: %s, for %s\n", s.paint(yellow, "rollout:"), from, r.To, r.Step, age(a.now(), r.StartedAt)); err != nil {
			return err
		}
	}
	if err := a.printServices(e.Services); err != nil {
		return err
	}
	for _, u := range e.URLs {
		if err := a.print("  %s\n", s.safe(u)); err != nil {
			return err
		}
	}
	for _, p := range e.Problems {
		if err := a.print("  %s %s\n", s.paint(red, "problem:"), s.safe(p)); err != nil {
			return err
		}
	}
	return nil
}

// describeRelease is "release 4, main 3fa92c01bd77 dirty, 3m ago by root (0)".
func (a *app) describeRelease(r kiln.Release) string {
	from := ""
	if o := origin(r.Source); o != "" {
		from = ", " + o
	}
	return fmt.Sprintf("release %d%s, %s ago by %s", r.Number, from, age(a.now(), r.CreatedAt), escape(r.Actor))
}

func (a *app) printServices(services []control.ServiceStatus) error {
	if len(services) == 0 {
		return nil
	}
	t := newTable("SERVICE", "READY", "IMAGE", "DEATHS")
	for _, one := range services {
		ready := cell{fmt.Sprintf("%d/%d", one.Ready, one.Desired), green}
		if one.Ready < one.Desired {
			ready.sgr = red
		}
		deaths := cell{}
		if one.Deaths > 0 {
			deaths = cell{fmt.Sprint(one.Deaths), yellow}
		}
		t.row(plain(one.Name), ready, plain(one.Image.Short()), deaths)
	}
	return t.write(a.Out, a.style(a.Out), "  ")
}
