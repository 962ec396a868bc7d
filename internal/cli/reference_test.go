package cli

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
)

var update = flag.Bool("update", false, "rewrite docs/reference/cli.md")

// TestReferenceIsCurrent keeps docs/reference/cli.md equal to what the program
// says of itself. `go test ./internal/cli -run Reference -update` rewrites it.
func TestReferenceIsCurrent(t *testing.T) {
	path := filepath.Join("..", "..", "docs", "reference", "cli.md")
	want := reference((&app{}).root())
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("docs/reference/cli.md is not what the program says; run with -update\n%s", diff)
	}
}

func reference(root *cobra.Command) string {
	root.InitDefaultCompletionCmd()
	var b bytes.Buffer
	b.WriteString("# Command line\n\nGenerated from the program: `go test ./internal/cli -run Reference -update`.\n\n")
	b.WriteString(root.Long + "\n\n")
	b.WriteString("Standard output is data, standard error is speech. Every command takes:\n\n```\n" + root.PersistentFlags().FlagUsages() + "```\n\n")
	b.WriteString("Environment: `KILN_DATA` (data directory), `KILN_VAR_name` (value of a variable),\n" +
		"`KILN_LISTEN_HTTP` and `KILN_LISTEN_HTTPS` (the gateway's public listeners of a kilnd\nthat `kiln up` starts), `NO_COLOR`.\n\n" +
		"On another machine than the control plane's: `KILN_SERVER`, `KILN_TOKEN` or\n`KILN_TOKEN_FILE`, `KILN_CA` or `KILN_FINGERPRINT`. `--data` wins over `KILN_SERVER`.\n\n")
	for _, group := range root.Groups() {
		fmt.Fprintf(&b, "## %s\n\n", strings.TrimSuffix(group.Title, ":"))
		for _, c := range root.Commands() {
			if c.GroupID != group.ID || c.Hidden || c.Name() == "completion" {
				continue
			}
			referenceCommand(&b, c)
			for _, inner := range c.Commands() {
				referenceCommand(&b, inner)
			}
		}
	}
	b.WriteString("## Exit codes\n\n| code | meaning |\n|---|---|\n")
	for _, row := range exitTable() {
		fmt.Fprintf(&b, "| %d | %s |\n", row.Exit, row.Meaning)
	}
	return b.String()
}

func referenceCommand(b *bytes.Buffer, c *cobra.Command) {
	fmt.Fprintf(b, "### %s\n\n%s.\n\n```\n%s\n```\n\n", c.CommandPath(), c.Short, c.UseLine())
	if c.Long != "" {
		b.WriteString(c.Long + "\n\n")
	}
	if flags := c.LocalNonPersistentFlags().FlagUsages(); flags != "" {
		b.WriteString("```\n" + flags + "```\n\n")
	}
}
