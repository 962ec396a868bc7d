package install

import (
	"context"
	"errors"
	"io/fs"
	"strconv"
	"strings"
)

// MakeAccount is the command that makes a group or a user with a group of its
// own; RemoveAccount is the one that takes it away. Both are of Debian's passwd.
func MakeAccount(i Item) []string {
	if i.Kind == KindGroup {
		return []string{"groupadd", "--system", i.Name}
	}
	return []string{
		"useradd", "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent",
		"--shell", "/usr/sbin/nologin", "--comment", "Kiln", i.Name,
	}
}

// RemoveAccount is the opposite of MakeAccount.
func RemoveAccount(kind Kind, name string) []string {
	if kind == KindGroup {
		return []string{"groupdel", name}
	}
	return []string{"userdel", name}
}

// change runs an account's command on the host's files.
func (h *host) change(ctx context.Context, command []string) error {
	args := command[1:]
	if !h.live {
		args = append([]string{"--prefix", h.dir}, args...)
	}
	return h.run(ctx, command[0], args...)
}

// account is the number of a user or a group in the host's own files, as
// passwd(5) and group(5) say.
func (h *host) account(kind Kind, name string) (id int, found bool, err error) {
	file := "/etc/passwd"
	if kind == KindGroup {
		file = "/etc/group"
	}
	b, err := h.root.ReadFile(h.at(file))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	for line := range strings.Lines(string(b)) {
		fields := strings.Split(strings.TrimSpace(line), ":")
		if len(fields) < 3 || fields[0] != name {
			continue
		}
		id, err := strconv.Atoi(fields[2])
		return id, err == nil, err
	}
	return 0, false, nil
}
