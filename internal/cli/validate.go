package cli

import (
	"github.com/spf13/cobra"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/spec"
)

func (a *app) validateCommand() *cobra.Command {
	var d definitionFlags
	command := &cobra.Command{
		Use: "validate [ENVIRONMENT]", Short: "Check the definition and its lock; needs no control plane", GroupID: groupWrite,
		Args: cobra.MaximumNArgs(1),
		RunE: func(command *cobra.Command, args []string) error {
			loaded, err := a.load(command.Context(), d, environmentArg(args))
			if err == nil {
				err = a.checkLock()
			}
			if err != nil {
				return a.invalidJSON(err)
			}
			if a.json {
				return a.printJSON(validation{Valid: true, Diagnostics: loaded.Warnings, Spec: &loaded.Spec})
			}
			a.printDiagnostics(loaded.Warnings)
			s := loaded.Spec
			return a.print("%s: valid: %s, %s, %s\n", loaded.Environment.Name, plural(len(s.Images), "image"), plural(len(s.Services), "service"), plural(len(s.Routes), "route"))
		},
	}
	d.registerValues(command)
	return command
}

// checkLock reads kiln.lock, if there is one.
func (a *app) checkLock() error {
	lock, err := a.readLock()
	if err == nil {
		_, err = spec.ParseLock(lock)
	}
	return err
}

// validation is what validate prints as JSON.
type validation struct {
	Valid       bool              `json:"valid"`
	Diagnostics []kiln.Diagnostic `json:"diagnostics"`
	Spec        *kiln.Spec        `json:"spec,omitempty"`
}

// invalidJSON gives an editor the diagnostics as data, and the exit code all
// the same.
func (a *app) invalidJSON(err error) error {
	if shown := asShown(err); a.json && shown != nil && len(shown.Diagnostics) > 0 {
		if err := a.printJSON(validation{Diagnostics: shown.Diagnostics}); err != nil {
			return err
		}
		return exitStatus(exitCode(err))
	}
	return err
}
