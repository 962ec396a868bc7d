// Package install puts Kiln on a machine, or into the root of an image, and
// takes it off again. Items is the one list of what an installation has: users,
// folders, executables, units, completion and manual pages. What installs,
// uninstalls and packages goes by that list.
//
// It overwrites nothing that it did not write: it records what it made, and a
// file that is not in that record, or was changed since, is a conflict, found
// before anything is touched. It starts and ends nothing.
package install

import (
	"context"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/kilnproject/kiln"
)

// The accounts of an installation.
const (
	// GroupName is the group whose members may use the API.
	GroupName = "kiln"
	// GatewayUser is who the gateway is.
	GatewayUser = "kiln-gateway"
	// ReaderUser is who reads what strangers wrote.
	ReaderUser = "kiln-reader"
	// SourceUser is who fetches repositories.
	SourceUser = "kiln-source"
	// ScannerUser is who other scanners look into images as.
	ScannerUser = "kiln-scanner"
)

// The units of an installation.
const (
	DaemonUnit = "kilnd.service"
	KeeperUnit = "kiln-keep.service"
	SliceUnit  = "kiln.slice"
)

// The places that no prefix moves.
const (
	ConfigDir  = "/etc/kiln"
	ConfigFile = ConfigDir + "/kilnd.hcl"
	// RecordFile says what was installed; a package leaves none.
	RecordFile = ConfigDir + "/installed.json"
)

// Options say what to install and where.
type Options struct {
	// Root is the root of an image or chroot; empty means this machine.
	Root string
	// Prefix is where executables, completion and manual pages go, such as
	// /usr/local; units are below /usr only for the prefix /usr.
	Prefix string
	Data   string // data directory, absolute
	// Kiln and Kilnd are the executables to install, paths on this machine.
	Kiln, Kilnd string
	// Pages are completion and manual pages, named below the prefix's "share".
	Pages   []Page
	Version string // of Kiln
	// Force also replaces files that were not installed, or changed since.
	Force bool
	// Run runs a program; nil means for real.
	Run func(ctx context.Context, program string, args ...string) error
}

// Page is a small file.
type Page struct {
	Name    string // slash path
	Content []byte
}

// Kind is what an item is.
type Kind string

// The kinds of items.
const (
	KindGroup  Kind = "group"
	KindUser   Kind = "user"
	KindFolder Kind = "folder"
	KindFile   Kind = "file"
	KindLink   Kind = "link"
)

// Item is one thing that an installation has.
type Item struct {
	Kind Kind
	Name string // of an account, or an absolute path
	What string // what it is for
	Mode fs.FileMode
	// Group owns a folder or file together with root; empty means root's.
	Group string
	// Source or Text is what a file holds: a file on this machine, or this.
	Source string
	Text   []byte
	Target string // of a link
	// Yours is true for what belongs to the administrator: a file that is
	// there stays as it is, a link that was taken away stays away.
	Yours bool
}

// UnitDir is where the units of a prefix are.
func UnitDir(prefix string) string {
	if prefix == "/usr" {
		return "/usr/lib/systemd/system"
	}
	return "/etc/systemd/system"
}

