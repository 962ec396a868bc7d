package oci_test

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/kilnproject/kiln/internal/local/cgroup"
	"github.com/kilnproject/kiln/internal/local/oci"
)

func TestPick(t *testing.T) {
	if os.Geteuid() != 0 || os.Getenv("KILN_TEST_ROOT") != "1" {
		t.Skip("needs root and KILN_TEST_ROOT=1")
	}
	init, err := oci.FindInit()
	if err != nil {
		t.Skip(err)
	}
	groups, err := cgroup.Open(fmt.Sprintf("kiln-picktest-%d", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := groups.RemoveAll(context.Background()); err != nil {
			t.Log(err)
		}
	})
	dir, err := os.MkdirTemp("/run", "kiln-picktest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	r, err := oci.Pick(t.Context(), dir, init, 1_900_019_712, groups.Path("x"), groups.Swap())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("picked %s", r.Name)
	if err := groups.RemoveAll(t.Context()); err != nil {
		t.Fatal(err)
	}
}
