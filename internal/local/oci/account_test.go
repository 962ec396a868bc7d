package oci

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	passwd = "root:x:0:0:root:/root:/bin/sh\n# comment\nbroken\nwww:x:33:33:w:/var/www:/bin/false\n"
	group  = "root:x:0:\nwww:x:33:\nlogs:x:44:www,other\n"
)

func TestResolve(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "etc/passwd", passwd)
	write(t, dir, "etc/group", group)
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for user, want := range map[string]account{
		"":         {home: "/root"},
		"www":      {uid: 33, gid: 33, groups: []uint32{44}, home: "/var/www"},
		"33":       {uid: 33, gid: 33, groups: []uint32{44}, home: "/var/www"},
		"www:logs": {uid: 33, gid: 44, home: "/var/www"},
		"1000":     {uid: 1000, home: "/"},
		"1000:7":   {uid: 1000, gid: 7, home: "/"},
	} {
		got, err := resolve(root, user)
		if err != nil {
			t.Errorf("%q: %v", user, err)
		}
		if d := cmp.Diff(want, got, cmp.AllowUnexported(account{})); d != "" {
			t.Errorf("%q: %s", user, d)
		}
	}
	for _, user := range []string{"nobody", "www:none", "-1", "4294967295", "99999999999"} {
		if _, err := resolve(root, user); err == nil {
			t.Errorf("%q was found", user)
		}
	}
}

func TestResolveHostileFiles(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "passwd")
	if err := os.WriteFile(outside, []byte("evil:x:1:1::/:/\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, make := range map[string]func(path string) error{
		"symlink out": func(p string) error { return os.Symlink(outside, p) },
		"loop":        func(p string) error { return os.Symlink("passwd", p) },
		"pipe":        func(p string) error { return syscall.Mkfifo(p, 0o600) },
		"directory":   func(p string) error { return os.Mkdir(p, 0o700) },
	} {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "etc"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := make(filepath.Join(dir, "etc/passwd")); err != nil {
			t.Fatal(err)
		}
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		if a, err := resolve(root, "evil"); err == nil {
			t.Errorf("%s: resolved to %+v", name, a)
		}
		_ = root.Close()
	}
}

func FuzzAccounts(f *testing.F) {
	f.Add(passwd)
	f.Add(group)
	f.Fuzz(func(t *testing.T, s string) {
		for _, u := range parsePasswd(strings.NewReader(s)) {
			if u.name == "" || strings.ContainsAny(u.name+u.home, ":\n\x00") {
				t.Errorf("accepted %+v", u)
			}
		}
		for _, g := range parseGroup(strings.NewReader(s)) {
			if g.name == "" {
				t.Errorf("accepted %+v", g)
			}
		}
	})
}

func write(t *testing.T, dir, name, content string) {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
