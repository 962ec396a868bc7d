package spec_test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/spec"
)

var update = flag.Bool("update", false, "write the golden files and tables")

// TestDiagnostics loads every archive of testdata/bad and compares what is said
// with its file "want".
func TestDiagnostics(t *testing.T) {
	archives, err := filepath.Glob("testdata/bad/*.txtar")
	if err != nil || len(archives) == 0 {
		t.Fatalf("no archives: %v", err)
	}
	for _, path := range archives {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			files, want := map[string]string{}, ""
			for i, f := range archive.Files {
				if f.Name == "want" {
					want = string(f.Data)
					archive.Files = archive.Files[:i]
					break
				}
				files[f.Name] = string(f.Data)
			}
			_, err = spec.Load(folder(files), spec.Options{})
			got := render(t, err)
			if strings.Contains(got, "hunter2\"") && !strings.Contains(got, "| ") {
				t.Error("a sensitive value shows")
			}
			if *update {
				archive.Files = append(archive.Files, txtar.File{Name: "want", Data: []byte(got)})
				if err := os.WriteFile(path, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("run with -update after looking at this: %s", diff)
			}
		})
	}
}

// render writes diagnostics with their marks.
func render(t *testing.T, err error) string {
	t.Helper()
	var e *kiln.Error
	if !errors.As(err, &e) || e.Code != kiln.CodeInvalid || len(e.Diagnostics) == 0 {
		t.Fatalf("want diagnostics, got %v", err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", e.Message)
	for _, d := range e.Diagnostics {
		fmt.Fprintf(&b, "\n%s: %s\n", d.Severity, d.Summary)
		if d.File != "" {
			fmt.Fprintf(&b, "  %s:%d:%d\n  | %s\n", d.File, d.Line, d.Column, d.Snippet)
		}
		if d.EndColumn > 0 {
			fmt.Fprintf(&b, "  | %s%s\n", strings.Repeat(" ", d.Column-1), strings.Repeat("^", d.EndColumn-d.Column))
		}
		fmt.Fprintf(&b, "  %s\n", d.Detail)
	}
	return b.String()
}