// Items is everything that an installation has, in the order of its making.
func Items(o Options) []Item {
	bin, units := filepath.Join(o.Prefix, "bin"), UnitDir(o.Prefix)
	all := []Item{
		{Kind: KindGroup, Name: GroupName, What: "its members may use the API, which is as powerful as root"},
		{Kind: KindUser, Name: GatewayUser, What: "the gateway runs as it"},
		{Kind: KindUser, Name: ReaderUser, What: "what reads strangers' input runs as it"},
		{Kind: KindUser, Name: SourceUser, What: "git fetches tracked repositories as it"},
		{Kind: KindUser, Name: ScannerUser, What: "other scanners look into images as it"},
		{Kind: KindFolder, Name: o.Data, What: "the data directory", Mode: 0o711},
		{Kind: KindFolder, Name: ConfigDir, What: "the configuration's folder", Mode: 0o750, Group: GroupName},
		{Kind: KindFile, Name: ConfigFile, What: "the configuration, all of it comments", Mode: 0o640, Group: GroupName, Text: defaultConfig(o), Yours: true},
		{Kind: KindFile, Name: filepath.Join(bin, "kiln"), What: "command line, keeper and gateway", Mode: 0o755, Source: o.Kiln},
		{Kind: KindFile, Name: filepath.Join(bin, "kilnd"), What: "the control plane", Mode: 0o755, Source: o.Kilnd},
	}
	for _, name := range []string{SliceUnit, KeeperUnit, DaemonUnit} {
		all = append(all, Item{Kind: KindFile, Name: filepath.Join(units, name), What: unitWhat(name), Mode: 0o644, Text: unit(name, o)})
	}
	for _, name := range []string{KeeperUnit, DaemonUnit} {
		all = append(all, Item{
			Kind: KindLink, Name: "/etc/systemd/system/multi-user.target.wants/" + name, What: "starts it at boot",
			Target: filepath.Join(units, name), Yours: true,
		})
	}
	for _, p := range o.Pages {
		all = append(all, Item{Kind: KindFile, Name: filepath.Join(o.Prefix, "share", pagePath(o.Prefix, p.Name)), What: pageWhat(p.Name), Mode: 0o644, Text: p.Content})
	}
	return all
}

// pagePath is a page's path below "share": Debian's zsh keeps the completion of
// packages in a folder of its own.
func pagePath(prefix, name string) string {
	if prefix == "/usr" {
		name = strings.Replace(name, "zsh/site-functions/", "zsh/vendor-completions/", 1)
	}
	return filepath.FromSlash(name)
}

func unitWhat(name string) string {
	switch name {
	case DaemonUnit:
		return "the control plane's unit"
	case KeeperUnit:
		return "the unit of the keeper and the gateway"
	default:
		return "the slice of all that Kiln runs"
	}
}

func pageWhat(name string) string {
	if strings.HasPrefix(name, "man/") {
		return "manual page"
	}
	return "completion for " + strings.TrimSuffix(strings.SplitN(name, "/", 2)[0], "-completion")
}

// host is where something is installed. Its paths are relative to a root that
// no symbolic link leads out of.
type host struct {
	root *os.Root
	dir  string // of the root
	live bool   // it is this machine
	run  func(ctx context.Context, program string, args ...string) error
}

func openHost(root string, run func(context.Context, string, ...string) error) (*host, error) {
	h := &host{dir: filepath.Clean("/" + root), run: run}
	if root != "" {
		dir, err := filepath.Abs(root)
		if err != nil {
			return nil, err
		}
		h.dir = dir
	}
	h.live = h.dir == "/"
	if h.run == nil {
		h.run = runProgram
	}
	var err error
	if h.root, err = os.OpenRoot(h.dir); err != nil {
		return nil, kiln.Errorf(kiln.CodeNotFound, "--root names a folder that holds a system", "open the root: %w", err)
	}
	return h, nil
}

func (h *host) close() { _ = h.root.Close() }

// at is a path below the root. On this machine its links are followed first,
// as far as the folder is there: they may be absolute, which a root refuses.
func (h *host) at(path string) string {
	if h.live {
		path = followed(path)
	}
	if path = strings.TrimPrefix(filepath.Clean(path), "/"); path == "" {
		return "."
	}
	return path
}

// followed resolves the links in a path's folder.
func followed(path string) string {
	dir, base := filepath.Dir(path), filepath.Base(path)
	if dir == path {
		return path
	}
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		return filepath.Join(real, base)
	}
	return filepath.Join(followed(dir), base)
}

func runProgram(ctx context.Context, program string, args ...string) error {
	path, err := exec.LookPath(program)
	if err != nil {
		return kiln.Errorf(kiln.CodeUnavailable, "apt-get install passwd", "%s is not there to make accounts: %w", program, err)
	}
	out, err := exec.CommandContext(ctx, path, args...).CombinedOutput()
	if err != nil {
		return kiln.Errorf(kiln.CodeFailed, "", "%s %s: %w: %s", program, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
