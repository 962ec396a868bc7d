package metrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/kilntest"
)

// fakeEngine has one service with two versions.
type fakeEngine struct {
	asked atomic.Int32
	away  atomic.Bool // the gateway

	judgements []Judgement
	advisories Advisories
}

func (f *fakeEngine) Judgements() []Judgement { return f.judgements }

func (f *fakeEngine) Advisories() Advisories { return f.advisories }

func fleet(environment, version string) kiln.Fleet {
	return kiln.Fleet{Environment: environment, Template: kiln.Template{Service: "web", Platform: version}, Count: 2}
}

func (f *fakeEngine) Observe(_ context.Context, name string) (kiln.Observation, error) {
	f.asked.Add(1)
	one := fleet(name, "a")
	return kiln.Observation{Environment: name, Fleets: []kiln.FleetStatus{{
		ID: one.ID(), Fleet: one, Instances: []kiln.Instance{{State: kiln.InstanceReady}, {State: kiln.InstanceUnready}},
	}}}, nil
}

func (f *fakeEngine) Measure(context.Context) ([]kiln.Measurement, error) {
	if f.away.Load() {
		return nil, errors.New("the gateway is away")
	}
	m := kiln.Measurement{Fleet: fleet("production", "a").ID(), Requests: 4, Failures: 1, InFlight: 2, BytesIn: 10, BytesOut: 20, Took: 3 * time.Second}
	m.Status[1], m.Status[4] = 2, 1
	m.Latency[0], m.Latency[len(m.Latency)-1] = 2, 1
	one := m
	one.Instance = "web-1" // the sum has it already
	return []kiln.Measurement{m, one}, nil
}

func (f *fakeEngine) Connections(context.Context) (int, error) { return 7, nil }

func newTest(t *testing.T) (*Metrics, *fakeEngine) {
	t.Helper()
	engine := &fakeEngine{}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "ledger.db"), make([]byte, 100), 0o600); err != nil {
		t.Fatal(err)
	}
	return New(Options{
		Version: "1.2.3", Engine: engine, Gateway: engine, Proof: engine, DataDir: dir, LedgerFile: filepath.Join(dir, "ledger.db"), Log: slog.New(slog.DiscardHandler),
		StorageMax: func() int64 { return 1000 },
		Storage:    map[string]Usage{"images": func(context.Context) (int64, error) { return 500, nil }},
	}), engine
}

// everything has each metric at least once.
func everything(t *testing.T) *Metrics {
	t.Helper()
	m, engine := newTest(t)
	m.Created(release("production", 1, kiln.ReleasePending))
	m.Recorded(ended("production", "up", "done"))
	m.Recorded(kiln.Record{
		Marks:     []kiln.ReleaseMark{{Environment: "production", Number: 1, State: kiln.ReleaseLive}},
		Instances: []kiln.Instance{born("release 1"), died(kiln.CauseOutOfMemory)},
		Events:    []kiln.Event{{Kind: "release.live"}},
	})
	m.Baked(kiln.BakeResult{Images: map[string]kiln.Baked{"app": {Cached: true}}}, time.Second, nil)
	m.Sealed(time.Second, nil)
	m.Stepped("admit", time.Second)
	m.Reconciled(time.Millisecond, nil)
	m.Inspected(time.Second, nil)
	m.Judged("release", kiln.OutcomePass, nil)
	engine.advisories = Advisories{Dated: time.Now().Add(-time.Hour), Records: map[string]int{"Go": 7}}
	engine.judgements = []Judgement{{Environment: "production", Findings: map[kiln.ReleaseState]map[kiln.Severity]int{kiln.ReleaseLive: {kiln.SeverityHigh: 1}}}}
	m.Answered("GET", "/v1/status", 200, time.Millisecond)
	m.Committing()(nil)
	m.Notified("ops", nil)
	m.NotifyBehind("ops", 3, 2)
	m.Spans("dropped", 1)
	engine.away.Store(true)
	m.look.get() // the gateway's absence is counted
	m.look.at = time.Time{}
	engine.away.Store(false)
	return m
}

