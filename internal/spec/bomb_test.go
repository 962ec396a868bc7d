package spec_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/spec"
)

// TestBombs loads definitions that are small to write and large to evaluate.
// Each must be refused with diagnostics, soon and without much memory.
func TestBombs(t *testing.T) {
	doubling := func(first, next string) string {
		var b strings.Builder
		fmt.Fprintf(&b, "locals {\n a0 = %s\n", first)
		for i := range 60 {
			fmt.Fprintf(&b, " a%d = %s\n", i+1, strings.ReplaceAll(next, "X", fmt.Sprintf("local.a%d", i)))
		}
		return b.String() + "}\n"
	}
	loops := func(depth int, body string) string {
		open := strings.Repeat("[for x in range(1000) : ", depth)
		return "locals {\n a = " + open + body + strings.Repeat("]", depth) + "\n}\n"
	}
	bombs := map[string]string{
		"strings":           doubling(`"xxxxxxxxxx"`, `"${X}${X}"`),
		"lists":             doubling(`["x"]`, `[X, X]`),
		"objects":           doubling(`{a = 1}`, `{a = X, b = X}`),
		"concat":            doubling(`["x"]`, `concat(X, X)`),
		"json":              doubling(`"\""`, `jsonencode([X, X])`),
		"equal":             doubling(`["x"]`, `[X, X, X == X]`),
		"loops":             loops(6, "1"),
		"loops of nothing":  "locals {\n a = " + strings.Repeat("[for x in range(1000) : ", 6) + "1 if false" + strings.Repeat("]", 6) + "\n}\n",
		"swallowed":         "locals {\n a = try(" + strings.TrimSpace(strings.Repeat("[for x in range(1000) : ", 6)+"1"+strings.Repeat("]", 6)) + ", 1)\n}\n",
		"swallowed inside":  loops(6, "can(1)"),
		"setproduct":        "locals {\n r = range(1000)\n a = setproduct(local.r, local.r, local.r)\n}\n",
		"width":             `locals { a = format("%999999999s", "x") }`,
		"width of numbers":  `locals { a = format("%0999999999d", 1) }`,
		"indent":            `locals { a = indent(1000000000, "a\nb") }`,
		"join":              "locals {\n s = join(\"\", [for x in range(1000) : \"0123456789\"])\n a = join(local.s, [for x in range(1000) : local.s])\n b = join(local.a, [for x in range(1000) : local.a])\n}\n",
		"replace":           "locals {\n s = join(\"\", [for x in range(1000) : \"0123456789\"])\n a = replace(local.s, \"0\", local.s)\n b = replace(local.a, \"1\", local.a)\n}\n",
		"number":            `locals { a = "${1e100000000}" }`,
		"small number":      `locals { a = "${1e-100000000}" }`,
		"number as count":   "image \"i\" { reference = \"docker.io/library/a:1\" }\nservice \"s\" {\n image = image.i\n count = 1e100000000\n}\n",
		"for_each":          "image \"i\" {\n for_each = toset([for x in range(1001) : \"a${x}\"])\n reference = \"docker.io/library/a:1\"\n}\n",
		"for_each of many":  manyForEach(3),
		"brackets":          "locals { a = " + strings.Repeat("[", 50_000) + strings.Repeat("]", 50_000) + " }",
		"parentheses":       "locals { a = " + strings.Repeat("(", 60_000) + " }",
		"templates":         "locals { a = " + strings.Repeat(`"${`, 20_000) + " }",
		"blocks":            strings.Repeat("a {", 30_000),
		"not":               "locals { a = " + strings.Repeat("!", 60_000) + "true }",
		"minus":             "locals { a = " + strings.Repeat("-", 60_000) + "1 }",
		"sum":               "locals { a = 1" + strings.Repeat("+1", 30_000) + " }",
		"conditionals":      "locals { a = " + strings.Repeat("true?1:", 20_000) + "1 }",
		"indexes":           "locals { a = local.b" + strings.Repeat("[0]", 20_000) + " }",
		"attributes":        "locals { a = local.b" + strings.Repeat(".b", 30_000) + " }",
		"file":              "locals { a = 1 }" + strings.Repeat(" ", 2<<20),
		"many blocks":       strings.Repeat("locals {}\n", 10_000),
		"deep json":         "locals { a = jsondecode(join(\"\", [for x in range(1000) : \"[[[[[[[[[[[[[[[[[[[[[[[[[[[\"])) }",
		"distinct":          "locals {\n r = range(1000)\n a = distinct(flatten([for x in local.r : [for y in range(200) : \"${x}-${y}\"]]))\n}\n",
		"nested types":      "variable \"a\" { type = " + strings.Repeat("list(", 20_000) + "any" + strings.Repeat(")", 20_000) + " }",
		"splats":            "locals {\n r = [for x in range(1000) : [for y in range(1000) : { a = y }]]\n a = [for x in range(1000) : local.r[*]]\n}\n",
		"formatlist":        "locals {\n s = join(\"\", [for x in range(1000) : \"0123456789\"])\n a = formatlist(\"%s%s%s%s%s%s%s%s%s%s\", range(1000), local.s, local.s, local.s, local.s, local.s, local.s, local.s, local.s, local.s)\n b = formatlist(\"%s%s%s%s%s\", range(1000), local.s, local.s, local.s, local.s)\n}\n",
		"regexreplace":      "locals {\n s = join(\"\", [for x in range(1000) : \"0123456789\"])\n a = regexreplace(local.s, \"\", local.s)\n}\n",
		"heredoc templates": "locals {\n a = <<E\n" + strings.Repeat("%{ if true }", 20_000) + "\nE\n}\n",
	}
	for name, src := range bombs {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := spec.Load(folder(map[string]string{"kiln.hcl": src}), spec.Options{})
			var e *kiln.Error
			if !errors.As(err, &e) || len(e.Diagnostics) == 0 {
				t.Fatalf("not refused: %v", err)
			}
			for _, d := range e.Diagnostics {
				if strings.Contains(d.Detail, "report this as a defect") {
					t.Errorf("%s: %.300s", d.Summary, d.Detail)
				}
			}
		})
	}
}

