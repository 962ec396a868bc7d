package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/server"
)

func (a *app) notifyCommand() *cobra.Command {
	command := &cobra.Command{
		Use: "notify", Short: "Test whom the control plane notifies", GroupID: groupMachine, RunE: needsCommand,
		Long: `The control plane tells others about events by webhooks, as the notify blocks of
kilnd.hcl say.`,
	}
	command.AddCommand(a.notifyTestCommand())
	return command
}

func (a *app) notifyTestCommand() *cobra.Command {
	return &cobra.Command{
		Use: "test [NAME]", Short: "Send a test event to a receiver, or to all", Args: cobra.MaximumNArgs(1),
		Long: `Sends an event of kind notify.test, which is not in the history, to one
receiver, or to all. It is sent once, and signed as all are.`,
		RunE: func(command *cobra.Command, args []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			results, err := client.NotifyTest(command.Context(), environmentArg(args))
			if err != nil {
				return err
			}
			if a.json {
				err = a.printJSON(results)
			} else {
				err = a.printNotified(results)
			}
			if err != nil {
				return err
			}
			return notTaken(results)
		},
	}
}

func (a *app) printNotified(results server.NotifyResults) error {
	if len(results.Results) == 0 {
		return kiln.Errorf(kiln.CodeNotFound, "docs/reference/config.md has the block notify", "the configuration notifies nobody")
	}
	for _, r := range results.Results {
		how := fmt.Sprintf("answered %d", r.Status)
		if r.Error != "" {
			how = r.Error
		}
		if err := a.print("%s  %s: %s, in %s\n", escape(r.Name), escape(r.URL), escape(how), r.Took.Round(time.Millisecond)); err != nil {
			return err
		}
	}
	return nil
}

// notTaken is the error when a receiver did not take the test.
func notTaken(results server.NotifyResults) error {
	failed := 0
	for _, r := range results.Results {
		if r.Error != "" {
			failed++
		}
	}
	if failed == 0 {
		return nil
	}
	return kiln.Errorf(kiln.CodeFailed, "look at the receiver, and at the block notify in kilnd.hcl", "%d of %d did not take the test", failed, len(results.Results))
}
