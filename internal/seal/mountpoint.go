package seal

import (
	"errors"
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

func isStandard(p string) bool { return isFilePoint(p) || slices.Contains(standardPoints(), p+"/") }

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
// since what it points to is often below another mount. A folder that was not
// there gets the mode of /tmp, so that a tmpfs which takes over the mode of
// what it covers can be written to; standard ones but /tmp get 0755. It
// reports whether it added the point.
func addPoint(root *node, point string) (added bool, err error) {
	parts, err := splitPath(point)
	if err == nil {
		limits := DefaultLimits()
		v := view{upper: root, left: &limits}
		if isFilePoint(point) {
			added, err = addFile(v, parts)
		} else {
			added, err = addFolder(v, parts, point)
		}
	}
	if err != nil {
		return false, kiln.Errorf(kiln.CodeInvalid, "change the image or the path", "mount point %s: %w", point, err)
	}
	return added, nil
}

func addFolder(v view, parts []string, point string) (bool, error) {
	_, err := v.find(parts, false)
	if !errors.Is(err, errAbsent) {
		return false, err
	}
	at, err := v.find(parts, true)
	if err != nil {
		return false, err
	}
	if point == "/tmp" || !isStandard(point) {
		at.up.mode |= 0o1777
	}
	return true, nil
}

func addFile(v view, parts []string) (bool, error) {
	at, err := v.find(parts[:len(parts)-1], true)
	if err != nil {
		return false, err
	}
	name := parts[len(parts)-1]
	old := at.up.children[name]
	switch {
	case old != nil && old.isDir():
		return false, errors.New("the image has a folder where a file is needed")
	case old == nil || old.kind() != unix.S_IFREG:
		at.up.children[name] = &node{mode: unix.S_IFREG | 0o644}
		return true, nil
	default:
		return false, nil
	}
}