func release(environment string, number int, state kiln.ReleaseState) kiln.Release {
	return kiln.Release{Environment: environment, Number: number, State: state}
}

func ended(environment, kind, step string) kiln.Record {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	return kiln.Record{Rollout: &kiln.Rollout{
		Environment: environment, Step: step, State: []byte(`{"kind":"` + kind + `"}`), StartedAt: start, EndedAt: start.Add(2 * time.Second),
	}}
}

func born(reason string) kiln.Instance {
	return kiln.Instance{Environment: "production", Service: "web", State: kiln.InstanceStarting, Reason: reason}
}

func died(kind kiln.CauseKind) kiln.Instance {
	return kiln.Instance{Environment: "production", Service: "web", State: kiln.InstanceDead, Cause: &kiln.Cause{Kind: kind}}
}

func TestLint(t *testing.T) {
	problems, err := testutil.GatherAndLint(everything(t).registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// check looks for lines in what is served.
func check(t *testing.T, m *Metrics, want string) {
	t.Helper()
	lines := map[string]bool{}
	for line := range strings.SplitSeq(text(t, m, nil), "\n") {
		lines[line] = true
	}
	for line := range strings.SplitSeq(strings.TrimSpace(want), "\n") {
		if !lines[strings.TrimSpace(line)] {
			t.Errorf("there is no %s", strings.TrimSpace(line))
		}
	}
}

// text is what is served within a reach.
func text(t *testing.T, m *Metrics, reach kiln.Reach) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler(reach).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("%d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

func TestWhatTheLedgerTookIsCounted(t *testing.T) {
	m, _ := newTest(t)
	m.Restore([]kiln.Release{release("production", 1, kiln.ReleaseRetired), release("production", 2, kiln.ReleaseLive)})
	m.Created(release("production", 3, kiln.ReleasePending))
	running := ended("production", "up", "start")
	running.Rollout.EndedAt = time.Time{}
	m.Recorded(running)
	check(t, m, `kiln_rollouts_running 1`)
	m.Recorded(ended("production", "up", "done"))
	m.Recorded(ended("production", "rollback", "failed"))
	m.Recorded(kiln.Record{
		Marks: []kiln.ReleaseMark{
			{Environment: "production", Number: 3, State: kiln.ReleaseLive}, {Environment: "production", Number: 2, State: kiln.ReleaseParked},
		},
		Instances: []kiln.Instance{born("release 3"), born("replaces web-1: exited"), died(kiln.CauseExited), died(kiln.CauseExited), {State: kiln.InstanceReady}},
		Events:    []kiln.Event{{Kind: "instance.died"}, {Kind: "instance.died"}},
	})
	check(t, m, `
		kiln_releases{environment="production",state="live"} 1
		kiln_releases{environment="production",state="parked"} 1
		kiln_releases{environment="production",state="retired"} 1
		kiln_releases{environment="production",state="pending"} 0
		kiln_environments 1
		kiln_rollouts_running 0
		kiln_rollouts_total{environment="production",kind="up",result="succeeded"} 1
		kiln_rollouts_total{environment="production",kind="rollback",result="failed"} 1
		kiln_rollout_duration_seconds_sum{kind="up",result="succeeded"} 2
		kiln_instances_started_total{environment="production",service="web",why="release"} 1
		kiln_instances_started_total{environment="production",service="web",why="replacement"} 1
		kiln_instance_deaths_total{cause="exited",environment="production",service="web"} 2
		kiln_events_total{kind="instance.died"} 2
		kiln_events_total{kind="release.created"} 1
	`)
}

func TestWhatRunsAndWhatTheGatewayCarried(t *testing.T) {
	m, engine := newTest(t)
	m.Restore([]kiln.Release{release("production", 1, kiln.ReleaseLive), release("gone", 1, kiln.ReleaseRetired)})
	_, _, version := parts(fleet("production", "a").ID())
	labels := `environment="production",service="web",version="` + version + `"`
	check(t, m, strings.NewReplacer("LABELS", labels, "VERSION", version).Replace(`
		kiln_instances{environment="production",service="web",state="ready",version="VERSION"} 1
		kiln_instances{environment="production",service="web",state="unready",version="VERSION"} 1
		kiln_instances{environment="production",service="web",state="starting",version="VERSION"} 0
		kiln_instances_desired{LABELS} 2
		kiln_gateway_up 1
		kiln_gateway_connections 7
		kiln_gateway_requests_total{code="2xx",LABELS} 2
		kiln_gateway_requests_total{code="5xx",LABELS} 1
		kiln_gateway_failures_total{LABELS} 1
		kiln_gateway_requests_in_flight{LABELS} 2
		kiln_gateway_received_bytes_total{LABELS} 10
		kiln_gateway_sent_bytes_total{LABELS} 20
		kiln_gateway_request_duration_seconds_bucket{LABELS,le="0.0005"} 2
		kiln_gateway_request_duration_seconds_bucket{LABELS,le="30"} 2
		kiln_gateway_request_duration_seconds_bucket{LABELS,le="+Inf"} 3
		kiln_gateway_request_duration_seconds_sum{LABELS} 3
		kiln_storage_used_bytes{kind="images"} 500
		kiln_storage_bound_bytes 1000
		kiln_ledger_size_bytes 100
	`))
	if asked := engine.asked.Load(); asked != 1 {
		t.Errorf("the engine was asked %d times within a moment, for one environment", asked)
	}

	engine.away.Store(true)
	m.look.at = time.Time{}
	got := text(t, m, nil)
	if !strings.Contains(got, "kiln_gateway_up 0\n") || strings.Contains(got, "kiln_gateway_requests_total{") {
		t.Error("a gateway that is away has counts")
	}
	got = text(t, m, nil) // it is counted while metrics are made
	if !strings.Contains(got, `kiln_metrics_errors_total{source="gateway"} 1`) || !strings.Contains(got, "kiln_instances_desired{") {
		t.Error("that the gateway is away is not told, or hides the rest")
	}
}

func TestSeriesOfEndedEnvironmentsAreBounded(t *testing.T) {
	m, _ := newTest(t)
	for i := range 3 * keptEnded {
		name := fmt.Sprintf("preview-%03d", i)
		m.Created(release(name, 1, kiln.ReleasePending))
		m.Recorded(ended(name, "up", "done"))
		m.Recorded(kiln.Record{Instances: []kiln.Instance{
			{Environment: name, Service: "web", State: kiln.InstanceStarting},
			{Environment: name, Service: "web", State: kiln.InstanceDead, Cause: &kiln.Cause{Kind: kiln.CauseStopped}},
		}})
		m.Recorded(kiln.Record{Marks: []kiln.ReleaseMark{{Environment: name, Number: 1, State: kiln.ReleaseRetired}}})
	}
	got := text(t, m, nil)
	for name, each := range map[string]int{"kiln_rollouts_total{": 1, "kiln_instances_started_total{": 1, "kiln_instance_deaths_total{": 1, "kiln_releases{": 6} {
		if n := strings.Count(got, "\n"+name); n != each*keptEnded {
			t.Errorf("%s has %d series, want %d", name, n, each*keptEnded)
		}
	}
	if last := fmt.Sprintf("preview-%03d", 3*keptEnded-1); !strings.Contains(got, last) {
		t.Errorf("%s, which ended last, is gone", last)
	}
	// One that runs again has all of its releases.
	m.Created(release("preview-000", 2, kiln.ReleasePending))
	check(t, m, `
		kiln_releases{environment="preview-000",state="retired"} 1
		kiln_releases{environment="preview-000",state="pending"} 1
	`)
}

func TestReach(t *testing.T) {
	m := everything(t)
	m.Created(release("staging", 1, kiln.ReleasePending))
	got := text(t, m, kiln.Reach{"stag*"})
	if strings.Contains(got, "production") {
		t.Error("a token for staging reads of production")
	}
	if !strings.Contains(got, `kiln_releases{environment="staging",state="pending"} 1`) || !strings.Contains(got, "kiln_disk_free_bytes") {
		t.Error("a token for staging does not read of staging, or of the machine")
	}
}

// TestAScrapeDoesNotWaitForStorage: figures that are old are given while new
// ones are made.
func TestAScrapeDoesNotWaitForStorage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, _ := newTest(t)
		hang := make(chan struct{})
		calls := 0
		m.usage.options.Storage = map[string]Usage{"images": func(ctx context.Context) (int64, error) {
			if calls++; calls == 1 {
				return 1, nil
			}
			select {
			case <-hang:
				return 2, nil
			case <-ctx.Done():
				return 0, ctx.Err()
			}
		}}
		want := func(want int64) {
			t.Helper()
			if got := m.usage.get()["images"]; got != want {
				t.Errorf("%d bytes, want %d", got, want)
			}
		}
		want(1)
		kilntest.Pass(usageFresh)
		want(1) // and new ones are asked for
		want(1)
		synctest.Wait()
		if calls != 2 {
			t.Errorf("it was measured %d times", calls)
		}
		kilntest.Pass(usageLimit + usageFresh) // the hanging one was given up
		want(1)
		close(hang)
		synctest.Wait()
		want(2)
	})
}

