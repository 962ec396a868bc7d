package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/kilnproject/kiln/internal/server"
)

func (a *app) keyCommand() *cobra.Command {
	command := &cobra.Command{
		Use: "key", Short: "Show, rotate and distrust the keys that sign images", GroupID: groupMachine, RunE: needsCommand,
	}
	command.AddCommand(a.keyShowCommand(), a.keyRotateCommand(), a.keyDistrustCommand())
	return command
}

func (a *app) keyShowCommand() *cobra.Command {
	var pem bool
	command := &cobra.Command{
		Use: "show", Short: "List the keys whose signatures of images count", Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			keys, err := client.Keys(command.Context())
			if err != nil {
				return err
			}
			if pem && len(keys.Keys) > 0 {
				return a.print("%s", keys.Keys[0].Public)
			}
			return a.printKeys(keys)
		},
	}
	command.Flags().BoolVar(&pem, "pem", false, "print the public key that signs now, in PEM, for cosign verify --key")
	return command
}

func (a *app) keyRotateCommand() *cobra.Command {
	var yes bool
	command := &cobra.Command{
		Use: "rotate", Short: "Sign by a new key from now on", Args: cobra.NoArgs,
		Long: `Makes a new key and removes the private half of the one before. What that one
signed stays valid. A key of yours, named in kilnd.hcl, is yours to change.`,
		RunE: func(command *cobra.Command, _ []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			if err := a.confirm(yes, "Make a new key, and remove the private half of the one that signs?"); err != nil {
				return err
			}
			keys, err := client.RotateKey(command.Context())
			if err != nil {
				return err
			}
			return a.printKeys(keys)
		},
	}
	command.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return command
}

func (a *app) keyDistrustCommand() *cobra.Command {
	var yes bool
	command := &cobra.Command{
		Use: "distrust ID", Short: "Let a key's signatures count no more, whenever they were made", Args: cobra.ExactArgs(1),
		Long: `For a private key that somebody may have read. Rotate first, then distrust the
old key, then make releases anew of what it alone signed: kiln up signs by the
key of now what is baked already. What runs goes on, and no new instance of it
starts until then.`,
		RunE: func(command *cobra.Command, args []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			if err := a.confirm(yes, "Let the signatures of this key count no more?"); err != nil {
				return err
			}
			keys, err := client.DistrustKey(command.Context(), args[0])
			if err != nil {
				return err
			}
			return a.printKeys(keys)
		},
	}
	command.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return command
}

func (a *app) printKeys(keys server.Keys) error {
	if a.json {
		return a.printJSON(keys)
	}
	t := newTable("ID", "ORIGIN", "SINCE", "STATE")
	for i, k := range keys.Keys {
		state := cell{"trusted for what it signed", ""}
		switch {
		case !k.Distrusted.IsZero():
			state = cell{"distrusted since " + k.Distrusted.UTC().Format("2006-01-02"), red}
		case i == 0:
			state = cell{"signs", green}
		}
		t.row(plain(escape(k.ID)), plain(escape(k.Origin)), plain(fmt.Sprint(k.Since.UTC().Format("2006-01-02"))), state)
	}
	return t.write(a.Out, a.style(a.Out), "")
}
