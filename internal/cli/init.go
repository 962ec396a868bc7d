package cli

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/kilnproject/kiln"
)

// Draft is what kilnd makes for a folder: the files to write, by slash path, and
// notes for the person who asked. What it takes to read Compose files starts
// slower than all that kiln does, and kiln does without it.
type Draft struct {
	Files map[string][]byte `json:"files"`
	Notes []string          `json:"notes,omitempty"`
}

func (a *app) initCommand() *cobra.Command {
	return &cobra.Command{
		Use: "init", Short: "Write a kiln.hcl for this folder; needs no control plane", GroupID: groupWrite,
		Long: `Looks at the folder, at its Dockerfile or its Compose file, and writes a kiln.hcl
that works, with comments where it had to choose.`,
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error { return a.initialize(command.Context()) },
	}
}

// initialize writes the files of a draft, none of which is there yet.
func (a *app) initialize(ctx context.Context) error {
	root, err := os.OpenRoot(a.dir)
	if err != nil {
		return fileError(err)
	}
	defer func() { _ = root.Close() }()
	d, err := ofDaemon[Draft](ctx, a, "draft", a.dir)
	if err != nil {
		return err
	}
	names := slices.Sorted(maps.Keys(d.Files))
	for _, name := range names {
		if _, err := root.Lstat(name); err == nil {
			return kiln.Errorf(kiln.CodeConflict, "change it, or remove it first", "%s exists", filepath.Join(a.dir, name))
		}
	}
	for _, name := range names {
		if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return fileError(err)
		}
		if err := replaceFile(root, name, d.Files[name]); err != nil {
			return err
		}
	}
	for _, note := range d.Notes {
		a.say("%s", note)
	}
	if err := a.printNames(names); err != nil {
		return err
	}
	a.say("next: kiln validate, kiln plan, kiln up")
	return nil
}
