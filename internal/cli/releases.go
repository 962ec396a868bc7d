package cli

import (
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/kilnproject/kiln"
)

func (a *app) releasesCommand() *cobra.Command {
	return &cobra.Command{
		Use: "releases [ENVIRONMENT]", Short: "List the releases, newest first", GroupID: groupLook,
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completeEnvironments,
		RunE: func(command *cobra.Command, args []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			list, err := client.Releases(command.Context(), environmentArg(args))
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(list)
			}
			return a.printReleases(list)
		},
	}
}

func (a *app) printReleases(list []kiln.Release) error {
	if len(list) == 0 {
		a.say("there is no release yet; kiln up makes one")
		return nil
	}
	t := newTable("ENVIRONMENT", "RELEASE", "STATE", "SOURCE", "BUNDLE", "AGE", "BY")
	slices.SortStableFunc(list, func(x, y kiln.Release) int {
		if x.Environment != y.Environment {
			return 0 // they come by environment
		}
		return y.Number - x.Number
	})
	for _, r := range list {
		t.row(plain(r.Environment), plain(fmt.Sprint(r.Number)), cell{string(r.State), releaseColor(r.State)}, plain(origin(r.Source)),
			plain(r.Bundle.Short()), plain(age(a.now(), r.CreatedAt)), plain(escape(r.Actor)))
	}
	return t.write(a.Out, a.style(a.Out), "")
}

func releaseColor(state kiln.ReleaseState) string {
	switch state {
	case kiln.ReleaseLive:
		return green
	case kiln.ReleaseParked, kiln.ReleasePending:
		return yellow
	case kiln.ReleaseCondemned, kiln.ReleaseFailed:
		return red
	case kiln.ReleaseRetired:
		return dim
	}
	return ""
}