func manyForEach(n int) string {
	var src strings.Builder
	for i := range n {
		fmt.Fprintf(&src, "image \"i%d\" {\n for_each = toset([for x in range(1000) : \"a${x}\"])\n reference = \"docker.io/library/a:1\"\n}\n", i)
	}
	return src.String()
}

// TestLargeIsFine loads a definition as large as somebody may really write.
func TestLargeIsFine(t *testing.T) {
	src := `
locals {
  teams = { for i in range(500) : "t${i}" => { port = 1000 + i, env = { for j in range(10) : "K${j}" => "value ${i} ${j}" } } }
}
image "i" { reference = "registry.example.com/app:1" }
service "s" {
  for_each = local.teams
  image    = image.i
  env      = merge(local.teams[each.key].env, { PEER = service.s["t1"].url, SELF = each.key })
  port "http" { number = each.value.port }
}
route "r" {
  for_each = local.teams
  host     = "${each.key}.localhost"
  to       = service.s[each.key]
}
`
	def := load(t, src, spec.Options{})
	if len(def.Spec.Services) != 500 || def.Spec.Services[0].Config.Env["PEER"] != "http://s-t1:1001" {
		t.Errorf("got %d services", len(def.Spec.Services))
	}
}

// TestJustWithinBounds loads what the bounds allow and recursion must bear.
func TestJustWithinBounds(t *testing.T) {
	for name, expression := range map[string]string{
		"sum":          "1" + strings.Repeat("+1", 24_000),
		"conditionals": strings.Repeat("true?1:", 12_000) + "1",
		"indexes":      "[1]" + strings.Repeat("[0]", 16_000),
		"negations":    strings.Repeat("!", 20) + "true",
		"brackets":     strings.Repeat("[", 95) + strings.Repeat("]", 95),
		"template":     "<<E\n" + strings.Repeat("%{ if true }x%{ endif }", 3_000) + "\nE",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := spec.Load(folder(map[string]string{"kiln.hcl": "locals {\n a = " + expression + "\n}\n"}), spec.Options{})
			if err != nil && strings.Contains(diagnostics(err), "as a defect") {
				t.Error(diagnostics(err))
			}
		})
	}
}
