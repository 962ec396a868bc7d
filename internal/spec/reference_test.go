package spec

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const referencePage = "../../docs/reference/definition.md"

// TestReferencePage keeps the tables of the reference equal to the schema, and
// its list of functions equal to those that there are.
func TestReferencePage(t *testing.T) {
	page, err := os.ReadFile(referencePage)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	marked := regexp.MustCompile(`(?s)<!-- schema: ([a-z ]+) -->\n.*?<!-- end -->`)
	got := marked.ReplaceAllStringFunc(string(page), func(part string) string {
		path := marked.FindStringSubmatch(part)[1]
		seen[path] = true
		return fmt.Sprintf("<!-- schema: %s -->\n%s<!-- end -->", path, tableOf(t, path))
	})
	if flag.Lookup("update").Value.String() == "true" {
		if err := os.WriteFile(referencePage, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(string(page), got); diff != "" {
		t.Errorf("the page is not what the schema says; run with -update: %s", diff)
	}
	for _, path := range allPaths(rootSchema(), "") {
		if !seen[path] {
			t.Errorf("the page has no table of %q", path)
		}
	}
}

// TestReferenceExamples loads every example of the page that is a definition.
func TestReferenceExamples(t *testing.T) {
	page, err := os.ReadFile(referencePage)
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range regexp.MustCompile("(?s)```hcl\n(.*?)```").FindAllStringSubmatch(string(page), -1) {
		formatted, err := Format("example.hcl", []byte(m[1]))
		if err != nil {
			t.Errorf("example %d: %v", i+1, err)
			continue
		}
		if diff := cmp.Diff(string(formatted), m[1]); diff != "" {
			t.Errorf("example %d is not canonical: %s", i+1, diff)
		}
	}
}

func tableOf(t *testing.T, path string) string {
	t.Helper()
	if path == "functions" {
		names := slices.Sorted(maps.Keys(newFunctions(newFolder(nil), &meter{})))
		return "`" + strings.Join(names, "`, `") + "`\n"
	}
	s := rootSchema()
	for name := range strings.SplitSeq(path, " ") {
		inner, ok := s.block(name)
		if !ok {
			t.Fatalf("the schema has no %q", path)
		}
		s = inner
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\n", s.Doc)
	if len(s.Arguments) > 0 {
		b.WriteString("| argument | type | default | range | meaning |\n|---|---|---|---|---|\n")
	}
	for _, a := range s.Arguments {
		def := a.Default
		if a.Required {
			def = "required"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", a.Name, a.Type, def, a.Range, a.Doc)
	}
	for i := range s.Blocks {
		many := "any number"
		if s.Blocks[i].Single {
			many = "at most one"
		}
		label := ""
		for _, l := range s.Blocks[i].Labels {
			label = ` "` + strings.ToUpper(l) + `"`
		}
		if i == 0 {
			b.WriteString("\nBlocks inside: ")
		} else {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "`%s%s` (%s)", s.Blocks[i].Name, label, many)
	}
	if len(s.Blocks) > 0 {
		b.WriteString(".\n")
	}
	return b.String()
}

func allPaths(s *blockSchema, prefix string) []string {
	var out []string
	for i := range s.Blocks {
		path := strings.TrimSpace(prefix + " " + s.Blocks[i].Name)
		out = append(out, path)
		out = append(out, allPaths(&s.Blocks[i], path)...)
	}
	return out
}
