package cli

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/config"
	"github.com/kilnproject/kiln/internal/server"
)

func (a *app) configCommand() *cobra.Command {
	command := &cobra.Command{
		Use: "config", Short: "Check and show the configuration of the control plane", GroupID: groupMachine, RunE: needsCommand,
		Long: `The configuration is kilnd.hcl: where the control plane listens, who may use its
API from other machines, how much it keeps.`,
	}
	command.AddCommand(a.configCheckCommand(), a.configShowCommand())
	return command
}

// needsCommand is for a command that has others and does nothing itself.
func needsCommand(command *cobra.Command, args []string) error {
	if len(args) == 0 {
		return command.Help()
	}
	return kiln.Errorf(kiln.CodeInvalid, command.CommandPath()+" --help", "unknown command %q for %q", args[0], command.CommandPath())
}

func (a *app) configCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use: "check [FILE]", Short: "Check a configuration; needs no control plane",
		Long: `Checks a file as kilnd does before it takes it, with the files that it names.
Without a name it is the one that kilnd would read: kilnd.hcl in the data
directory, or /etc/kiln/kilnd.hcl.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			path, err := a.configFile(args)
			if err != nil {
				return err
			}
			c, warnings, err := config.Load(path, config.Options{Now: a.now()})
			if shown := asShown(err); shown != nil && shown.Code == kiln.CodeInvalid {
				shown.Hint = "" // it says to run this command
			}
			if err != nil {
				return err
			}
			a.printDiagnostics(warnings)
			if a.json {
				return a.printJSON(struct {
					Path     string            `json:"path"`
					Digest   kiln.Digest       `json:"digest"`
					Warnings []kiln.Diagnostic `json:"warnings"`
				}{c.Path, c.Digest, append([]kiln.Diagnostic{}, warnings...)})
			}
			return a.print("%s is valid\n", c.Path)
		},
	}
}

// configFile is the file that was named, or the one that kilnd would read.
func (a *app) configFile(args []string) (string, error) {
	if len(args) > 0 {
		return args[0], nil
	}
	data, err := filepath.Abs(a.data)
	if err != nil {
		return "", err
	}
	path, err := config.Find(data)
	if err == nil && path == "" {
		err = kiln.Errorf(kiln.CodeNotFound, "name a file, or write one: docs/reference/config.md has all of it",
			"there is neither %s nor %s", filepath.Join(data, config.FileName), config.SystemFile)
	}
	return path, err
}

func (a *app) configShowCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show", Short: "Show the configuration in effect, and the fingerprint that clients pin", Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			s, err := client.Settings(command.Context())
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(s)
			}
			return a.printSettings(s)
		},
	}
}

func (a *app) printSettings(s server.Settings) error {
	or := func(text, otherwise string) string {
		if text == "" {
			return otherwise
		}
		return text
	}
	list := func(items []string) string { return or(strings.Join(items, ", "), "none") }
	bound := "no bound"
	if s.StorageMax > 0 {
		bound = size(s.StorageMax)
	}
	lines := [][2]string{
		{"file", or(s.Path, "none: defaults and flags alone")},
		{"data", s.DataDir},
		{"http", list(s.HTTP)},
		{"https", list(s.HTTPS)},
		{"metrics", list(s.Metrics)},
		{"api", list(s.API.Listen)},
		{"fingerprint", or(s.API.Fingerprint, "none: the API is not served over TCP")},
		{"storage", fmt.Sprintf("%s; %d events, %s of logs", bound, s.KeepEvents, size(s.LogBytes))},
		{"log", s.LogLevel},
		{"traces", or(s.Traces, "none")},
		{"notify", list(s.Notify)},
	}
	for _, l := range lines {
		if err := a.print("%-11s  %s\n", l[0], escape(l[1])); err != nil {
			return err
		}
	}
	if len(s.Tokens) == 0 {
		return nil
	}
	t := newTable("TOKEN", "ROLE", "ENVIRONMENTS", "EXPIRES")
	for _, one := range s.Tokens {
		expires := ""
		if !one.Expires.IsZero() {
			expires = one.Expires.UTC().Format(time.DateTime + " UTC")
		}
		t.row(plain(one.Name), plain(string(one.Role)), plain(strings.Join(one.Environments, ", ")), plain(expires))
	}
	if err := a.print("\n"); err != nil {
		return err
	}
	return t.write(a.Out, a.style(a.Out), "")
}

func (a *app) reloadCommand() *cobra.Command {
	return &cobra.Command{
		Use: "reload", Short: "Have the control plane read its configuration again", GroupID: groupMachine, Args: cobra.NoArgs,
		Long: `Has the control plane read kilnd.hcl again. The whole is validated before any of
it is taken; when something is wrong with it, that is printed, and the
configuration that there was goes on.`,
		RunE: func(command *cobra.Command, _ []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			r, err := client.Reload(command.Context())
			if err != nil {
				return err
			}
			a.printDiagnostics(r.Warnings)
			if a.json {
				return a.printJSON(r)
			}
			if len(r.Changed) == 0 {
				return a.print("%s was loaded; nothing is different\n", r.Path)
			}
			if err := a.print("%s was loaded\n", r.Path); err != nil {
				return err
			}
			for _, change := range r.Changed {
				if err := a.print("  %s\n", a.style(a.Out).safe(change)); err != nil {
					return err
				}
			}
			return nil
		},
	}
}
