package kiln_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/kilnproject/kiln"

// adapters do one technology each. None imports another; cmd/kilnd hands one
// to the other as a small interface.
func adapters() []string {
	return []string{
		"bake", "seal", "store", "local", "gateway", "keep", "ledger", "source", "spec", "config", "probe", "scaffold",
		"backup", "scan", "advisory", "lint", "scanner", "sign", "prove", "examine", "registry", "layout", "kube", "metrics", "tracing", "notify",
	}
}

// pure packages compute: the same arguments give the same result.
func pure() []string { return []string{"plan", "rollout", "analysis", "gate"} }

// shared are small packages without processes or I/O policies of their own,
// that any adapter may import.
func shared() []string { return []string{"logs", "handoff", "hclfile", "confine", "durable"} }

// file is what the rules look at.
type file struct {
	path    string // slash path below the module
	pkg     string // its first folder below internal, "" elsewhere
	test    bool
	imports []string
	syntax  *ast.File
}

func TestLayers(t *testing.T) {
	for _, f := range parseModule(t) {
		for _, imported := range f.imports {
			if reason := forbidden(f, imported); reason != "" {
				t.Errorf("%s imports %s: %s", f.path, imported, reason)
			}
		}
		if slices.Contains(pure(), f.pkg) && !f.test {
			checkClock(t, f)
		}
	}
}

// forbidden returns the rule that an import breaks, "" for none.
func forbidden(f file, imported string) string {
	own := internalPackage(imported)
	switch {
	case own == "kilntest" && !f.test && f.pkg != "kilntest" && !strings.HasPrefix(f.path, "test/"):
		return "only tests use the fakes"
	case f.test:
		return "" // a test may put together what the program does not
	case strings.HasPrefix(imported, "github.com/prometheus/") && f.pkg != "metrics",
		strings.HasPrefix(imported, "go.opentelemetry.io/") && f.pkg != "tracing":
		return "kilnd alone measures and traces: one package knows each library, and kiln and the gateway stay small"
	case strings.HasPrefix(imported, "github.com/google/osv-scalibr") && f.pkg != "scan" && f.pkg != "advisory":
		return "it is large: what an image has and what is known of it are found in one package each, and only kilnd carries them"
	case !strings.Contains(f.path, "/"):
		return rootImports(imported)
	case slices.Contains(pure(), f.pkg):
		return pureImports(f, imported)
	case f.pkg == "spec" && own == "gate":
		return "" // a definition's OpenVEX documents are checked as the gate reads them
	case slices.Contains(adapters(), f.pkg):
		return adapterImports(f, own)
	case f.pkg == "control":
		return only(own, "control asks through interfaces that it declares", append(pure(), "control")...)
	case f.pkg == "track":
		return only(own, "it decides when to bring up what; how repositories and definitions are read is handed to it", "control", "track", "durable")
	case f.pkg == "server":
		return only(own, "the API knows control's types and nothing behind them", "control", "server", "durable")
	case f.pkg == "cli":
		return only(own, "the command line knows the API and what works without a control plane",
			"cli", "control", "gate", "server", "spec", "source", "layout", "config", "doctor", "backup", "install", "systemd", "upgrade", "durable")
	case f.pkg == "doctor":
		return only(own, "it looks at the machine and at what is installed there, not at what runs", "doctor", "install")
	case f.pkg == "install", f.pkg == "systemd", f.pkg == "upgrade":
		return only(own, "it knows files and accounts, or systemd, or steps, and nothing else of Kiln", f.pkg, "durable")
	case strings.HasPrefix(f.path, "cmd/kiln/") && imported == module+"/internal/bake/debian/strip":
		return "" // small, and no more of baking than that
	case strings.HasPrefix(f.path, "cmd/kiln/"):
		return only(own, "what must be small and quick carries nothing of the control plane but what it does without privileges", "cli", "gateway", "keep", "seal", "confine", "install", "systemd")
	}
	return ""
}

func rootImports(imported string) string {
	if first, _, _ := strings.Cut(imported, "/"); strings.Contains(first, ".") {
		return "the vocabulary imports the standard library only"
	}
	switch imported {
	case "os", "net", "net/http", "os/exec", "syscall", "math/rand", "math/rand/v2", "log/slog":
		return "the vocabulary does nothing itself"
	}
	return ""
}

func pureImports(f file, imported string) string {
	switch imported {
	case "context", "os", "os/exec", "io", "io/fs", "net", "net/http", "math/rand", "math/rand/v2", "crypto/rand", "syscall", "log/slog", "sync", "path/filepath":
		return f.pkg + " is pure: no clock, no context, no network, no files, no randomness"
	}
	if own := internalPackage(imported); own != "" && !slices.Contains(pure(), own) {
		return f.pkg + " is pure and imports no package that is not"
	}
	return ""
}

func adapterImports(f file, own string) string {
	if own == "" || own == f.pkg || slices.Contains(shared(), own) {
		return ""
	}
	return "an adapter declares the methods that it needs and imports neither another adapter nor what is above it"
}

// only allows packages below internal by name.
func only(own, rule string, allowed ...string) string {
	if own == "" || slices.Contains(allowed, own) {
		return ""
	}
	return rule
}

// internalPackage is the first folder below internal of an import, "" for
// imports from elsewhere.
func internalPackage(imported string) string {
	rest, ok := strings.CutPrefix(imported, module+"/internal/")
	if !ok {
		return ""
	}
	first, _, _ := strings.Cut(rest, "/")
	return first
}

