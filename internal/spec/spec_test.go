package spec_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/spec"
)

func TestExampleLoads(t *testing.T) {
	def, err := spec.Load(os.DirFS("../../examples/shop"), spec.Options{})
	if err != nil {
		t.Fatal(diagnostics(err))
	}
	if diff := cmp.Diff([]string{"orders", "web", "worker"}, spec.Contexts(def.Spec)); diff != "" {
		t.Error(diff)
	}
}

func TestNoDefinition(t *testing.T) {
	_, err := spec.Load(folder(map[string]string{"kilnd.hcl": "", ".hidden.hcl": "", "x.txt": ""}), spec.Options{})
	if !errors.Is(err, kiln.ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

const environments = `
environment "production" { branch = "main" }
environment "preview" { branches = ["feature/*", "fix-?"] }
locals { where = "${environment.name} ${environment.branch}" }
variable "where" { default = "" }
`

func TestEnvironments(t *testing.T) {
	tests := []struct {
		environment, branch string
		want, error         string
	}{
		{"", "", "production", ""},
		{"production", "other", "production", ""},
		{"preview", "feature/x", "preview-feature-x", ""},
		{"preview-feature-x", "feature/x", "preview-feature-x", ""},
		{"preview", "", "", "branch is not known"},
		{"preview", "main", "", "does not"},
		{"preview-feature-y", "feature/x", "", "no environment"},
		{"prod", "", "", "no environment"},
	}
	for _, tt := range tests {
		def, err := spec.Load(folder(map[string]string{"kiln.hcl": environments}), spec.Options{Environment: tt.environment, Branch: tt.branch})
		if tt.error != "" {
			if err == nil || !strings.Contains(diagnostics(err), tt.error) {
				t.Errorf("%+v: got %v", tt, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%+v: %s", tt, diagnostics(err))
			continue
		}
		if def.Environment.Name != tt.want || len(def.Spec.Environments) != 2 {
			t.Errorf("%+v: got %+v", tt, def.Environment)
		}
	}
	if def := load(t, "locals {}", spec.Options{}); def.Environment.Name != "default" {
		t.Errorf("got %q", def.Environment.Name)
	}
	if def := load(t, "locals {}", spec.Options{Environment: "staging"}); def.Environment.Name != "staging" {
		t.Errorf("got %q", def.Environment.Name)
	}
}

func TestFollowing(t *testing.T) {
	follow := func(text, branch string) ([]string, error) {
		found, err := spec.Following(fstest.MapFS{"kiln.hcl": {Data: []byte(text)}}, branch)
		var names []string
		for _, e := range found {
			if e.Branch != branch {
				t.Errorf("%q: %+v", branch, e)
			}
			names = append(names, e.Name)
		}
		return names, err
	}
	both := environments + `
environment "canary" { branch = "main" }
environment "any" { branches = ["*"] }
environment "none" {}
`
	for branch, want := range map[string]string{
		"main": "canary production", "feature/x": "preview-feature-x", "other": "any-other", "a/b/c": "", "": "",
	} {
		if got, err := follow(both, branch); err != nil || strings.Join(got, " ") != want {
			t.Errorf("%q: got %v %v, want %s", branch, got, err, want)
		}
	}
	if _, err := follow("environment {", "main"); !errors.Is(err, kiln.ErrInvalid) {
		t.Errorf("a definition that does not parse: %v", err)
	}
	if _, err := spec.Following(fstest.MapFS{"README": {}}, "main"); !errors.Is(err, kiln.ErrNotFound) {
		t.Errorf("no definition: %v", err)
	}
}

func TestDerivedNamesAreNamesAndDiffer(t *testing.T) {
	seen := map[string]string{}
	rapid.Check(t, func(t *rapid.T) {
		branch := rapid.StringMatching(`[a-zA-Z0-9][a-zA-Z0-9/_.é-]{0,40}`).Draw(t, "branch")
		name := spec.Derived("preview", branch)
		if len(name) > 24 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || strings.HasSuffix(name, "-") {
			t.Fatalf("%q is not a name", name)
		}
		if other, ok := seen[name]; ok && other != branch {
			t.Fatalf("%q and %q are both %q", other, branch, name)
		}
		seen[name] = branch
	})
}

func TestValues(t *testing.T) {
	src := `
variable "n" {
  type    = number
  default = 1
}
variable "l" { default = [] }
variable "typed" {
  type    = list(string)
  default = []
}
variable "o" {
  type    = object({ a = number, b = optional(string), c = optional(number, 3) })
  default = { a = 1 }
}
environment "production" { values = { n = 5, l = ["env"] } }
`
	values, err := spec.ParseVars([]string{"n=7", `typed=["x", "y"]`}, map[string][]byte{"a.vars": []byte("n = 6\no = { a = \"2\" }\n"), "b.json": []byte(`{"typed": ["z"]}`)}, []string{"KILN_VAR_n=8", "OTHER=1", "KILN_VAR_l=text"})
	if err != nil {
		t.Fatal(diagnostics(err))
	}
	def := load(t, src, spec.Options{Values: values})
	got := map[string]string{}
	for k, v := range def.Values {
		got[k] = string(v)
	}
	want := map[string]string{"n": "7", "l": `"text"`, "typed": `["x","y"]`, "o": `{"a":2,"b":null,"c":3}`}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	again := load(t, src, spec.Options{Values: def.Values})
	if diff := cmp.Diff(def.Values, again.Values); diff != "" {
		t.Errorf("values do not give themselves again: %s", diff)
	}
	def = load(t, src, spec.Options{})
	if string(def.Values["n"]) != "5" {
		t.Errorf("the environment's value is not used: %s", def.Values["n"])
	}
}

func TestBadValues(t *testing.T) {
	for name, err := range map[string]error{
		"flag":      second(spec.ParseVars([]string{"x"}, nil, nil)),
		"twice":     second(spec.ParseVars([]string{"x=1", "x=2"}, nil, nil)),
		"file":      second(spec.ParseVars(nil, map[string][]byte{"f": []byte("a = b\n")}, nil)),
		"functions": second(spec.ParseVars(nil, map[string][]byte{"f": []byte("a = upper(\"x\")\n")}, nil)),
		"json":      second(spec.ParseVars(nil, map[string][]byte{"f.json": []byte("[")}, nil)),
		"disagree":  second(spec.ParseVars(nil, map[string][]byte{"f": []byte("a = 1"), "g": []byte("a = 2")}, nil)),
		"unknown":   secondLoad(`variable "name" { default = 1 }`, map[string]json.RawMessage{"nam": []byte("1")}),
		"not json":  secondLoad(`variable "name" { default = 1 }`, map[string]json.RawMessage{"name": []byte("{")}),
		"reference": secondLoad("variable \"name\" {\n type = list(string)\n default = []\n}", map[string]json.RawMessage{"name": []byte(`"[file(\"x\")]"`)}),
	} {
		if !errors.Is(err, kiln.ErrInvalid) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func second(_ map[string]json.RawMessage, err error) error { return err }

func secondLoad(src string, values map[string]json.RawMessage) error {
	_, err := spec.Load(folder(map[string]string{"kiln.hcl": src}), spec.Options{Values: values})
	return err
}

func TestFiles(t *testing.T) {
	fsys := folder(map[string]string{
		"kiln.hcl": `locals {
  a = file("sub/../link")
  b = filesha256("sub/b")
  c = fileexists("none") || fileexists("sub")
}`, "sub/b": "b", "sub/c": "c",
	})
	fsys["link"] = &fstest.MapFile{Data: []byte("sub/c"), Mode: fs.ModeSymlink | 0o777}
	_, err := spec.Load(fsys, spec.Options{})
	if err == nil || !strings.Contains(diagnostics(err), "not a regular file") {
		t.Fatalf("a folder counts as a file: %v", err)
	}
	fsys["kiln.hcl"].Data = bytes.ReplaceAll(fsys["kiln.hcl"].Data, []byte(` || fileexists("sub")`), nil)
	def, err := spec.Load(fsys, spec.Options{})
	if err != nil {
		t.Fatal(diagnostics(err))
	}
	if diff := cmp.Diff([]string{"kiln.hcl", "link", "sub/b", "sub/c"}, def.Spec.Files); diff != "" {
		t.Error(diff)
	}
	for _, target := range []string{"/etc/passwd", "../up", "sub/../../up", "link"} {
		fsys["link"].Data = []byte(target)
		if _, err := spec.Load(fsys, spec.Options{}); err == nil || !strings.Contains(diagnostics(err), "symbolic link") {
			t.Errorf("link to %s: %v", target, err)
		}
	}
}

func TestLinkedDefinitionOutIsRefused(t *testing.T) {
	dir, secret := t.TempDir(), t.TempDir()+"/secret"
	if err := os.WriteFile(secret, []byte("locals { a = 1 }"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(secret, dir+"/kiln.hcl"); err != nil {
		t.Fatal(err)
	}
	if _, err := spec.Load(os.DirFS(dir), spec.Options{}); err == nil || !strings.Contains(diagnostics(err), "symbolic link leads out") {
		t.Errorf("got %v", err)
	}
}

func TestFormat(t *testing.T) {
	src := "image  \"a\"{\r\nreference=\"x\"\r\n\r\n  platform   = \"y\"\r\n}\r\n\r\n\r\n"
	out, err := spec.Format("kiln.hcl", []byte(src))
	if err != nil {
		t.Fatal(err)
	}
	want := "image \"a\" {\n  reference = \"x\"\n\n  platform = \"y\"\n}\n"
	if string(out) != want {
		t.Errorf("got %q", out)
	}
	if _, err := spec.Format("kiln.hcl", []byte("image {")); !errors.Is(err, kiln.ErrInvalid) {
		t.Errorf("got %v", err)
	}
}

func genLock(t *rapid.T) kiln.Lock {
	digest := rapid.Custom(func(t *rapid.T) kiln.Digest { return kiln.DigestOf([]byte(rapid.String().Draw(t, "of"))) })
	word := rapid.StringMatching(`[a-z0-9+.${}"\\%-]{1,12}`)
	var l kiln.Lock
	for _, name := range rapid.SliceOfNDistinct(rapid.StringMatching(`[a-z0-9]{2,9}`), 0, 4, rapid.ID).Draw(t, "references") {
		l.References = append(l.References, kiln.LockedReference{
			Reference: "registry.example.com/" + name + ":1", Index: digest.Draw(t, "index"),
			Platforms: rapid.MapOfN(word, digest, 0, 3).Draw(t, "platforms"),
		})
	}
	for _, key := range rapid.SliceOfNDistinct(digest, 0, 3, rapid.ID).Draw(t, "debian") {
		d := kiln.LockedDebian{Key: key, Suite: word.Draw(t, "suite"), Platform: "linux/amd64"}
		for _, name := range rapid.SliceOfNDistinct(word, 0, 5, rapid.ID).Draw(t, "packages") {
			d.Packages = append(d.Packages, kiln.LockedPackage{
				Name: name, Version: word.Draw(t, "version"), Architecture: "all", Digest: digest.Draw(t, "digest"),
				Size: rapid.Int64Range(0, 1<<40).Draw(t, "size"), URL: word.Draw(t, "url"),
			})
		}
		l.Debian = append(l.Debian, d)
	}
	return l
}

func TestLockRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		src := spec.FormatLock(genLock(t))
		lock, err := spec.ParseLock(src)
		if err != nil {
			t.Fatalf("%s\n%s", diagnostics(err), src)
		}
		if again := spec.FormatLock(lock); !bytes.Equal(src, again) {
			t.Fatalf("%s", cmp.Diff(string(src), string(again)))
		}
		if formatted, err := spec.Format("kiln.lock", src); err != nil || !bytes.Equal(formatted, src) {
			t.Fatalf("not canonical: %v\n%s", err, cmp.Diff(string(src), string(formatted)))
		}
	})
}

func TestLockErrors(t *testing.T) {
	for src, want := range map[string]string{
		"version = 2\nfuture {}\n":                             "is of version 2",
		"version = 1\n<<<<<<< HEAD\n=======\n>>>>>>> topic\n":  "merge conflict",
		"version = 1\nreference \"a\" {}\n":                    "platforms",
		"version = upper(\"1\")\n":                             "Not a lock file",
		"version = " + strings.Repeat("!", 1000) + "true\n":    "Not a lock file",
		"version = 1\nx = " + strings.Repeat("[", 1000) + "\n": "nested too deep",
		"version = 1\nreference \"registry.example.com/aa:1\" {\n index = \"sha256:x\"\n platforms = {}\n}\n": "Invalid digest",
		"reference \"a\" {}\n": "version",
	} {
		_, err := spec.ParseLock([]byte(src))
		if err == nil || !strings.Contains(diagnostics(err), want) {
			t.Errorf("%.60q: got %v, want %q", src, err, want)
		}
	}
	if lock, err := spec.ParseLock([]byte("\n")); err != nil || len(lock.References) != 0 {
		t.Errorf("empty: %v", err)
	}
}

func FuzzLoad(f *testing.F) {
	f.Add(environments)
	f.Add("image \"i\" {\n for_each = {a = 1}\n reference = \"registry.example.com/app:${each.value}\"\n}\nservice \"s\" {\n image = image.i[\"a\"]\n env = { X = try(service.s.url, 1) }\n}\n")
	if src, err := os.ReadFile("../../examples/shop/kiln.hcl"); err == nil {
		f.Add(string(src))
	}
	f.Fuzz(func(t *testing.T, src string) {
		fsys := folder(map[string]string{"kiln.hcl": src})
		first, err := spec.Load(fsys, spec.Options{Branch: "feature/x"})
		if err != nil {
			if strings.Contains(diagnostics(err), "as a defect") {
				t.Fatal(diagnostics(err))
			}
			return
		}
		second, err := spec.Load(fsys, spec.Options{Branch: "feature/x"})
		if err != nil || kiln.DigestJSON(first) != kiln.DigestJSON(second) {
			t.Fatalf("not the same twice: %v", err)
		}
		formatted, err := spec.Format("kiln.hcl", []byte(src))
		if err != nil {
			t.Fatal(diagnostics(err))
		}
		again, err := spec.Format("kiln.hcl", formatted)
		if err != nil || !bytes.Equal(formatted, again) {
			t.Fatalf("not idempotent: %v\n%q\n%q", err, formatted, again)
		}
	})
}

func FuzzParseLock(f *testing.F) {
	f.Add([]byte("version = 1\nreference \"registry.example.com/aa:1\" {\n platforms = {}\n}\n"))
	f.Fuzz(func(t *testing.T, src []byte) {
		lock, err := spec.ParseLock(src)
		if err != nil {
			if strings.Contains(diagnostics(err), "as a defect") {
				t.Fatal(diagnostics(err))
			}
			return
		}
		out := spec.FormatLock(lock)
		if _, err := spec.ParseLock(out); err != nil {
			t.Fatalf("%s\n%s", diagnostics(err), out)
		}
	})
}
