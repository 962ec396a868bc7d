package cli

import (
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kilnproject/kiln"
)

func (a *app) psCommand() *cobra.Command {
	var all bool
	command := &cobra.Command{
		Use: "ps [ENVIRONMENT]", Short: "List the instances", GroupID: groupLook,
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completeEnvironments,
		RunE: func(command *cobra.Command, args []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			list, err := client.Instances(command.Context(), environmentArg(args))
			if err != nil {
				return err
			}
			if !all {
				list = slices.DeleteFunc(list, func(i kiln.Instance) bool { return i.State == kiln.InstanceDead })
			}
			if a.json {
				return a.printJSON(list)
			}
			return a.printInstances(list)
		},
	}
	command.Flags().BoolVarP(&all, "all", "a", false, "also those that died of late")
	return command
}

func (a *app) printInstances(list []kiln.Instance) error {
	if len(list) == 0 {
		a.say("no instance runs")
		return nil
	}
	s := a.style(a.Out)
	environment := ""
	if several(list) {
		environment = "ENVIRONMENT"
	}
	t := newTable("INSTANCE", environment, "STATE", "AGE", "IMAGE", "ADDRESS", "PID", "WHY")
	for _, i := range list {
		address, pid, name := "", "", ""
		if i.Address.IsValid() {
			address = i.Address.String()
		}
		if i.PID > 0 {
			pid = strconv.Itoa(i.PID)
		}
		if environment != "" {
			name = i.Environment
		}
		t.row(plain(i.ID), plain(name), cell{string(i.State), stateColor(i.State)}, plain(age(a.now(), i.CreatedAt)), plain(i.Image.Short()),
			plain(address), plain(pid), plain(s.safe(why(i))))
	}
	return t.write(a.Out, s, "")
}

func several(list []kiln.Instance) bool {
	return slices.ContainsFunc(list, func(i kiln.Instance) bool { return i.Environment != list[0].Environment })
}

func stateColor(state kiln.InstanceState) string {
	switch state {
	case kiln.InstanceReady:
		return green
	case kiln.InstanceUnready, kiln.InstanceDead:
		return red
	case kiln.InstanceStarting, kiln.InstanceDraining, kiln.InstanceQuarantined:
		return yellow
	}
	return ""
}

// why says what is to be said of an instance: its death, its probe's last
// answer, or why it was started.
func why(i kiln.Instance) string {
	switch {
	case i.Cause != nil:
		return describeCause(*i.Cause)
	case i.Note != "" && i.State != kiln.InstanceReady:
		return i.Note
	default:
		return i.Reason
	}
}

// describeCause is one sentence: "exited with 7", "killed by SIGKILL".
func describeCause(c kiln.Cause) string {
	text := strings.ReplaceAll(string(c.Kind), "_", " ")
	switch c.Kind {
	case kiln.CauseExited:
		text = "exited with " + strconv.Itoa(c.ExitCode)
	case kiln.CauseSignalled:
		text = "killed by " + c.Signal
	case kiln.CauseOutOfMemory:
		text = "killed by its memory limit"
	case kiln.CauseNeverReady, kiln.CauseUnready, kiln.CauseStartFailed, kiln.CauseStopped, kiln.CauseBurned, kiln.CauseLost:
	}
	switch n := len(c.LastLog); {
	case c.Detail != "":
		text += ": " + c.Detail
	case n > 0 && c.Failure():
		text += ": " + strings.TrimSpace(c.LastLog[n-1])
	}
	return text
}
