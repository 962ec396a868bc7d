// Command packaging writes what nfpm makes a Debian package of: the files of an
// installation below /usr, the scripts that dpkg runs, and nfpm's own
// configuration. Files, users and units are those of internal/install, so that
// a package and `kiln install` cannot differ.
package main

import (
	"bytes"
	"compress/gzip"
	"embed"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/kilnproject/kiln/internal/cli"
	"github.com/kilnproject/kiln/internal/install"
)

//go:embed script
var scripts embed.FS

// maintainer is whom Debian's tools name.
const maintainer = "The Kiln authors <kiln@kilnproject.invalid>"

func main() {
	var o options
	epoch := flag.Int64("epoch", 0, "time of the package, in seconds since 1970")
	flag.StringVar(&o.version, "version", "", "version, as git describe says it")
	flag.StringVar(&o.arch, "arch", "amd64", "architecture, in Go's words")
	flag.StringVar(&o.bin, "bin", "bin", "folder of the executables")
	flag.StringVar(&o.out, "out", "", "folder to write to")
	flag.Parse()
	o.when = time.Unix(*epoch, 0).UTC()
	if err := write(o); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

// options say what is packaged.
type options struct {
	version, arch, bin, out string
	when                    time.Time
}

// content is one file or folder, in nfpm's words.
type content struct {
	Source string `json:"src,omitempty"`
	Name   string `json:"dst"`
	Type   string `json:"type,omitempty"`
	Info   info   `json:"file_info"`
}

type info struct {
	Mode  int       `json:"mode"`
	Owner string    `json:"owner"`
	Group string    `json:"group"`
	Time  time.Time `json:"mtime"`
}

// write writes the folder.
func write(o options) error {
	pages, err := cli.Pages(o.version)
	if err != nil {
		return err
	}
	installation := install.Options{
		Prefix: "/usr", Data: cli.DefaultData, Pages: pages, Version: o.version,
		Kiln: filepath.Join(o.bin, "kiln"), Kilnd: filepath.Join(o.bin, "kilnd"),
	}
	if err := os.RemoveAll(o.out); err != nil {
		return err
	}
	items := install.Items(installation)
	contents, err := writeTree(o, append(items, documents(o)...))
	if err != nil {
		return err
	}
	for _, name := range []string{"preinst", "postinst", "prerm", "postrm"} {
		text, err := script(name, items)
		if err != nil {
			return err
		}
		if err := writeFile(filepath.Join(o.out, name), text, 0o755); err != nil {
			return err
		}
	}
	config, err := json.MarshalIndent(configuration(o, contents), "", "  ") // JSON is YAML
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(o.out, "nfpm.yaml"), config, 0o644)
}

// writeTree writes the items' files and describes them.
func writeTree(o options, items []install.Item) ([]content, error) {
	var all []content
	for _, i := range items {
		c := content{Name: i.Name, Info: info{Mode: int(i.Mode), Owner: "root", Group: "root", Time: o.when}}
		switch i.Kind {
		case install.KindFolder:
			c.Type = "dir"
		case install.KindFile:
			c.Source = filepath.Join(o.out, "tree", i.Name)
			if i.Source != "" {
				c.Source = i.Source
			} else if err := writeFile(c.Source, i.Text, i.Mode); err != nil {
				return nil, err
			}
			if i.Yours {
				c.Type = "config|noreplace"
			}
		default: // the scripts make accounts, and the links that start units
			continue
		}
		all = append(all, c)
	}
	return all, nil
}

// documents are what a Debian package has besides.
func documents(o options) []install.Item {
	changelog := fmt.Sprintf("kiln (%s) unstable; urgency=medium\n\n  * See CHANGELOG.md of the sources.\n\n -- %s  %s\n",
		debianVersion(o.version, o.when), maintainer, o.when.Format(time.RFC1123Z))
	overrides := `# One file runs on every machine.
kiln: statically-linked-binary [usr/bin/kiln]
kiln: statically-linked-binary [usr/bin/kilnd]
# Others pass through the data directory, and may not list it.
kiln: non-standard-dir-perm 0711 != 0755 [var/lib/kiln/]
# The configuration is the group's to read: it may name who is notified.
kiln: non-standard-dir-perm 0750 != 0755 [etc/kiln/]
kiln: non-standard-file-perm 0640 != 0644 [etc/kiln/kilnd.hcl]
`
	copyright := `Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: Kiln

Files: *
Copyright: 2026 The Kiln authors
License: Apache-2.0
 On Debian systems the whole license is in /usr/share/common-licenses/Apache-2.0.
`
	file := func(name, text string) install.Item {
		return install.Item{Kind: install.KindFile, Name: name, Mode: 0o644, Text: []byte(text)}
	}
	return []install.Item{
		file("/usr/share/doc/kiln/copyright", copyright),
		file("/usr/share/doc/kiln/changelog.gz", pack(changelog)),
		file("/usr/share/lintian/overrides/kiln", overrides),
	}
}

