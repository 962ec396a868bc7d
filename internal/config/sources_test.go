package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnproject/kiln"
)

func TestSources(t *testing.T) {
	c, warnings, err := Parse("/etc/kiln/kilnd.hcl", []byte(`
source "shop" {
  repository  = "https://git.example.com/shop.git"
  folder      = "deploy/shop"
  interval    = "30s"
  credentials = "/etc/kiln/shop.token"
}
source "api" { repository = "/srv/git/api.git" }
source "web" {
  repository  = "git@git.example.com:web.git"
  credentials = "/etc/kiln/web.key"
}
`), options(t))
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	want := []Source{
		{Name: "api", Repository: "/srv/git/api.git", Protocol: "file", Folder: ".", Interval: time.Minute},
		{Name: "shop", Repository: "https://git.example.com/shop.git", Protocol: "https", Folder: "deploy/shop", Interval: 30 * time.Second, CredentialsFile: "/etc/kiln/shop.token"},
		{Name: "web", Repository: "git@git.example.com:web.git", Protocol: "ssh", Folder: ".", Interval: time.Minute, CredentialsFile: "/etc/kiln/web.key"},
	}
	if diff := cmp.Diff(want, c.Sources); diff != "" {
		t.Error(diff)
	}
}

func TestRepositories(t *testing.T) {
	for repository, want := range map[string]string{
		"https://git.example.com/a.git": "https", "https://git.example.com:8443/a": "https", "ssh://git@h.example.com:22/a.git": "ssh",
		"git@h.example.com:team/a.git": "ssh", "/srv/a.git": "file",
		"": "", "a.git": "", "../a.git": "", "/srv/../a.git": "", "--upload-pack=x": "", "-u@h:x": "", "ext::sh -c x": "", "ext::x": "",
		"a@b::x": "", "a@-oProxyCommand=x:y": "", "ssh://-oProxyCommand=x/y": "", "ssh://-l@h/y": "", "ssh://u:p@h/y": "", "git://h/a": "",
		"http://h/a": "", "https://u:p@h/a": "", "https://u@h/a": "", "https://h/a?x": "", "https://h/a\nb": "", "file:///srv/a.git": "",
		"https://h/\x1b[2J": "", "https://" + strings.Repeat("h", 1000): "",
	} {
		got, problem := protocol(repository)
		if problem != "" {
			got = ""
		}
		if got != want {
			t.Errorf("%q: %q %s, want %q", repository, got, problem, want)
		}
	}
}

func TestSourcesThatAreWrong(t *testing.T) {
	for text, want := range map[string]string{
		"source \"a\" {\n}": `The argument "repository" is required here`,
		"source \"a\" {\n  repository = \"https://u:p@h/a\"\n}":                                      `which everybody who reads the file would have`,
		"source \"a\" {\n  repository = \"http://h/a\"\n}":                                           `is in the clear`,
		"source \"a\" {\n  repository = \"git@h:a.git\"\n}":                                          `No key`,
		"source \"a\" {\n  repository = \"/srv/a\"\n  credentials = \"/k\"\n}":                       `Not for a path`,
		"source \"a\" {\n  repository = \"/srv/a\"\n  interval = \"1s\"\n}":                          `interval must be from 10s to 24h`,
		"source \"a\" {\n  repository = \"/srv/a\"\n  folder = \"../b\"\n}":                          `Not a folder of the repository`,
		"source \"a\" {\n  repository = \"/srv/a\"\n  folder = \"/b\"\n}":                            `Not a folder of the repository`,
		"source \"../a\" {\n  repository = \"/srv/a\"\n}":                                            `is not a name`,
		"source \"a\" {\n  repository = \"/srv/a\"\n}\nsource \"a\" {\n  repository = \"/srv/b\"\n}": `Duplicate source`,
	} {
		if got := said(t, text, options(t)); !strings.Contains(got, want) {
			t.Errorf("%s\n got %s\nwant %s", text, got, want)
		}
	}
}

// TestCredentialsAreTheirOwnersAlone has a file that others may read.
func TestCredentialsAreTheirOwnersAlone(t *testing.T) {
	dir := t.TempDir()
	token, file := filepath.Join(dir, "token"), filepath.Join(dir, FileName)
	for path, text := range map[string]string{token: "secret", file: "source \"a\" {\n  repository = \"https://h/a\"\n  credentials = \"" + token + "\"\n}\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := Load(file, options(t)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(token, 0o640); err != nil {
		t.Fatal(err)
	}
	_, _, err := Load(file, options(t))
	var refused *kiln.Error
	if !errors.As(err, &refused) || !strings.Contains(kiln.Diagnostics(refused.Diagnostics).Error(), "others than its owner may read or change it") {
		t.Errorf("a token that the group may read: %v", err)
	}
}
