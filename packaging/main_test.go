package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnproject/kiln/internal/cli"
	"github.com/kilnproject/kiln/internal/install"
)

func written(t *testing.T) (options, []install.Item) {
	t.Helper()
	dir := t.TempDir()
	o := options{version: "v1.2.3", arch: "amd64", bin: filepath.Join(dir, "bin"), out: filepath.Join(dir, "out"), when: time.Unix(1700000000, 0).UTC()}
	if err := write(o); err != nil {
		t.Fatal(err)
	}
	pages, err := cli.Pages(o.version)
	if err != nil {
		t.Fatal(err)
	}
	return o, install.Items(install.Options{Prefix: "/usr", Data: cli.DefaultData, Pages: pages, Version: o.version, Kiln: filepath.Join(o.bin, "kiln"), Kilnd: filepath.Join(o.bin, "kilnd")})
}

// TestPackageHasWhatInstallPuts demands the same files with the same content.
func TestPackageHasWhatInstallPuts(t *testing.T) {
	o, items := written(t)
	text, err := os.ReadFile(filepath.Join(o.out, "nfpm.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Contents []content
		Version  string
	}
	if err := json.Unmarshal(text, &config); err != nil {
		t.Fatal(err)
	}
	if config.Version != "1.2.3" {
		t.Errorf("version %s", config.Version)
	}
	packed := map[string]content{}
	for _, c := range config.Contents {
		packed[c.Name] = c
	}
	files := 0
	for _, i := range items {
		if i.Kind != install.KindFile && i.Kind != install.KindFolder {
			continue
		}
		files++
		c, ok := packed[i.Name]
		if !ok || c.Info.Mode != int(i.Mode) || (c.Type == "config|noreplace") != (i.Yours && i.Kind == install.KindFile) {
			t.Errorf("%s: %+v", i.Name, c)
		}
		if i.Source != "" && c.Source != i.Source {
			t.Errorf("%s is of %s", i.Name, c.Source)
		}
		if i.Kind == install.KindFile && i.Source == "" {
			got, err := os.ReadFile(c.Source)
			if err != nil || string(got) != string(i.Text) {
				t.Errorf("%s: %v %s", i.Name, err, cmp.Diff(string(i.Text), string(got)))
			}
		}
	}
	if files < 20 || files != len(config.Contents)-len(documents(o)) {
		t.Errorf("%d files of %d", files, len(config.Contents))
	}
}

// TestScriptsAreWhole demands that the shell reads each and that no place is
// left unfilled.
func TestScriptsAreWhole(t *testing.T) {
	o, items := written(t)
	for _, name := range []string{"preinst", "postinst", "prerm", "postrm"} {
		path := filepath.Join(o.out, name)
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if at := strings.IndexByte(string(text), '@'); at >= 0 {
			t.Errorf("%s: %s", name, text[at:])
		}
		if out, err := exec.CommandContext(t.Context(), "sh", "-n", path).CombinedOutput(); err != nil {
			t.Errorf("%s: %v %s", name, err, out)
		}
	}
	postinst, err := os.ReadFile(filepath.Join(o.out, "postinst"))
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range items {
		if (i.Kind == install.KindUser || i.Kind == install.KindGroup) && !strings.Contains(string(postinst), strings.Join(install.MakeAccount(i), " ")) {
			t.Errorf("%s is not made", i.Name)
		}
	}
}

// TestVersionsSort demands dpkg's order of what was built one after another.
func TestVersionsSort(t *testing.T) {
	early, late := time.Unix(1700000000, 0).UTC(), time.Unix(1800000000, 0).UTC()
	inOrder := []string{
		debianVersion("72b11c3", early), debianVersion("1234567", late), debianVersion("1234567-dirty", late),
		debianVersion("v0.9.0", late), debianVersion("v0.10.0", early), debianVersion("v0.10.0-dirty", early),
		debianVersion("v0.10.0-2-gabcdef0", early), debianVersion("v0.10.0-10-g1234567", early), debianVersion("v0.10.1", early),
	}
	want := []string{
		"0~git20231114221320.72b11c3", "0~git20270115080000.1234567", "0~git20270115080000.1234567+dirty",
		"0.9.0", "0.10.0", "0.10.0+0.dirty", "0.10.0+2.gabcdef0", "0.10.0+10.g1234567", "0.10.1",
	}
	if !slices.Equal(inOrder, want) {
		t.Fatal(cmp.Diff(want, inOrder))
	}
	dpkg, err := exec.LookPath("dpkg")
	if err != nil {
		t.Skip("dpkg is not there to ask")
	}
	for i := 1; i < len(inOrder); i++ {
		if err := exec.CommandContext(t.Context(), dpkg, "--compare-versions", inOrder[i-1], "lt", inOrder[i]).Run(); err != nil {
			t.Errorf("%s is not before %s: %v", inOrder[i-1], inOrder[i], err)
		}
	}
}