// checkClock finds uses of the clock, which is in the same package as the
// durations that pure packages may use.
func checkClock(t *testing.T, f file) {
	t.Helper()
	clock := []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "NewTimer", "NewTicker", "Tick"}
	ast.Inspect(f.syntax, func(n ast.Node) bool {
		selector, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if name, ok := selector.X.(*ast.Ident); ok && name.Name == "time" && slices.Contains(clock, selector.Sel.Name) {
			t.Errorf("%s uses time.%s: now is an argument of a pure package", f.path, selector.Sel.Name)
		}
		return true
	})
}

// parseModule parses every Go file of the module but test data.
func parseModule(t *testing.T) []file {
	t.Helper()
	var out []file
	set := token.NewFileSet()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && path != "." || d.Name() == "testdata" || d.Name() == "bin") {
			return filepath.SkipDir
		}
		if filepath.Ext(path) != ".go" {
			return nil
		}
		f, err := parse(set, path)
		if err == nil {
			out = append(out, f)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func parse(set *token.FileSet, path string) (file, error) {
	syntax, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution|parser.ParseComments)
	if err != nil {
		return file{}, err
	}
	f := file{path: filepath.ToSlash(path), test: strings.HasSuffix(path, "_test.go") || onlyWithFaults(syntax), syntax: syntax}
	if rest, ok := strings.CutPrefix(f.path, "internal/"); ok {
		f.pkg, _, _ = strings.Cut(rest, "/")
	}
	for _, spec := range syntax.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return file{}, err
		}
		f.imports = append(f.imports, imported)
	}
	return f, nil
}

// onlyWithFaults says whether a file is built only into executables for tests.
func onlyWithFaults(f *ast.File) bool {
	return slices.ContainsFunc(f.Comments, func(c *ast.CommentGroup) bool {
		return c.Pos() < f.Package && slices.ContainsFunc(c.List, func(one *ast.Comment) bool { return one.Text == "//go:build faults" })
	})
}

// TestRulesBite breaks each rule once.
func TestRulesBite(t *testing.T) {
	own := func(name string) string { return module + "/internal/" + name }
	for _, c := range []struct {
		from     file
		imported string
		want     bool
	}{
		{file{path: "spec.go"}, "net/netip", false},
		{file{path: "spec.go"}, "golang.org/x/sys/unix", true},
		{file{path: "spec.go"}, "os", true},
		{file{path: "internal/plan/plan.go", pkg: "plan"}, "context", true},
		{file{path: "internal/plan/plan.go", pkg: "plan"}, "math/rand/v2", true},
		{file{path: "internal/rollout/a.go", pkg: "rollout"}, own("ledger"), true},
		{file{path: "internal/rollout/a.go", pkg: "rollout"}, own("plan"), false},
		{file{path: "internal/spec/gate.go", pkg: "spec"}, own("gate"), false},
		{file{path: "internal/lint/a.go", pkg: "lint"}, own("gate"), true},
		{file{path: "internal/gate/a.go", pkg: "gate"}, own("lint"), true},
		{file{path: "internal/gate/a.go", pkg: "gate"}, "os", true},
		{file{path: "internal/local/oci/a.go", pkg: "local"}, own("seal"), true},
		{file{path: "internal/local/oci/a.go", pkg: "local"}, own("local/idmap"), false},
		{file{path: "internal/local/a.go", pkg: "local"}, own("logs"), false},
		{file{path: "internal/local/a.go", pkg: "local"}, own("control"), true},
		{file{path: "internal/local/a_test.go", pkg: "local", test: true}, own("kilntest"), false},
		{file{path: "internal/local/a.go", pkg: "local"}, own("kilntest"), true},
		{file{path: "test/rig/rig.go"}, own("kilntest"), false},
		{file{path: "internal/control/a.go", pkg: "control"}, own("store"), true},
		{file{path: "internal/track/a.go", pkg: "track"}, own("source"), true},
		{file{path: "internal/track/a.go", pkg: "track"}, own("control"), false},
		{file{path: "internal/server/a.go", pkg: "server"}, own("control"), false},
		{file{path: "internal/server/a.go", pkg: "server"}, own("ledger"), true},
		{file{path: "internal/cli/a.go", pkg: "cli"}, own("bake"), true},
		{file{path: "internal/control/a.go", pkg: "control"}, "go.opentelemetry.io/otel/trace", true},
		{file{path: "internal/tracing/a.go", pkg: "tracing"}, "go.opentelemetry.io/otel/trace", false},
		{file{path: "internal/advisory/a.go", pkg: "advisory"}, "github.com/google/osv-scalibr/semantic", false},
		{file{path: "internal/control/a.go", pkg: "control"}, "github.com/google/osv-scalibr/semantic", true},
		{file{path: "internal/advisory/a.go", pkg: "advisory"}, own("scan"), true},
		{file{path: "cmd/kiln/a.go"}, own("scan"), true},
		{file{path: "internal/server/a.go", pkg: "server"}, "github.com/prometheus/client_golang/prometheus", true},
		{file{path: "internal/metrics/a.go", pkg: "metrics"}, "github.com/prometheus/client_golang/prometheus", false},
		{file{path: "cmd/kiln/main.go"}, own("bake"), true},
		{file{path: "cmd/kiln/main.go"}, own("metrics"), true},
		{file{path: "cmd/kiln/main.go"}, own("gateway"), false},
		{file{path: "cmd/kilnd/main.go"}, own("bake"), false},
	} {
		if got := forbidden(c.from, c.imported); (got != "") != c.want {
			t.Errorf("%s importing %s: %q", c.from.path, c.imported, got)
		}
	}
}
