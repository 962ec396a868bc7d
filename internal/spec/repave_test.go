package spec_test

import (
	"strings"
	"testing"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/spec"
)

func TestRepavePolicy(t *testing.T) {
	for text, want := range map[string]kiln.Environment{
		``:                  {Name: "a"},
		`repave = "manual"`: {Name: "a"},
		`repave = "auto"`:   {Name: "a", Repave: kiln.RepaveAuto, RepaveEvery: 6 * time.Hour},
		"repave = \"auto\"\nrepave_every = \"24h\"": {Name: "a", Repave: kiln.RepaveAuto, RepaveEvery: 24 * time.Hour},
	} {
		got := load(t, "environment \"a\" {\n"+text+"\n}", spec.Options{}).Environment
		if got.Repave != want.Repave || got.RepaveEvery != want.RepaveEvery {
			t.Errorf("%s: %+v", text, got)
		}
	}
	for text, want := range map[string]string{
		`repave = "always"`:                          `not "always"`,
		"repave = \"auto\"\nrepave_every = \"1m\"":   "1h",
		`repave_every = "6h"`:                        "nobody else repaves",
		"repave = \"manual\"\nrepave_every = \"6h\"": "nobody else repaves",
	} {
		_, err := spec.Load(folder(map[string]string{"kiln.hcl": "environment \"a\" {\n" + text + "\n}"}), spec.Options{})
		if err == nil || !strings.Contains(diagnostics(err), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
