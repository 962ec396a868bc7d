package cli

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"strings"
	"time"

	"github.com/cpuguy83/go-md2man/v2/md2man"
	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/kilnproject/kiln/docs"
	"github.com/kilnproject/kiln/internal/install"
)

// manual is the name of all manual pages together.
const manual = "Kiln"

// Pages are the completion and the manual pages that an installation of this
// program has. They depend on nothing but the program.
func Pages(version string) ([]install.Page, error) {
	a := &app{}
	root := a.root()
	root.InitDefaultCompletionCmd()
	root.DisableAutoGenTag = true
	var all []install.Page
	for _, c := range []struct {
		name  string
		write func(*bytes.Buffer) error
	}{
		{"bash-completion/completions/kiln", func(b *bytes.Buffer) error { return root.GenBashCompletionV2(b, true) }},
		{"zsh/site-functions/_kiln", func(b *bytes.Buffer) error { return root.GenZshCompletion(b) }},
		{"fish/vendor_completions.d/kiln.fish", func(b *bytes.Buffer) error { return root.GenFishCompletion(b, true) }},
	} {
		var b bytes.Buffer
		if err := c.write(&b); err != nil {
			return nil, fmt.Errorf("make %s: %w", c.name, err)
		}
		all = append(all, install.Page{Name: c.name, Content: b.Bytes()})
	}
	manuals, err := manuals(root, version)
	return append(all, manuals...), err
}

func manuals(root *cobra.Command, version string) ([]install.Page, error) {
	var all []install.Page
	add := func(name, section string, text []byte) error {
		packed, err := pack(text)
		all = append(all, install.Page{Name: "man/man" + section + "/" + name + "." + section + ".gz", Content: packed})
		return err
	}
	for _, c := range append([]*cobra.Command{root}, root.Commands()...) {
		if c.Hidden || c.IsAdditionalHelpTopicCommand() || c.Name() == "help" {
			continue
		}
		text, err := commandManual(c, version)
		if err != nil {
			return nil, err
		}
		if err := add(strings.ReplaceAll(c.CommandPath(), " ", "-"), "1", text); err != nil {
			return nil, err
		}
	}
	for _, page := range []struct{ file, name, section, short string }{
		{"definition.md", "kiln.hcl", "5", "the definition of images, services and routes"},
		{"kilnd.md", "kilnd", "8", "Kiln's control plane"},
	} {
		text, err := docs.Reference.ReadFile("reference/" + page.file)
		if err != nil {
			return nil, err
		}
		// The page's own title gives way to that of a manual page.
		_, body, _ := strings.Cut(string(text), "\n")
		body = withoutTables(body)
		head := fmt.Sprintf("%% %q %q \"\" %q %q\n# NAME\n%s \\- %s\n\n# DESCRIPTION\n", strings.ToUpper(page.name), page.section, "kiln "+version, manual, page.name, page.short)
		if err := add(page.name, page.section, md2man.Render([]byte(head+body))); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// commandManual is a command's page, without a date: a page that changes with
// the day cannot be compared.
func commandManual(c *cobra.Command, version string) ([]byte, error) {
	var b bytes.Buffer
	day := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	err := doc.GenMan(c, &doc.GenManHeader{Section: "1", Date: &day, Source: "kiln " + version, Manual: manual}, &b)
	return bytes.Replace(b.Bytes(), []byte(`"Jan 2000"`), []byte(`""`), 1), err
}

// pack compresses as `gzip -9n` does: without a name and a time.
func pack(text []byte) ([]byte, error) {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := z.Write(text); err != nil {
		return nil, err
	}
	err = z.Close()
	return b.Bytes(), err
}

// withoutTables makes lists of the tables of a Markdown page, which are wider
// than a terminal: the first column says what each item is about.
func withoutTables(page string) string {
	var out strings.Builder
	var head []string
	for line := range strings.Lines(page) {
		row, isRow := strings.CutPrefix(strings.TrimSpace(line), "|")
		if !isRow {
			head = nil
			out.WriteString(line)
			continue
		}
		cells := cellsOf(row)
		switch {
		case head == nil:
			head = cells
		case strings.Trim(cells[0], "-:") == "": // the rule below the head
		default:
			out.WriteString(cells[0] + "\n: " + describe(head, cells) + "\n\n")
		}
	}
	return out.String()
}

// cellsOf splits a row at the bars that are not escaped.
func cellsOf(row string) []string {
	const bar = "\x00"
	cells := strings.Split(strings.ReplaceAll(strings.TrimSuffix(row, "|"), `\|`, bar), "|")
	for i, c := range cells {
		cells[i] = strings.ReplaceAll(strings.TrimSpace(c), bar, "|")
	}
	return cells
}

// describe is all of a row but its first cell: the last one is a text, those
// before it are said with the head of their column.
func describe(head, cells []string) string {
	var parts []string
	for i := 1; i < len(cells)-1 && i < len(head); i++ {
		if cells[i] != "" {
			parts = append(parts, head[i]+" "+cells[i])
		}
	}
	text := cells[len(cells)-1]
	if len(parts) == 0 {
		return text
	}
	return strings.Join(parts, ", ") + ". " + text
}
