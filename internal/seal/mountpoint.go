package seal

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
)

// standardPoints are in every seal. Those that end in a slash are folders.
func standardPoints() []string {
	return []string{"/dev/", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/proc/", "/run/", "/sys/", "/tmp/"}
}

// isFilePoint says whether something is mounted there on a file.
func isFilePoint(p string) bool { return slices.Contains(standardPoints(), p) }

// cleanPoints returns the mount points of a seal: absolute clean paths, the
// standard ones among them, sorted, each once.
func cleanPoints(points []string) ([]string, error) {
	all := make([]string, 0, len(points)+8)
	for _, p := range standardPoints() {
		all = append(all, path.Clean(p))
	}
	for _, p := range points {
		if !path.IsAbs(p) || strings.ContainsRune(p, 0) {
			return nil, kiln.Errorf(kiln.CodeInvalid, "write it as an absolute path", "mount point %q is not an absolute path", p)
		}
		parts, err := splitPath(p)
		if err != nil || len(parts) == 0 {
			return nil, kiln.Errorf(kiln.CodeInvalid, "name a folder below the root", "mount point %q cannot be used", p)
		}
		all = append(all, "/"+strings.Join(parts, "/"))
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// addPoint makes sure that something can be mounted at a path: on a folder,
// or on a file for /etc/hosts and its like. Symbolic links on the way are
// followed inside the tree. A link in the place of such a file is replaced,
// since what it points to is often below another mount.
func addPoint(root *node, point string) error {
	parts, err := splitPath(point)
	if err != nil {
		return fmt.Errorf("mount point %s: %w", point, err)
	}
	limits := DefaultLimits()
	v := view{upper: root, left: &limits}
	if !isFilePoint(point) {
		_, err = v.find(parts, true)
	} else {
		var in place
		if in, err = v.find(parts[:len(parts)-1], true); err == nil {
			err = addFile(in.up, parts[len(parts)-1])
		}
	}
	if err != nil {
		return kiln.Errorf(kiln.CodeInvalid, "change the image or the path", "mount point %s: %w", point, err)
	}
	return nil
}

func addFile(in *node, name string) error {
	old := in.children[name]
	switch {
	case old != nil && old.isDir():
		return errors.New("the image has a folder where a file is needed")
	case old == nil || old.kind() != unix.S_IFREG:
		in.children[name] = &node{mode: unix.S_IFREG | 0o644}
	}
	return nil
}
