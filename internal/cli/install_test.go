package cli

import (
	"slices"
	"strings"
	"testing"

	"github.com/kilnproject/kiln/internal/config"
	"github.com/kilnproject/kiln/internal/install"
)

// TestTheExamplesOfTheConfigurationAreRight reads the installed configuration
// as it is and with every example taken.
func TestTheExamplesOfTheConfigurationAreRight(t *testing.T) {
	items := install.Items(install.Options{Prefix: "/usr", Data: DefaultData})
	at := slices.IndexFunc(items, func(i install.Item) bool { return i.Name == install.ConfigFile })
	text := string(items[at].Text)
	if _, diags, err := config.Parse("kilnd.hcl", items[at].Text, config.Options{}); err != nil || len(diags) > 0 {
		t.Errorf("%v %v", err, diags)
	}
	var taken strings.Builder
	blocks := 0
	for line := range strings.Lines(text) {
		example, ok := strings.CutPrefix(line, "# ")
		if ok && (strings.ContainsAny(example, "={}") || example == "}\n") && !strings.Contains(example, "`") {
			taken.WriteString(example)
			blocks += strings.Count(example, " {")
		}
	}
	whole := strings.Replace(taken.String(), `"..."`, `"`+strings.Repeat("5e", 32)+`"`, 1)
	if _, _, err := config.Parse("kilnd.hcl", []byte(whole), config.Options{}); err != nil || blocks != 5 {
		t.Errorf("%d blocks: %v in\n%s", blocks, err, whole)
	}
}

func TestTablesOfAPageBecomeLists(t *testing.T) {
	page := "# A\n\n| key | type | meaning |\n|---|---|---|\n| `a` | int | one \\| two |\n| `b` |  | three |\n\ntext | with a bar\n"
	want := "# A\n\n`a`\n: type int. one | two\n\n`b`\n: three\n\n\ntext | with a bar\n"
	if got := withoutTables(page); got != want {
		t.Errorf("%q", got)
	}
}
