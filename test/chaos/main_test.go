package main

import (
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestTheSameSeedGivesTheSameEvents draws the beginning of a sequence twice.
func TestTheSameSeedGivesTheSameEvents(t *testing.T) {
	first := func(seed uint64) (out []event) {
		for e := range plan(seed) {
			if out = append(out, e); len(out) == 200 {
				break
			}
		}
		return out
	}
	if !slices.Equal(first(7), first(7)) {
		t.Error("the same seed gave different events")
	}
	if slices.Equal(first(7), first(8)) {
		t.Error("different seeds gave the same events")
	}
	seen := map[string]bool{}
	for _, e := range first(7) {
		seen[e.Kind] = true
		if e.Pause < minPause || e.Pause >= maxPause || e.For < minLast || e.For >= maxLast {
			t.Errorf("%+v is out of bounds", e)
		}
	}
	if len(seen) != len(kinds()) {
		t.Errorf("of %d kinds came %d", len(kinds()), len(seen))
	}
}

// TestAShortRun is chaos for the time of a test.
func TestAShortRun(t *testing.T) {
	if os.Geteuid() != 0 || os.Getenv("KILN_TEST_ROOT") != "1" {
		t.Skip("needs root and KILN_TEST_ROOT=1: `make test` as root sets it")
	}
	disk, err := os.MkdirTemp("", "kc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(disk) })
	if err := unix.Mount("kiln-chaos", disk, "tmpfs", 0, "size=1g,mode=0755"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(disk, 0); err != nil {
			t.Errorf("unmount %s: %v", disk, err)
		}
	})
	t.Setenv("TMPDIR", disk)
	r := run(t, order{disk: disk, limit: 20 * time.Second, seed: 94, rate: 100, out: t.Output(), folder: t.TempDir()})
	r.print(t.Output())
	if !r.met() {
		t.Error("a bar was missed")
	}
}
