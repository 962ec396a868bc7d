package idmap_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/kilnproject/kiln/internal/local/idmap"
)

func TestMount(t *testing.T) {
	if os.Geteuid() != 0 || os.Getenv("KILN_TEST_ROOT") != "1" {
		t.Skip("needs root and KILN_TEST_ROOT=1")
	}
	const base = 1_900_019_712
	ns, err := idmap.Userns(base)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	source, target := t.TempDir(), filepath.Join(t.TempDir(), "target")
	if err := os.WriteFile(filepath.Join(source, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(target, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := idmap.Mount(source, target, ns); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := idmap.Unmount(target); err != nil {
			t.Error(err)
		}
	})
	info, err := os.Stat(filepath.Join(target, "file"))
	if err != nil {
		t.Fatal(err)
	}
	if uid := info.Sys().(*syscall.Stat_t).Uid; uid != base {
		t.Errorf("root's file belongs to %d, want %d", uid, base)
	}
	if !idmap.Same(source, target) {
		t.Error("the mount does not show its source")
	}
	if err := os.WriteFile(filepath.Join(target, "new"), nil, 0o600); err == nil {
		t.Error("the mount can be written to")
	}
}
