package scaffold_test

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/scaffold"
	"github.com/kilnproject/kiln/internal/spec"
)

var update = flag.Bool("update", false, "write the golden files")

func folder(files map[string]string) fstest.MapFS {
	out := fstest.MapFS{}
	for name, content := range files {
		out[name] = &fstest.MapFile{Data: []byte(content), Mode: 0o644}
	}
	return out
}

// generate runs Generate and checks what every result must hold: it is
// canonical, and it loads without an error.
func generate(t *testing.T, files map[string]string) (string, []string) {
	t.Helper()
	made, notes, err := scaffold.Generate(folder(files))
	if err != nil {
		t.Fatal(err)
	}
	src := made["kiln.hcl"]
	check(t, src)
	return string(src), notes
}

func check(t *testing.T, src []byte) *spec.Definition {
	t.Helper()
	formatted, err := spec.Format("kiln.hcl", src)
	if err != nil {
		t.Fatalf("not valid: %v\n%s", explain(err), src)
	}
	if !bytes.Equal(formatted, src) {
		t.Errorf("not canonical: %s", cmp.Diff(string(formatted), string(src)))
	}
	def, err := spec.Load(fstest.MapFS{"kiln.hcl": &fstest.MapFile{Data: src, Mode: 0o644}}, spec.Options{})
	if err != nil {
		t.Fatalf("does not load: %v\n%s", explain(err), src)
	}
	return def
}

func explain(err error) string {
	var e *kiln.Error
	if errors.As(err, &e) {
		return e.Message + ": " + kiln.Diagnostics(e.Diagnostics).Error()
	}
	return err.Error()
}

// TestGolden translates every testdata/NAME/ and compares with NAME.golden.hcl.
func TestGolden(t *testing.T) {
	entries, err := os.ReadDir("testdata")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !e.IsDir() || e.Name() == "fuzz" {
			continue
		}
		dir := filepath.Join("testdata", e.Name())
		t.Run(filepath.Base(dir), func(t *testing.T) {
			t.Setenv("HOSTILE", "leaked")
			t.Setenv("DB_PASSWORD", "leaked")
			root, err := os.OpenRoot(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = root.Close() }()
			files, notes, err := scaffold.Generate(root.FS())
			if err != nil {
				t.Fatal(err)
			}
			src := files["kiln.hcl"]
			if bytes.Contains(src, []byte("leaked")) {
				t.Error("the machine's environment leaked")
			}
			got := string(src) + "\n# notes:\n# " + strings.Join(notes, "\n# ") + "\n"
			golden := filepath.Join("testdata", filepath.Base(dir)+".golden.hcl")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("run with -update after looking at this: %s", diff)
			}
			check(t, src)
		})
	}
}

func TestStarter(t *testing.T) {
	files, notes, err := scaffold.Generate(folder(nil))
	if err != nil {
		t.Fatal(err)
	}
	def := check(t, files["kiln.hcl"])
	if len(def.Spec.Images) != 2 || len(files) != 3 || len(notes) != 1 || def.Spec.Routes[0].Host != "web.localhost" {
		t.Errorf("unexpected starter: %v %v", files, notes)
	}
	_, _, err = scaffold.Generate(folder(map[string]string{"web/index.html": "mine"}))
	if !errors.Is(err, kiln.ErrConflict) {
		t.Errorf("would overwrite: %v", err)
	}
}

func TestRefusesWhatIsThere(t *testing.T) {
	_, _, err := scaffold.Generate(folder(map[string]string{"shop.hcl": "", "Dockerfile": "FROM scratch"}))
	if !errors.Is(err, kiln.ErrConflict) {
		t.Errorf("got %v", err)
	}
}

func TestHostileTextStaysText(t *testing.T) {
	src, _ := generate(t, map[string]string{"compose.yaml": `
services:
  a_b.c:
    image: "x/y:1"
    environment:
      A: "$${file(\"/etc/passwd\")} %{ if true }\" }\nservice \"evil\" { image = image.x"
    volumes: ["/host\nimage \"evil\" {}:/data:ro"]
    healthcheck: {test: "true\nroute \"evil\" {}"}
    user: "x\ny"
`})
	if strings.Contains(src, "\nservice \"evil\"") || strings.Contains(src, "\nimage \"evil\"") || strings.Contains(src, "\nroute \"evil\"") {
		t.Errorf("text became code:\n%s", src)
	}
}

func FuzzCompose(f *testing.F) {
	files, err := filepath.Glob("testdata/*/*compose*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range files {
		src, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(src)
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		made, _, err := scaffold.Generate(fstest.MapFS{"compose.yaml": &fstest.MapFile{Data: src, Mode: 0o644}})
		if err == nil {
			check(t, made["kiln.hcl"])
		}
	})
}

func FuzzDockerfile(f *testing.F) {
	f.Add([]byte("FROM a AS b\nEXPOSE 80/tcp $PORT\nHEALTHCHECK --interval=5s CMD curl -f http://localhost/\nFROM b\nVOLUME /data"))
	f.Fuzz(func(t *testing.T, src []byte) {
		made, _, err := scaffold.Generate(fstest.MapFS{"Dockerfile": &fstest.MapFile{Data: src, Mode: 0o644}})
		if err == nil {
			check(t, made["kiln.hcl"])
		}
	})
}
