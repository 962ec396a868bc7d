package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/ledger"
	"github.com/kilnproject/kiln/test/rig"
)

// aMillion is how many events the ledger gets, in how many environments, of
// how many releases each.
const (
	aMillion     = 1_000_000
	environments = 10
	deployments  = 100
)

// benchLedger asks a control plane whose ledger has a million events.
func benchLedger(b *bench) {
	// They are all kept, so that it is a million that is measured.
	r := rig.New(b)
	r.App()
	define(r, "v1", 2)
	up(r)
	r.StopDaemon()
	if err := os.WriteFile(filepath.Join(r.Data, "kilnd.hcl"), fmt.Appendf(nil, "storage {\n  keep_events = %d\n}\n", 2*aMillion), 0o600); err != nil {
		b.Fatalf("%v", err)
	}
	path := filepath.Join(r.Data, "ledger", "ledger.db")
	begin := time.Now()
	if err := fill(path); err != nil {
		b.Fatalf("fill the ledger: %v", err)
	}
	b.note("a million events written, s", "%.0f", time.Since(begin).Seconds())
	// What it says from here on is of a ledger with a million events.
	if err := os.Truncate(filepath.Join(r.Data, "kilnd.log"), 0); err != nil {
		b.Fatalf("%v", err)
	}
	begin = time.Now()
	r.Start()
	b.note("the control plane answers on it after, ms", "%.0f", time.Since(begin).Seconds()*1000)
	r.Eventually(10*time.Minute, "the ledger was verified", func() error {
		if !strings.Contains(r.Log(), "the ledger was verified") {
			return errors.New("not yet")
		}
		return nil
	})
	_, text := spread(timed(r, "version"))
	b.note("kiln version, for comparison, ms", "%s", text)
	for _, c := range []struct {
		what string
		bar  float64
		args []string
	}{
		{"kiln events --last 100, ms", 50, []string{"events", "--last", "100"}},
		{"kiln events of one environment in ten, ms", 50, []string{"events", "production-3", "--last", "100"}},
		{"kiln events of an environment with few, ms", 50, []string{"events", "default", "--last", "100"}},
		{"kiln status, ms", 50, []string{"status"}},
	} {
		median, text := spread(timed(r, c.args...))
		b.judge(median < c.bar, c.what, fmt.Sprintf("< %.0f", c.bar), "%s", text)
	}
	begin = time.Now()
	var report kiln.LedgerReport
	r.JSON(&report, "ledger", "verify")
	b.note("kiln ledger verify, s", "%.1f for %d events and %d rows", time.Since(begin).Seconds(), report.Events, report.Rows)
	r.StopDaemon() // what is in the log goes into the file
	info, err := os.Stat(path)
	if err != nil {
		b.Fatalf("%v", err)
	}
	b.judge(mb(info.Size()) < 500, "the file of a million events, MB", "< 500", "%.0f, %d bytes an event", mb(info.Size()), info.Size()/report.Events)
	r.Start()
}

// timed runs a command again and again and returns the milliseconds that each
// took.
func timed(r *rig.Rig, args ...string) []float64 {
	var out []float64
	for range 20 {
		begin := time.Now()
		r.Kiln(args...)
		out = append(out, time.Since(begin).Seconds()*1000)
	}
	return out
}

