package oci

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
)

// maxAccounts bounds what is read of an image's passwd and group files.
const maxAccounts = 1 << 20

// account is who a process runs as, in the image's own numbers.
type account struct {
	uid, gid uint32
	groups   []uint32 // supplementary
	home     string
}

// passwdEntry and groupEntry are the fields that matter of passwd(5) and
// group(5).
type passwdEntry struct {
	name     string
	uid, gid uint32
	home     string
}

type groupEntry struct {
	name    string
	gid     uint32
	members []string
}

// resolve finds the account that user names: "", "uid", "uid:gid", or names
// of the image's passwd and group files. The files come from a stranger: they
// are opened below the root only, must be regular, and are read up to 1 MiB.
func resolve(root *os.Root, user string) (account, error) {
	users, err := read(root, "etc/passwd", parsePasswd)
	if err != nil {
		return account{}, err
	}
	groups, err := read(root, "etc/group", parseGroup)
	if err != nil {
		return account{}, err
	}
	name, group, hasGroup := strings.Cut(user, ":")
	if name == "" {
		name = "0"
	}
	a := account{home: "/"}
	entry, known := findUser(users, name)
	switch {
	case known:
		a.uid, a.gid = entry.uid, entry.gid
		if strings.HasPrefix(entry.home, "/") {
			a.home = entry.home
		}
	default:
		if a.uid, err = parseID(name); err != nil {
			return account{}, unknown("user", name)
		}
	}
	if hasGroup && group != "" {
		a.gid, err = findGroup(groups, group)
		return a, err
	}
	if known {
		for _, g := range groups {
			if g.gid != a.gid && slices.Contains(g.members, entry.name) {
				a.groups = append(a.groups, g.gid)
			}
		}
	}
	return a, nil
}

func findUser(users []passwdEntry, name string) (passwdEntry, bool) {
	for _, u := range users {
		if u.name == name {
			return u, true
		}
	}
	if id, err := parseID(name); err == nil {
		for _, u := range users {
			if u.uid == id {
				return u, true
			}
		}
	}
	return passwdEntry{}, false
}

func findGroup(groups []groupEntry, name string) (uint32, error) {
	for _, g := range groups {
		if g.name == name {
			return g.gid, nil
		}
	}
	id, err := parseID(name)
	if err != nil {
		return 0, unknown("group", name)
	}
	return id, nil
}

func unknown(kind, name string) error {
	return kiln.Errorf(kiln.CodeInvalid, "name one that the image's /etc/passwd or /etc/group has, or give its number",
		"the image has no %s %q", kind, name)
}

// parseID reads a user or group number; the largest means "none" to the
// kernel and is refused.
func parseID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return 0, err
	}
	if n == math.MaxUint32 {
		return 0, fmt.Errorf("%d is not a user or group", n)
	}
	return uint32(n), nil
}

// read parses a file of the image; a missing one is empty.
func read[T any](root *os.Root, name string, parse func(io.Reader) []T) ([]T, error) {
	// Not blocking: the image may have a pipe there.
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open /%s of the image: %w", name, err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("open /%s of the image: %w", name, err)
	}
	if !info.Mode().IsRegular() {
		return nil, kiln.Errorf(kiln.CodeInvalid, "bake the image with a regular file there", "/%s of the image is not a regular file", name)
	}
	return parse(io.LimitReader(f, maxAccounts)), nil
}

// parsePasswd reads what is well-formed and skips the rest, like the C
// library.
func parsePasswd(r io.Reader) []passwdEntry {
	var out []passwdEntry
	eachLine(r, func(f []string) {
		if len(f) < 7 || f[0] == "" {
			return
		}
		uid, err1 := parseID(f[2])
		gid, err2 := parseID(f[3])
		if err1 == nil && err2 == nil {
			out = append(out, passwdEntry{name: f[0], uid: uid, gid: gid, home: f[5]})
		}
	})
	return out
}

func parseGroup(r io.Reader) []groupEntry {
	var out []groupEntry
	eachLine(r, func(f []string) {
		if len(f) < 4 || f[0] == "" {
			return
		}
		gid, err := parseID(f[2])
		if err != nil {
			return
		}
		members := strings.FieldsFunc(f[3], func(r rune) bool { return r == ',' })
		out = append(out, groupEntry{name: f[0], gid: gid, members: members})
	})
	return out
}

func eachLine(r io.Reader, fields func([]string)) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxAccounts)
	for lines.Scan() {
		if text := strings.TrimSpace(lines.Text()); text != "" && text[0] != '#' && !strings.ContainsRune(text, 0) {
			fields(strings.Split(text, ":"))
		}
	}
}
