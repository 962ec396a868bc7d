package config

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnproject/kiln/internal/hclfile"
)

var update = flag.Bool("update", false, "rewrite the tables of docs/reference/config.md")

const referencePage = "../../docs/reference/config.md"

// TestReferencePage keeps the tables of the reference equal to the schema.
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
		return fmt.Sprintf("<!-- schema: %s -->\n%s<!-- end -->", path, block(t, path).Table())
	})
	if *update {
		if err := os.WriteFile(referencePage, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(string(page), got); diff != "" {
		t.Errorf("the page is not what the schema says; run with -update: %s", diff)
	}
	for _, path := range append(rootSchema().Paths(), "file") {
		if !seen[path] {
			t.Errorf("the page has no table of %q", path)
		}
	}
}

func block(t *testing.T, path string) *hclfile.Block {
	t.Helper()
	s := rootSchema()
	if path == "file" {
		return s
	}
	for name := range strings.SplitSeq(path, " ") {
		inner, ok := s.Block(name)
		if !ok {
			t.Fatalf("the schema has no %q", path)
		}
		s = inner
	}
	return s
}

// TestReferenceExamples reads every example of the page.
func TestReferenceExamples(t *testing.T) {
	page, err := os.ReadFile(referencePage)
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile("(?s)```hcl\n(.*?)```").FindAllStringSubmatch(string(page), -1)
	if len(found) == 0 {
		t.Error("the page has no example")
	}
	for i, m := range found {
		if _, warnings, err := Parse("example.hcl", []byte(m[1]), options(t)); err != nil || len(warnings) > 0 {
			t.Errorf("example %d: %v %v", i+1, err, warnings)
		}
	}
}
