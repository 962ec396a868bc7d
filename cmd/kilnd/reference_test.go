package main

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the flags in docs/reference/kilnd.md")

// TestReferenceHasTheFlags keeps docs/reference/kilnd.md equal to what kilnd
// says of itself.
func TestReferenceHasTheFlags(t *testing.T) {
	path := filepath.Join("..", "..", "docs", "reference", "kilnd.md")
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(page), "<!-- flags of kilnd")
	head, rest, ok2 := strings.Cut(rest, "-->\n```\n")
	_, after, ok3 := strings.Cut(rest, "```\n")
	if !ok || !ok2 || !ok3 {
		t.Fatal("the page has no place for the flags")
	}
	want := before + "<!-- flags of kilnd" + head + "-->\n```\n" + flagUsages(t) + "```\n" + after
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if want != string(page) {
		t.Errorf("docs/reference/kilnd.md does not have the flags that kilnd has; run with -update")
	}
}

// flagUsages is what kilnd --help says of its flags.
func flagUsages(t *testing.T) string {
	t.Helper()
	speech, err := os.Create(filepath.Join(t.TempDir(), "speech"))
	if err != nil {
		t.Fatal(err)
	}
	stderr := os.Stderr
	os.Stderr = speech
	_, err = parse([]string{"--help"}, noEnvironment)
	os.Stderr = stderr
	if err == nil {
		t.Fatal("--help is no error")
	}
	said, err := os.ReadFile(speech.Name())
	if err != nil {
		t.Fatal(err)
	}
	_, flags, ok := strings.Cut(string(said), usage)
	if !ok {
		t.Fatalf("%q", said)
	}
	return flags
}
