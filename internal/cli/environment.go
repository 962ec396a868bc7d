package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/server"
)

// environmentArg is for commands that take the name of an environment or none.
func environmentArg(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

// chooseEnvironment is the one that was named, or the only one there is.
func chooseEnvironment(ctx context.Context, client *server.Client, named string) (string, error) {
	if named != "" {
		return named, nil
	}
	names, err := environments(ctx, client)
	switch {
	case err != nil:
		return "", err
	case len(names) == 1:
		return names[0], nil
	case len(names) == 0:
		return "", kiln.Errorf(kiln.CodeNotFound, "kiln up makes one", "there is no environment")
	default:
		return "", kiln.Errorf(kiln.CodeInvalid, "name one of: "+strings.Join(names, ", "), "there are %d environments", len(names))
	}
}

func environments(ctx context.Context, client *server.Client) ([]string, error) {
	status, err := client.Status(ctx)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range status.Environments {
		names = append(names, e.Name)
	}
	return names, nil
}

// completeEnvironments is for the shell's completion.
func (a *app) completeEnvironments(command *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	client, err := a.client()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names, _ := environments(command.Context(), client)
	return names, cobra.ShellCompDirectiveNoFileComp
}
