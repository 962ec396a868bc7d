package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/test/rig"
)

// smallDisk makes the rig's folders on a file system of their own.
func smallDisk(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(dir) })
	if os.Geteuid() != 0 || os.Getenv("KILN_TEST_ROOT") != "1" {
		return dir // the rig skips
	}
	if err := unix.Mount("kiln-test", dir, "tmpfs", 0, "size=768m,mode=0755"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, errors.Join(err, unix.Unmount(dir, unix.MNT_DETACH)))
		}
	})
	t.Setenv("TMPDIR", dir)
	return dir
}

// fill takes all room of a disk.
func fill(t *testing.T, dir string) (path string) {
	t.Helper()
	path = filepath.Join(dir, "filler")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	zeros := make([]byte, 1<<20)
	for step := len(zeros); step > 0; {
		if _, err := f.Write(zeros[:step]); errors.Is(err, unix.ENOSPC) {
			step /= 2
		} else if err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func TestARollbackWorksOnAFullDisk(t *testing.T) {
	disk := smallDisk(t)
	r := newRig(t)
	r.Write("kiln.hcl", one("1", 2, ""))
	r.Kiln("up")
	r.Write("kiln.hcl", one("2", 2, ""))
	r.Kiln("up")
	reserve := filepath.Join(r.Data, "ledger", "reserve")
	if _, err := os.Stat(reserve); err != nil {
		t.Fatalf("no reserve is held: %v", err)
	}
	filler := fill(t, disk)
	r.Kiln("rollback")
	if _, _, body := r.Get("web.test", "/"); body != "1" {
		t.Errorf("after the rollback: %q", body)
	}
	if events := r.Kiln("events"); !strings.Contains(events, "disk.full") {
		t.Errorf("no event says that the disk is full:\n%s", events)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	r.Eventually(rig.Longest, "the reserve is held again", func() error {
		info, err := os.Stat(reserve)
		if err == nil && info.Size() < 16<<20 {
			err = fmt.Errorf("it has %d bytes", info.Size())
		}
		return err
	})
	r.Kiln("up", "--again")
	if _, _, body := r.Get("web.test", "/"); body != "2" {
		t.Errorf("after the disk had room again: %q", body)
	}
}

func TestAControlPlaneStartsAndReplacesOnAFullDisk(t *testing.T) {
	disk := smallDisk(t)
	r := newRig(t)
	r.Write("kiln.hcl", one("1", 2, ""))
	r.Kiln("up")
	fill(t, disk)
	before := ids(instances(r))
	r.KillDaemon()
	r.Start()
	if after := ids(instances(r)); !slices.Equal(before, after) {
		t.Errorf("instances were not adopted: %v, then %v", before, after)
	}
	victim := instances(r)[0]
	if err := syscall.Kill(victim.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r.Eventually(rig.Longest, "another took its place", func() error {
		for _, i := range instances(r) {
			if i.ID == victim.ID || i.State != kiln.InstanceReady {
				return fmt.Errorf("%s is %s", i.ID, i.State)
			}
		}
		if n := len(instances(r)); n != 2 {
			return fmt.Errorf("%d instances", n)
		}
		return nil
	})
}
