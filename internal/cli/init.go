package cli

import (
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/scaffold"
)

func (a *app) initCommand() *cobra.Command {
	return &cobra.Command{
		Use: "init", Short: "Write a kiln.hcl for this folder; needs no control plane", GroupID: groupWrite,
		Long: `Looks at the folder, at its Dockerfile or its Compose file, and writes a kiln.hcl
that works, with comments where it had to choose.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return a.scaffold() },
	}
}

func (a *app) scaffold() error {
	root, err := os.OpenRoot(a.dir)
	if err != nil {
		return fileError(err)
	}
	defer func() { _ = root.Close() }()
	files, notes, err := scaffold.Generate(root.FS())
	if err != nil {
		return err
	}
	names := slices.Sorted(maps.Keys(files))
	for _, name := range names {
		if _, err := root.Lstat(name); err == nil {
			return kiln.Errorf(kiln.CodeConflict, "change it, or remove it first", "%s exists", filepath.Join(a.dir, name))
		}
	}
	for _, name := range names {
		if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return fileError(err)
		}
		if err := replaceFile(root, name, files[name]); err != nil {
			return err
		}
	}
	for _, note := range notes {
		a.say("%s", note)
	}
	if err := a.printNames(names); err != nil {
		return err
	}
	a.say("next: kiln validate, kiln plan, kiln up")
	return nil
}