func pack(text string) string {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err == nil {
		_, err = io.WriteString(z, text)
	}
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		panic(err) // nothing can fail in memory
	}
	return b.String()
}

// script is one of dpkg's, with its places filled.
func script(name string, items []install.Item) ([]byte, error) {
	text, err := scripts.ReadFile("script/" + name)
	if err != nil {
		return nil, err
	}
	var accounts, removals, groups []string
	for _, i := range items {
		switch {
		case i.Kind == install.KindGroup || i.Kind == install.KindUser:
			database := "passwd"
			if i.Kind == install.KindGroup {
				database = "group"
			}
			accounts = append(accounts, fmt.Sprintf("getent %s %s >/dev/null || %s", database, i.Name, strings.Join(install.MakeAccount(i), " ")))
			removals = append([]string{fmt.Sprintf("! getent %s %s >/dev/null || %s || true", database, i.Name, strings.Join(install.RemoveAccount(i.Kind, i.Name), " "))}, removals...)
		case i.Group != "":
			groups = append(groups, i.Name)
		}
	}
	return []byte(strings.NewReplacer(
		"@ACCOUNTS@", strings.Join(accounts, "\n"), "@NOACCOUNTS@", strings.Join(removals, "\n"), "@GROUPS@", strings.Join(groups, " "),
		"@GROUP@", install.GroupName, "@DAEMON@", install.DaemonUnit, "@KEEPER@", install.KeeperUnit,
		"@DATA@", cli.DefaultData, "@CONFIG@", install.ConfigDir, "@RECORD@", install.RecordFile,
	).Replace(string(text))), nil
}

// configuration is nfpm's.
func configuration(o options, contents []content) map[string]any {
	hooks := map[string]string{}
	for hook, name := range map[string]string{"preinstall": "preinst", "postinstall": "postinst", "preremove": "prerm", "postremove": "postrm"} {
		hooks[hook] = filepath.Join(o.out, name)
	}
	return map[string]any{
		"name": "kiln", "arch": o.arch, "platform": "linux", "version": debianVersion(o.version, o.when), "version_schema": "none",
		"section": "admin", "priority": "optional", "maintainer": maintainer, "homepage": "https://github.com/kilnproject/kiln", "mtime": o.when,
		"description": `immutable services, from a definition to live traffic
Kiln bakes images from a definition in Git, seals them into read-only root file
systems, runs them, checks them, switches traffic to them in one step, and goes
back in one step. Nothing that runs is ever modified.`,
		// What every instance needs; what some definitions need is recommended.
		"depends":    []string{"runc (>= 1.1) | crun (>= 1.8)", "catatonit | tini", "passwd"},
		"recommends": []string{"git", "mmdebstrap", "uidmap", "debian-archive-keyring", "nftables", "ca-certificates"},
		"contents":   contents,
		"scripts":    hooks,
	}
}

var released = regexp.MustCompile(`^v?([0-9]+(?:\.[0-9]+)*)(?:-([0-9]+)-g([0-9a-f]+))?(-dirty)?$`)

// debianVersion is a version as `git describe --tags --always --dirty` prints
// it, in dpkg's order (deb-version(7)): what came after a release sorts after
// it, and what came before any by its time.
func debianVersion(version string, when time.Time) string {
	m := released.FindStringSubmatch(version)
	// A commit's digest may have no letter in it.
	if m == nil || !strings.HasPrefix(version, "v") && !strings.Contains(m[1], ".") {
		commit, dirty := strings.CutSuffix(version, "-dirty")
		out := "0~git" + when.Format("20060102150405") + "." + regexp.MustCompile(`[^A-Za-z0-9]`).ReplaceAllString(commit, ".")
		if dirty {
			out += "+dirty"
		}
		return out
	}
	out := m[1]
	if m[2] != "" {
		out += "+" + m[2] + ".g" + m[3]
	}
	switch {
	case m[4] != "" && m[2] == "":
		out += "+0.dirty" // before what is committed on top
	case m[4] != "":
		out += "+dirty"
	}
	return out
}

func writeFile(path string, text []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // a build's folder
		return err
	}
	return os.WriteFile(path, text, mode)
}
