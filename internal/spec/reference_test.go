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
	for _, path := range rootSchema().Paths() {
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
		inner, ok := s.Block(name)
		if !ok {
			t.Fatalf("the schema has no %q", path)
		}
		s = inner
	}
	return s.Table()
}
