package cli

import (
	"cmp"
	"encoding/json"
	"fmt"
	"regexp"
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
			lines := 0
			err = followed(client.Logs(command.Context(), query, func(l kiln.LogLine) error {
				lines++
				return a.printLogLine(l)
			}))
			if err == nil && lines == 0 {
				a.say("no lines of %s are kept in environment %s", cmp.Or(query.Instance, query.Service, "any instance"), query.Environment)
			}
			return err
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
// environment. What is not live is told by its form: the logs of the dead are
// kept, and those of services whose release failed.
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
		if i.Service == name || i.ID == name {
			return i.ID == name, nil
		}
	}
	return instanceForm().MatchString(name), nil
}

// instanceForm is a service's name, a dash, ten digits of time and four of
// chance in base 32.
func instanceForm() *regexp.Regexp { return regexp.MustCompile(`.-[0-9a-v]{14}$`) }

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
