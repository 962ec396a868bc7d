package local_test

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/kilnproject/kiln/internal/local"
)

// TestAFilterThatWasChangedIsWrittenAnew deletes the rules of the filter, and
// all of it, as somebody else.
func TestAFilterThatWasChangedIsWrittenAnew(t *testing.T) {
	b := newBed(t)
	b.ready(web(1))
	table := "kiln_" + local.Tag(b.dir)
	changes := b.Watch(t.Context())
	whole := rules(t, table)
	for _, change := range [][]string{{"flush", "table", "inet", table}, {"delete", "table", "inet", table}} {
		if out, err := exec.Command("nft", change...).CombinedOutput(); err != nil {
			t.Fatalf("nft %v: %v\n%s", change, err, out)
		}
		for c := range changes {
			if c.Event != nil && c.Event.Kind == "drift.mended" {
				if c.Event.Data["process"] != "nft" {
					t.Errorf("it was %q", c.Event.Data["process"])
				}
				break
			}
		}
		for rules(t, table) != whole { // the test ends with its deadline
			if t.Context().Err() != nil {
				t.Fatal("the filter is not what it was")
			}
		}
	}
}

// rules is the table without what the kernel numbers and counts; "" when
// there is none.
func rules(t *testing.T, table string) string {
	t.Helper()
	out, err := exec.Command("nft", "-s", "list", "table", "inet", table).Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}
