package e2e

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/control"
)

// TestADamagedLedgerServesOn flips a byte of an event and one of the live
// release while the control plane is away.
func TestADamagedLedgerServesOn(t *testing.T) {
	r := newRig(t)
	r.Write("kiln.hcl", one("v1", 2, ""))
	r.Kiln("up")
	var report kiln.LedgerReport
	r.JSON(&report, "ledger", "verify")
	if report.Events == 0 || report.Rows == 0 || len(report.Faults) > 0 {
		t.Fatalf("%+v", report)
	}
	r.StopDaemon()
	r.JSON(&report, "ledger", "verify", "--tip", report.Tip) // by kilnd alone
	path := filepath.Join(r.Data, "ledger", "ledger.db")
	flipAll(t, path, "is ready, ")
	flipAll(t, path, `{"environment":"default","number":1`)
	r.Start()
	r.Eventually(30*time.Second, "the damage is found", func() error {
		var s control.Status
		r.JSON(&s, "status")
		if len(s.Problems) < 2 || len(s.Environments) != 1 || s.Environments[0].Live == nil {
			return errors.New(strings.Join(s.Problems, "; "))
		}
		return nil
	})
	r.Write("kiln.hcl", one("v2", 2, ""))
	for _, command := range [][]string{{"up"}, {"rollback"}, {"down", "--yes"}, {"shutdown", "--yes"}} {
		said, code := r.Refused(command...)
		if code != 6 || !strings.Contains(said, "damaged") || !strings.Contains(said, "kiln ledger accept") {
			t.Errorf("kiln %s: exit %d: %s", command[0], code, said)
		}
	}
	killOne(t, r)
	r.Eventually(30*time.Second, "the killed one is replaced", func() error {
		var all []kiln.Instance
		r.JSON(&all, "ps")
		ready := 0
		for _, i := range all {
			if i.State == kiln.InstanceReady {
				ready++
			}
		}
		if ready != 2 {
			return errors.New("not yet")
		}
		return nil
	})
	if status, h, _ := r.Get("web.test", "/"); status != 200 || h.Get("Version") != "v1" {
		t.Errorf("GET /: %d, version %s", status, h.Get("Version"))
	}
	if said, code := r.Refused("ledger", "verify"); code != 1 {
		t.Errorf("verify: exit %d: %s", code, said)
	}
	r.Kiln("ledger", "accept", "--yes")
	r.JSON(&report, "ledger", "verify")
	if len(report.Faults) > 0 || len(report.Notes) == 0 {
		t.Errorf("after the acceptance: %+v", report)
	}
	r.Kiln("up")
	if status, h, _ := r.Get("web.test", "/"); status != 200 || h.Get("Version") != "v2" {
		t.Errorf("GET /: %d, version %s", status, h.Get("Version"))
	}
	if events := r.Kiln("events", "--last", "0"); !strings.Contains(events, "ledger.accepted") || !strings.Contains(events, "instance.died") {
		t.Errorf("the history does not tell of it:\n%s", events)
	}
	r.KillDaemon()
	r.Start()
	r.JSON(&report, "ledger", "verify")
	if len(report.Faults) > 0 {
		t.Errorf("after another start: %+v", report.Faults)
	}
}

// flipAll changes the last byte of a text wherever a file has it.
func flipAll(t *testing.T, path, text string) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	other := []byte(text)
	other[len(other)-1] ^= 1
	if !bytes.Contains(raw, []byte(text)) {
		t.Fatalf("%q is not in the ledger", text)
	}
	if text[0] == '{' { // a release: one of its two copies
		raw = bytes.Replace(raw, []byte(text), other, 1)
	} else {
		raw = bytes.ReplaceAll(raw, []byte(text), other)
	}
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
}

// killOne kills the process of an instance.
func killOne(t *testing.T, r interface{ JSON(any, ...string) }) {
	t.Helper()
	var all []kiln.Instance
	r.JSON(&all, "ps")
	for _, i := range all {
		if i.State == kiln.InstanceReady {
			if err := syscall.Kill(i.PID, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatal("nothing runs")
}
