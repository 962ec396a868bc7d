package metrics

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/kilnproject/kiln"
)

func TestWhatWasProved(t *testing.T) {
	m, engine := newTest(t)
	if got := text(t, m, nil); strings.Contains(got, "kiln_advisories") || strings.Contains(got, "kiln_findings") || strings.Contains(got, "kiln_services_judged") {
		t.Error("there is something to see of nothing")
	}
	m.Restore([]kiln.Release{release("production", 1, kiln.ReleaseLive), release("gone", 1, kiln.ReleaseRetired)})
	dated := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	engine.advisories = Advisories{Dated: dated, Records: map[string]int{"Debian": 40_000, "Go": 3000}}
	found := map[kiln.ReleaseState]map[kiln.Severity]int{kiln.ReleaseLive: {kiln.SeverityHigh: 2, kiln.SeverityUnknown: 1}, kiln.ReleaseParked: {kiln.SeverityHigh: 5}}
	engine.judgements = []Judgement{
		{Environment: "production", Findings: found, Services: map[kiln.Outcome]int{kiln.OutcomeFail: 2, kiln.OutcomePass: 1}},
		{Environment: "gone", Findings: found, Services: map[kiln.Outcome]int{kiln.OutcomeFail: 2}}, // judged before it ended
	}
	m.Judged("release", kiln.OutcomeFail, nil)
	m.Judged("rescan", kiln.OutcomePass, nil)
	m.Judged("rescan", kiln.OutcomePass, errors.New("broken"))
	m.Judged("rescan", "", nil)
	m.Inspected(3*time.Second, nil)
	m.Inspected(time.Second, errors.New("no such layer"))
	check(t, m, `
		kiln_advisories{ecosystem="Debian"} 40000
		kiln_advisories{ecosystem="Go"} 3000
		kiln_findings{environment="production",release="live",severity="high"} 2
		kiln_findings{environment="production",release="live",severity="unknown"} 1
		kiln_findings{environment="production",release="live",severity="critical"} 0
		kiln_findings{environment="production",release="parked",severity="high"} 5
		kiln_services_judged{environment="production",outcome="fail"} 2
		kiln_services_judged{environment="production",outcome="pass"} 1
		kiln_services_judged{environment="production",outcome="unknown"} 0
		kiln_verdicts_total{outcome="fail",why="release"} 1
		kiln_verdicts_total{outcome="pass",why="rescan"} 1
		kiln_verdicts_total{outcome="error",why="rescan"} 2
		kiln_inspection_duration_seconds_sum{result="succeeded"} 3
		kiln_inspection_duration_seconds_count{result="failed"} 1
	`)
	if got := text(t, m, nil); strings.Contains(got, `environment="gone",severity`) || strings.Contains(got, `environment="gone",release`) {
		t.Error("an environment that ended has findings")
	}
	if got := text(t, m, kiln.Reach{"staging"}); strings.Contains(got, "kiln_findings") || !strings.Contains(got, "kiln_advisories{") {
		t.Error("a token reads findings beyond its reach, or nothing of the machine")
	}
}

// TestAgeOfAdvisories: at every scrape it is that of the moment.
func TestAgeOfAdvisories(t *testing.T) {
	m, engine := newTest(t)
	p := proofs{m.options, m.standing, nil}
	dated := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	engine.advisories.Dated = dated
	for _, age := range []time.Duration{time.Minute, time.Hour, -time.Hour} {
		p.now = func() time.Time { return dated.Add(age) }
		if got := testutil.ToFloat64(p); got != age.Seconds() {
			t.Errorf("%v seconds, want %v", got, age.Seconds())
		}
	}
}