// fill writes the history of some years: environments that were deployed a
// thousand times, whose instances came and went, and crashed now and then.
func fill(path string) error {
	ctx := context.Background()
	l, err := ledger.Open(ctx, path)
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	group, ctx := errgroup.WithContext(ctx)
	for n := range environments {
		p := &past{ledger: l, name: fmt.Sprintf("production-%d", n), chance: rand.New(rand.NewPCG(uint64(n), 1)), at: time.Now().Add(-time.Hour * 24 * 365)}
		group.Go(func() error {
			for d := range deployments {
				if err := p.deploy(ctx, d+1, aMillion/environments/deployments); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return l.Prune(context.WithoutCancel(ctx), 2*aMillion) // as a control plane does now and then
}

// past writes the history of one environment.
type past struct {
	ledger *ledger.Ledger
	name   string
	chance *rand.Rand
	at     time.Time
	record kiln.Record
	born   int
}

// batch is how many events are written in one transaction.
const batch = 250

func (p *past) tell(ctx context.Context, i *kiln.Instance, kind, subject, message string, data map[string]string) error {
	p.at = p.at.Add(time.Duration(p.chance.IntN(600)) * time.Second)
	if i != nil {
		p.record.Instances = append(p.record.Instances, *i)
	}
	p.record.Events = append(p.record.Events, kiln.Event{At: p.at, Environment: p.name, Kind: kind, Subject: subject, Message: message, Data: data})
	if len(p.record.Events) < batch {
		return nil
	}
	return p.flush(ctx)
}

func (p *past) flush(ctx context.Context) error {
	r := p.record
	p.record = kiln.Record{}
	return p.ledger.Commit(ctx, r)
}

// deploy writes a release and what happened until the next: so many events.
func (p *past) deploy(ctx context.Context, number, events int) error {
	template := kiln.Template{
		Service: "web", Image: kiln.DigestOf(fmt.Append(nil, p.name, number)), Platform: "linux/amd64",
		Ports:  []kiln.Port{{Name: "http", Number: 8080, Protocol: kiln.ProtocolHTTP}},
		Config: kiln.Config{Env: map[string]string{"VERSION": strconv.Itoa(number), "ORDERS_URL": "http://orders:8080/"}},
	}
	r, err := p.ledger.CreateRelease(ctx, kiln.Release{
		Environment: p.name, Bundle: template.Image, CreatedAt: p.at, Actor: "root (0)", State: kiln.ReleasePending,
		Source: kiln.Source{Commit: "3fa92c01bd77", Branch: "main"}, Services: []kiln.ReleaseService{{Template: template, Count: 3}},
	})
	if err != nil {
		return err
	}
	run := kiln.Rollout{ID: fmt.Sprintf("%s-%d", p.name, number), Environment: p.name, To: r.Number, StartedAt: p.at, Actor: "root (0)"}
	for _, step := range []string{"admit", "start", "ready", "verify", "switch", "workers", "settle", "drain", "retire", "done"} {
		run.Step, run.State = step, json.RawMessage(`{"step":"`+step+`","trail":[{"step":"admit","took":1200000},{"step":"start","took":27000000}]}`)
		record := kiln.Record{Rollout: &run}
		if step == "done" {
			run.EndedAt = p.at
			record.Marks = []kiln.ReleaseMark{{Environment: p.name, Number: r.Number, State: kiln.ReleaseRetired, LiveAt: p.at}}
		}
		if err := p.ledger.Commit(ctx, record); err != nil {
			return err
		}
	}
	for told := 0; told < events; {
		n, err := p.life(ctx, template, r.Number)
		if err != nil {
			return err
		}
		told += n
	}
	return p.flush(ctx)
}

// life writes the life of one instance and returns how many events that was.
func (p *past) life(ctx context.Context, t kiln.Template, release int) (events int, err error) {
	p.born++
	id := fmt.Sprintf("web-%s%04x", strconv.FormatInt(p.at.UnixMilli(), 36), p.born&0xffff)
	i := kiln.Instance{
		ID: id, Environment: p.name, Service: "web", Fleet: kiln.FleetIDOf(p.name, t), Image: t.Image, PID: 4000 + p.born,
		State: kiln.InstanceStarting, CreatedAt: p.at, Reason: fmt.Sprintf("release %d", release),
	}
	data := map[string]string{"service": "web", "fleet": string(i.Fleet)}
	step := func(state kiln.InstanceState, verb, message string) {
		if err == nil {
			i.State = state
			events++
			err = p.tell(ctx, &i, "instance."+verb, id, id+" "+message, data)
		}
	}
	step(kiln.InstanceStarting, "born", "was started: "+i.Reason)
	i.ReadyAt = p.at
	step(kiln.InstanceReady, "ready", "is ready, 123ms after its start")
	switch i.DiedAt = p.at; p.chance.IntN(10) {
	case 0: // crashed, with its last words
		i.Cause = &kiln.Cause{Kind: kiln.CauseExited, ExitCode: 1}
		data = map[string]string{"service": "web", "fleet": string(i.Fleet), "cause": "exited"}
		for n := range 10 {
			line := fmt.Sprintf("%s level=error msg=\"request failed\" path=/orders/%d error=\"connection reset by peer\"", p.at.Format(time.RFC3339), p.chance.IntN(100000))
			i.Cause.LastLog = append(i.Cause.LastLog, line)
			data[fmt.Sprintf("log_%02d", n+1)] = line
		}
		step(kiln.InstanceDead, "died", "exited with code 1")
	case 1: // unready for a while
		step(kiln.InstanceUnready, "unready", "is unready: GET /healthz: status 503")
		step(kiln.InstanceReady, "ready", "is ready again")
		fallthrough
	default:
		step(kiln.InstanceDraining, "draining", "gets no more traffic")
		i.Cause = &kiln.Cause{Kind: kiln.CauseStopped}
		step(kiln.InstanceDead, "died", "was stopped")
	}
	return events, err
}

// benchPowerCut cuts the power of a ledger at a thousand points.
func benchPowerCut(b *bench) {
	cmd := exec.Command("go", "test", "-count=1", "-run", "TestAPowerCutLosesNothingAcknowledged", "-v", "./internal/ledger")
	cmd.Env = append(os.Environ(), "KILN_POWER_CUTS=1000")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	err := cmd.Run()
	b.judge(err == nil, "acknowledged records lost by power cuts at 1,000 points", "0", "%s", map[bool]string{true: "0", false: "see above"}[err == nil])
}
