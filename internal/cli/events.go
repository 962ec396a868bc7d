package cli

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/control"
)

func (a *app) eventsCommand() *cobra.Command {
	var query control.EventQuery
	command := &cobra.Command{
		Use: "events [ENVIRONMENT]", Short: "Show what happened", GroupID: groupLook,
		Long: `Shows the history: releases, rollouts, deaths of instances with their causes,
blocked connections. With --json one object a line.`,
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completeEnvironments,
		RunE: func(command *cobra.Command, args []string) error {
			if query.Last < 0 || query.After < 0 {
				return kiln.Errorf(kiln.CodeInvalid, "", "--last and --after want 0 or more")
			}
			client, err := a.client()
			if err != nil {
				return err
			}
			query.Environment = environmentArg(args)
			return followed(client.Events(command.Context(), query, a.printEvent))
		},
	}
	flags := command.Flags()
	flags.BoolVarP(&query.Follow, "follow", "f", false, "go on with what happens next")
	flags.IntVar(&query.Last, "last", 100, "the newest so many; 0 for all")
	flags.Int64Var(&query.After, "after", 0, "only those after this sequence number")
	return command
}

func (a *app) printEvent(e kiln.Event) error {
	if a.json {
		return json.NewEncoder(a.Out).Encode(e)
	}
	s := a.style(a.Out)
	at := e.At.Local().Format("2006-01-02 15:04:05")
	by := ""
	if e.Actor != "" {
		by = " (by " + s.safe(e.Actor) + ")"
	}
	message := s.safe(e.Message)
	if !strings.Contains(e.Message, e.Subject) {
		message = s.safe(e.Subject) + ": " + message
	}
	if err := a.print("%s  %-10s  %-18s  %s%s\n", s.paint(dim, at), s.safe(e.Environment), s.safe(e.Kind), message, by); err != nil {
		return err
	}
	for _, more := range explanation(e) {
		if err := a.print("%s%s\n", strings.Repeat(" ", len(at)+2), s.paint(dim, s.safe(more))); err != nil {
			return err
		}
	}
	return nil
}

// explanation is what an event's data adds for a reader: why a release failed,
// and the last line of an instance that died, unless the message has it.
func explanation(e kiln.Event) []string {
	var out []string
	if cause := e.Data["cause"]; cause != "" && strings.Contains(cause, " ") {
		out = append(out, cause)
	}
	if names := slices.Sorted(maps.Keys(e.Data)); e.Kind == "instance.died" {
		for _, name := range slices.Backward(names) {
			if line := strings.TrimSpace(e.Data[name]); strings.HasPrefix(name, "log_") && line != "" {
				if !strings.Contains(e.Message, line) {
					out = append(out, "| "+line)
				}
				break
			}
		}
	}
	return out
}