func get(t *testing.T, address, host string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	if host != "" {
		r.Host = host
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Do(r)
	if err != nil {
		return 0, err.Error()
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(b)
}

// unused is an address that nobody listens on.
func unused(t *testing.T) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestListenersMove(t *testing.T) {
	m, _ := newTest(t)
	l := m.NewListeners()
	t.Cleanup(func() { l.Close() })
	a, b := unused(t), unused(t)
	set := func(addresses ...string) error { return l.Set(t.Context(), addresses) }
	if err := set(a); err != nil {
		t.Fatal(err)
	}
	if code, body := get(t, a, ""); code != http.StatusOK || !strings.Contains(body, "kiln_build_info") {
		t.Errorf("%d %s", code, body)
	}
	taken, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	if err := set(b, taken.Addr().String()); !errors.Is(err, kiln.ErrConflict) {
		t.Errorf("a port that is taken: %v", err)
	}
	if got := l.Addresses(); len(got) != 1 || got[0] != a {
		t.Errorf("after a change that failed: %v", got)
	}
	if code, _ := get(t, b, ""); code != 0 {
		t.Error("half of a change that failed was made")
	}
	if err := set(b); err != nil {
		t.Fatal(err)
	}
	if code, _ := get(t, a, ""); code != 0 {
		t.Error("the old address answers")
	}
	if code, _ := get(t, b, ""); code != http.StatusOK {
		t.Error("the new address does not answer")
	}
}

// TestPagesOfOthersCannotAsk: a browser here could be led to the listener by a
// name that somebody else's page has.
func TestPagesOfOthersCannotAsk(t *testing.T) {
	m, _ := newTest(t)
	l := m.NewListeners()
	t.Cleanup(func() { l.Close() })
	address := unused(t)
	if err := l.Set(t.Context(), []string{address}); err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]int{
		"": http.StatusOK, "localhost:9464": http.StatusOK, "[::1]:9464": http.StatusOK, "evil.example:9464": http.StatusMisdirectedRequest, "evil.example": http.StatusMisdirectedRequest,
	} {
		if code, _ := get(t, address, host); code != want {
			t.Errorf("%q: %d, want %d", host, code, want)
		}
	}
}
