package cli

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kilnproject/kiln"
)

func (a *app) downCommand() *cobra.Command {
	var yes bool
	command := &cobra.Command{
		Use: "down [ENVIRONMENT]", Short: "End an environment", GroupID: groupChange,
		Long: `Ends every instance of an environment and takes its routes away. Its releases
and what was baked are kept: kiln up brings it back.`,
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completeEnvironments,
		RunE: func(command *cobra.Command, args []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			name, err := chooseEnvironment(command.Context(), client, environmentArg(args))
			if err != nil {
				return err
			}
			if err := a.confirm(yes, fmt.Sprintf("End every instance of %s?", name)); err != nil {
				return err
			}
			p := a.newProgress()
			err = client.Down(command.Context(), name, p.show)
			p.close()
			if err != nil {
				return a.ended(err, p, "the end of "+name)
			}
			if a.json {
				return a.printJSON(map[string]string{"environment": name})
			}
			return a.print("%s is down\n", name)
		},
	}
	command.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return command
}

// confirm asks on a terminal. Without one it refuses unless --yes was given:
// a script says what it means.
func (a *app) confirm(yes bool, question string) error {
	if yes {
		return nil
	}
	tty, err := screen()
	if err != nil || !a.interactive() {
		return kiln.Errorf(kiln.CodeRefused, "add --yes", "this asks for a confirmation, and there is no terminal to ask on")
	}
	defer func() { _ = tty.Close() }()
	_, _ = fmt.Fprintf(tty, "%s [y/N] ", question)
	answer, err := bufio.NewReader(a.In).ReadString('\n')
	if err != nil && answer == "" {
		return kiln.Errorf(kiln.CodeRefused, "add --yes", "no answer: %w", err)
	}
	if a := strings.ToLower(strings.TrimSpace(answer)); a != "y" && a != "yes" {
		return kiln.Errorf(kiln.CodeRefused, "", "nothing was done")
	}
	return nil
}

// screen is the terminal of this process, wherever its streams go.
func screen() (io.WriteCloser, error) { return os.OpenFile("/dev/tty", os.O_WRONLY, 0) }
