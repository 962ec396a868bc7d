package main

import (
	"encoding/json"
	"io"
	"os"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/cli"
	"github.com/kilnproject/kiln/internal/scaffold"
)

// runDraft is "kilnd draft FOLDER", which kiln init runs: it says what to write
// there, as JSON, and writes nothing.
func runDraft(args []string, data, speech io.Writer) int {
	if len(args) != 1 {
		return cli.Explain(speech, invalid("kiln init --help", "kilnd draft is for kiln init"))
	}
	d, err := draft(args[0])
	if err == nil {
		err = json.NewEncoder(data).Encode(d)
	}
	if err != nil {
		return cli.Explain(speech, err)
	}
	return cli.ExitOK
}

func draft(folder string) (d cli.Draft, err error) {
	root, err := os.OpenRoot(folder)
	if err != nil {
		return d, kiln.Errorf(kiln.CodeFailed, "", "read the folder: %w", err)
	}
	defer func() { _ = root.Close() }()
	d.Files, d.Notes, err = scaffold.Generate(root.FS())
	return d, err
}
