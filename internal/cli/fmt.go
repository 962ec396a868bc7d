package cli

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/spec"
)

func (a *app) fmtCommand() *cobra.Command {
	var check bool
	command := &cobra.Command{
		Use: "fmt [FILE...]", Short: "Write the definition in canonical format; needs no control plane", GroupID: groupWrite,
		Long: `Rewrites the *.hcl files of the definition's folder, or the named ones, in
canonical format and prints the names of those that changed. "-" formats
standard input to standard output.`,
		RunE: func(_ *cobra.Command, args []string) error {
			if slices.Equal(args, []string{"-"}) {
				return a.formatStream()
			}
			return a.format(args, check)
		},
	}
	command.Flags().BoolVar(&check, "check", false, "change nothing; exit 1 when a file is not in canonical format")
	return command
}

func (a *app) formatStream() error {
	src, err := io.ReadAll(a.In)
	if err != nil {
		return err
	}
	out, err := spec.Format("-", src)
	if err != nil {
		return err
	}
	return a.print("%s", out)
}

func (a *app) format(files []string, check bool) error {
	if len(files) == 0 {
		found, err := a.definitionFiles()
		if err != nil {
			return err
		}
		files = found
	}
	var changed []string
	for _, file := range files {
		differs, err := a.formatFile(file, check)
		if err != nil {
			return err
		}
		if differs {
			changed = append(changed, file)
		}
	}
	if err := a.printNames(changed); err != nil {
		return err
	}
	if check && len(changed) > 0 {
		return exitStatus(ExitFailed)
	}
	return nil
}

// definitionFiles lists the files of the definition's folder.
func (a *app) definitionFiles() ([]string, error) {
	root, err := os.OpenRoot(a.dir)
	if err != nil {
		return nil, fileError(err)
	}
	defer func() { _ = root.Close() }()
	names, err := spec.Files(root.FS())
	if err != nil {
		return nil, fileError(err)
	}
	if len(names) == 0 {
		return nil, kiln.Errorf(kiln.CodeNotFound, "kiln init writes one", "there is no definition here: no *.hcl file in %s", a.dir)
	}
	for i, name := range names {
		names[i] = filepath.Join(a.dir, name)
	}
	return names, nil
}

func (a *app) printNames(names []string) error {
	if a.json {
		return a.printJSON(append([]string{}, names...))
	}
	for _, name := range names {
		if err := a.print("%s\n", name); err != nil {
			return err
		}
	}
	return nil
}

// formatFile says whether the file differs from its canonical format, and
// unless only checking, rewrites it.
func (a *app) formatFile(path string, check bool) (bool, error) {
	root, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return false, fileError(err)
	}
	defer func() { _ = root.Close() }()
	src, err := readFile(root, filepath.Base(path))
	if err != nil {
		return false, err
	}
	name, err := filepath.Rel(a.dir, path) // as diagnostics have it
	if err != nil {
		name = path
	}
	out, err := spec.Format(name, src)
	if err != nil || bytes.Equal(src, out) {
		return false, err
	}
	if check {
		return true, nil
	}
	return true, replaceFile(root, filepath.Base(path), out)
}
