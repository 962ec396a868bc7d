package lint

import (
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/kilnproject/kiln"
)

// maxFiles bounds the tree of an image.
const maxFiles = 5_000_000

// Tree judges the files of the flattened tree that added layers brought;
// layerOf says which layer a path, absolute in the image, came with. Call it
// after Layer was called for all layers.
func (l *Lint) Tree(tree fs.FS, layerOf func(path string) kiln.Digest) error {
	files := 0
	err := fs.WalkDir(tree, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if files++; files > l.maxFiles {
			return kiln.Errorf(kiln.CodeInvalid, "split the image", "the image has more than %d files", l.maxFiles)
		}
		at := rooted(name)
		layer := layerOf(at)
		if !l.added[layer] || entry.Type()&fs.ModeSymlink != 0 {
			return nil
		}
		info, err := entry.Info()
		if err != nil {
			return fmt.Errorf("look at %s: %w", at, err)
		}
		l.file(at, info.Mode(), layer)
		return nil
	})
	if err != nil {
		return fmt.Errorf("read the image's tree: %w", err)
	}
	return nil
}

// rooted makes a path of the image absolute.
func rooted(name string) string { return path.Clean("/" + name) }

// file judges one file or folder.
func (l *Lint) file(at string, mode fs.FileMode, layer kiln.Digest) {
	shown := clean(at)
	if mode.IsRegular() && mode&fs.ModeSetuid != 0 {
		l.add(Setuid, "a set-user-id file", shown, layer)
	}
	if mode.IsRegular() && mode&fs.ModeSetgid != 0 && mode&0o010 != 0 {
		l.add(Setuid, "a set-group-id file", shown, layer)
	}
	if mode.IsRegular() && mode&0o002 != 0 {
		l.add(WorldWritable, "a file that everybody may write to", shown, layer)
	}
	if mode.IsDir() && mode&0o002 != 0 && mode&fs.ModeSticky == 0 {
		l.add(WorldWritable, "a folder that everybody may write to, without the sticky bit", shown, layer)
	}
	if mode.IsRegular() && mode&0o111 != 0 {
		if rule, what := program(at); rule != "" {
			l.add(rule, what, shown, layer)
		}
	}
}

// version is what distributions put behind the name of a program: "gcc-12",
// "python3.11".
var version = regexp.MustCompile(`-?[0-9]+(\.[0-9]+)*$`)

// program says which rule is about a program, by its name and folder.
func program(at string) (rule, what string) {
	name := path.Base(at)
	bare := version.ReplaceAllString(name, "")
	in := func(list ...string) bool { return slices.Contains(list, name) || slices.Contains(list, bare) }
	switch {
	case in("sshd", "dropbear", "dropbearmulti", "sshd-session", "tinysshd"):
		return SSHD, "an SSH daemon"
	case !inPrograms(at):
		return "", ""
	case in("sh", "bash", "dash", "ash", "zsh", "fish", "ksh", "mksh", "csh", "tcsh", "yash", "busybox", "toybox", "pwsh"):
		return Shell, "a shell"
	case in("apt", "apt-get", "dpkg", "apk", "yum", "dnf", "microdnf", "tdnf", "rpm", "zypper", "pacman", "pip", "pipx", "npm", "yarn", "pnpm", "gem", "conda", "mamba", "uv"):
		return PackageManager, "a package manager"
	case in("gcc", "g++", "cc", "c++", "cpp", "clang", "clang++", "tcc", "rustc", "javac", "ghc", "gfortran", "ld", "ld.bfd", "ld.gold", "ld.lld", "go", "zig", "ocamlopt", "ldc2", "fpc"),
		strings.HasSuffix(bare, "-gcc"), strings.HasSuffix(bare, "-g++"), strings.HasSuffix(bare, "-clang"):
		return Compiler, "a compiler"
	}
	return "", ""
}

// inPrograms says whether a file is where programs are: a folder called bin or
// sbin.
func inPrograms(at string) bool {
	folder := path.Base(path.Dir(at))
	return folder == "bin" || folder == "sbin"
}
