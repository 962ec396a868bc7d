package cli

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/kilnproject/kiln"
)

func (a *app) logsCommand() *cobra.Command {
	var query kiln.LogQuery
	var since string
	command := &cobra.Command{
		Use: "logs [SERVICE|INSTANCE]", Short: "Show what the instances wrote", GroupID: groupLook,
		Long: `Shows the kept lines of all instances, of one service's or of one instance, in
the order of time. With --json one object a line.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(command *cobra.Command, args []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			if query.Since, err = a.parseSince(since); err != nil {
				return err
			}
			if query.Environment, err = chooseEnvironment(command.Context(), client, query.Environment); err != nil {
				return err
			}
			if len(args) == 1 {
				query.Service = args[0]
				if instance, err := a.isInstance(command, query.Environment, args[0]); err != nil {
					return err
				} else if instance {
					query.Service, query.Instance = "", args[0]
				}
			}
			return followed(client.Logs(command.Context(), query, a.printLogLine))
		},
	}
	flags := command.Flags()
	flags.StringVarP(&query.Environment, "environment", "e", "", "environment; may be left out when there is one")
	flags.BoolVarP(&query.Follow, "follow", "f", false, "go on with what is written next")
	flags.IntVar(&query.Tail, "tail", 200, "the last so many lines of each instance; 0 for all that is kept")
	flags.StringVar(&since, "since", "", "only later lines: a duration (10m) or a time (2026-01-31T12:00:00Z)")
	return command
}

// isInstance says whether name is an instance, and not a service, of an
// environment. One that neither knows is left to the engine, which keeps the
// logs of the dead.
func (a *app) isInstance(command *cobra.Command, environment, name string) (bool, error) {
	client, err := a.client()
	if err != nil {
		return false, err
	}
	status, err := client.Status(command.Context())
	if err != nil {
		return false, err
	}
	for _, e := range status.Environments {
		if e.Name != environment {
			continue
		}
		for _, s := range e.Services {
			if s.Name == name {
				return false, nil
			}
		}
	}
	list, err := client.Instances(command.Context(), environment)
	if err != nil {
		return false, err
	}
	for _, i := range list {
		if i.Service == name {
			return false, nil
		}
	}
	return true, nil
}

func (a *app) parseSince(text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(text); err == nil {
		return a.now().Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return time.Time{}, kiln.Errorf(kiln.CodeInvalid, "write a duration such as 10m, or a time such as 2026-01-31T12:00:00Z", "--since %q is neither", text)
	}
	return t, nil
}

func (a *app) printLogLine(l kiln.LogLine) error {
	if a.json {
		return json.NewEncoder(a.Out).Encode(l)
	}
	s := a.style(a.Out)
	_, err := fmt.Fprintf(a.Out, "%s %s\n", s.name(l.Instance+" |"), s.safe(l.Text))
	return err
}
