package gate

import (
	"strings"
	"testing"
	"time"

	"github.com/kilnproject/kiln"
)

func TestATableSaysWhatToDo(t *testing.T) {
	findings := []kiln.Finding{
		{ID: "CVE-1", Severity: kiln.SeverityHigh, State: kiln.FindingOpen, Fails: true, Package: "zlib", Version: "1.0", Path: "/lib/libz.so", Layer: kiln.DigestOf(nil), FixedIn: []string{"1.1", "2.0"}, Change: "upgrade zlib to 1.1"},
		{ID: "lint/shell", Severity: kiln.SeverityLow, State: kiln.FindingOpen, Path: "/bin/sh", Title: "a shell was added"},
		{ID: "CVE-2", Severity: kiln.SeverityLow, State: kiln.FindingIgnored, Reason: "not reachable"},
	}
	short := kiln.DigestOf(nil).Short()
	want := []string{
		"SEVERITY  FINDING     WHERE                                       FIXED IN  WHAT TO DO",
		"high!     CVE-1       zlib 1.0, /lib/libz.so, layer " + short + "  1.1       upgrade zlib to 1.1",
		"low       lint/shell  /bin/sh                                     -         a shell was added",
	}
	if got := strings.Join(Table(findings, false), "\n"); got != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
	if all := Table(findings, true); len(all) != 4 || !strings.Contains(all[3], "ignored: not reachable") {
		t.Errorf("%q", all)
	}
	if none := Table(findings[2:], false); none != nil {
		t.Errorf("%q", none)
	}
}

func TestASummaryCounts(t *testing.T) {
	v := kiln.Verdict{Packages: 12, Findings: []kiln.Finding{
		{Severity: kiln.SeverityLow, State: kiln.FindingOpen},
		{Severity: kiln.SeverityCritical, State: kiln.FindingOpen},
		{Severity: kiln.SeverityLow, State: kiln.FindingOpen},
		{Severity: kiln.SeverityHigh, State: kiln.FindingNotAffected},
	}}
	if got, want := Summary(v), "12 packages, findings: 1 critical, 2 low (1 let pass); no database"; got != want {
		t.Errorf("%q, not %q", got, want)
	}
	v.Findings, v.Database, v.Dated = nil, kiln.DigestOf(nil), time.Date(2026, 11, 26, 0, 0, 0, 0, time.UTC)
	if got, want := Summary(v), "12 packages, no finding; database "+v.Database.Short()+" of 2026-11-26"; got != want {
		t.Errorf("%q, not %q", got, want)
	}
	v.Dated = time.Time{}
	if got, want := Summary(v), "12 packages, no finding; database "+v.Database.Short(); got != want {
		t.Errorf("%q, not %q", got, want)
	}
}

func TestWhatPassesIsReadForWhatIsMoreThanARemark(t *testing.T) {
	v := kiln.Verdict{Outcome: kiln.OutcomePass, Findings: []kiln.Finding{
		{ID: "a", Severity: kiln.SeverityHigh, State: kiln.FindingOpen},
		{ID: "b", Severity: kiln.SeverityLow, State: kiln.FindingOpen},
		{ID: "c", Severity: kiln.SeverityHigh, State: kiln.FindingIgnored},
		{ID: "d", Severity: kiln.SeverityUnknown, State: kiln.FindingOpen},
	}}
	if got := Notable(v); len(got) != 2 || got[0].ID != "a" || got[1].ID != "d" {
		t.Errorf("%+v", got)
	}
	v.Outcome = kiln.OutcomeFail
	if got := Notable(v); len(got) != 4 {
		t.Errorf("%+v", got)
	}
}
