package kilntest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/kilnproject/kiln"
)

// suiteCases are all promises.
func suiteCases() []suiteCase {
	return []suiteCase{
		{"Apply creates instances that become ready", checkApply},
		{"Apply again changes nothing", checkIdempotent},
		{"a changed count creates or destroys the difference", checkCount},
		{"another template is another fleet", checkTemplates},
		{"an empty set ends everything", checkEmpty},
		{"what dies is replaced, with its cause", checkDeath},
		{"an exit has its code and last lines", checkExit},
		{"what never becomes ready says so", checkNeverReady},
		{"what ignores its stop signal is killed", checkIgnoresTerm},
		{"Replace starts before it stops", checkReplace},
		{"Quarantine keeps the body out of traffic", checkQuarantine},
		{"Observe is sorted and complete", checkObserve},
		{"Watch reports each change of state", checkWatch},
		{"Watch closes at the end of its context", checkWatchEnds},
		{"a slow watcher is told that it missed changes", checkMissed},
		{"Run reports how a command ended", checkRun},
		{"Check makes requests to a fleet", checkCheck},
		{"Route takes effect in one step", checkRoute},
		{"Measure grows", checkMeasure},
		{"Logs selects lines", checkLogs},
	}
}

func checkApply(r *run) {
	began := time.Now().Add(-time.Minute) // clocks may differ a little
	web := r.fleet(r.Serve("1"), 3)
	s, _ := r.up(web).Fleet(web.ID())
	for _, i := range s.Instances {
		ok := strings.HasPrefix(i.ID, web.Template.Service+"-") && len(i.ID) <= 40 && i.ID == strings.ToLower(i.ID) &&
			i.Environment == r.Environment && i.Service == web.Template.Service && i.Fleet == web.ID() &&
			i.Image == web.Template.Image && i.Cause == nil
		if !ok {
			r.Errorf("an instance is not described as it should be: %+v", i)
		}
		if i.CreatedAt.Before(began) || i.ReadyAt.Before(i.CreatedAt) || !i.DiedAt.IsZero() {
			r.Errorf("an instance's times are wrong: %+v", i)
		}
		if i.Reason != "the check" {
			r.Errorf("an instance's reason is %q", i.Reason)
		}
	}
	if s.Fleet.Count != 3 || s.Fleet.ID() != web.ID() {
		r.Errorf("the fleet is observed as %+v", s.Fleet)
	}
}

func checkIdempotent(r *run) {
	web := r.fleet(r.Serve("1"), 2)
	r.up(web)
	before := ids(r.status(web))
	r.apply(web)
	r.up(web, r.fleet(r.Serve("2"), 1)) // by when an engine that does something would have
	r.sameIDs("the same set applied again", before, ids(r.status(web)))
}

func checkCount(r *run) {
	web := r.fleet(r.Serve("1"), 2)
	r.up(web)
	before := ids(r.status(web))
	web.Count = 4
	r.up(web)
	grown := ids(r.status(web))
	for _, id := range before {
		if !slices.Contains(grown, id) {
			r.Errorf("%s was ended by a higher count", id)
		}
	}
	web.Count = 1
	r.up(web)
	if after := ids(r.status(web)); !slices.Contains(grown, after[0]) {
		r.Errorf("a lower count started %s", after[0])
	}
	web.Count = 0
	r.up(web)
}

func checkTemplates(r *run) {
	older, newer := r.fleet(r.Serve("1"), 2), r.fleet(r.Serve("2"), 2)
	if older.ID() == newer.ID() {
		r.Fatal("the versions of Serve are one template")
	}
	r.up(older)
	before := ids(r.status(older))
	r.up(older, newer)
	r.sameIDs("the old fleet, still desired", before, ids(r.status(older)))
	before = ids(r.status(newer))
	r.up(newer)
	r.sameIDs("the new fleet, after the old one left", before, ids(r.status(newer)))
}

func checkEmpty(r *run) {
	r.up(r.fleet(r.Serve("1"), 2))
	r.apply()
	r.await("nothing runs", func(o kiln.Observation) bool { return living(o) == 0 })
	r.apply() // of nothing, too
}

func checkDeath(r *run) {
	web := r.fleet(r.Serve("1"), 2)
	s, _ := r.up(web).Fleet(web.ID())
	victim, other := s.Instances[0], s.Instances[1]
	if err := r.Kill(victim); err != nil {
		r.Fatal(err)
	}
	r.await("it is replaced", func(o kiln.Observation) bool {
		s, _ := o.Fleet(web.ID())
		return s.Ready() == 2 && !slices.Contains(ids(s), victim.ID)
	})
	s = r.status(web)
	if !slices.Contains(ids(s), other.ID) {
		r.Errorf("%s was ended by the death of %s", other.ID, victim.ID)
	}
	i := slices.IndexFunc(s.Deaths, func(i kiln.Instance) bool { return i.ID == victim.ID })
	if i < 0 {
		r.Fatalf("the death of %s is not observed: %+v", victim.ID, s.Deaths)
	}
	d := s.Deaths[i]
	if d.State != kiln.InstanceDead || d.DiedAt.IsZero() || d.Cause == nil || !d.Cause.Failure() || d.Cause.Kind == "" {
		r.Errorf("the death is described as %+v, cause %+v", d, d.Cause)
	}
}

func checkExit(r *run) {
	task := r.fleet(r.Exit(3), 1)
	r.apply(task)
	var death kiln.Instance
	r.await("it exits", func(o kiln.Observation) bool {
		s, _ := o.Fleet(task.ID())
		if len(s.Deaths) > 0 {
			death = s.Deaths[0]
		}
		return len(s.Deaths) > 0
	})
	c := death.Cause
	if c == nil || c.Kind != kiln.CauseExited || c.ExitCode != 3 || !contains(c.LastLog, "bye") {
		r.Errorf("the cause is %+v", c)
	}
}

func checkNeverReady(r *run) {
	bad := r.fleet(r.NeverReady(), 1)
	r.apply(bad)
	var death kiln.Instance
	r.await("it dies", func(o kiln.Observation) bool {
		s, _ := o.Fleet(bad.ID())
		if s.Ready() > 0 {
			r.Fatal("it became ready")
		}
		if len(s.Deaths) > 0 {
			death = s.Deaths[0]
		}
		return len(s.Deaths) > 0
	})
	if c := death.Cause; c == nil || c.Kind != kiln.CauseNeverReady || c.Detail == "" || !death.ReadyAt.IsZero() {
		r.Errorf("the death is %+v, cause %+v", death, c)
	}
}

func checkIgnoresTerm(r *run) {
	deaf := r.fleet(r.IgnoresTerm(), 1)
	s, _ := r.up(deaf).Fleet(deaf.ID())
	r.apply()
	id := s.Instances[0].ID
	c := r.awaitChange("its death", isDead(id)).Instance.Cause
	if c == nil || c.Kind != kiln.CauseStopped {
		r.Errorf("the cause is %+v", c)
	}
}

func checkReplace(r *run) {
	web := r.fleet(r.Serve("1"), 1)
	s, _ := r.up(web).Fleet(web.ID())
	old := s.Instances[0].ID
	if err := r.Engine.Replace(r.ctx, old, "it is old"); err != nil {
		r.Fatalf("Replace: %v", err)
	}
	death := r.awaitChange("the end of the old one", isDead(old)).Instance
	if c := death.Cause; c == nil || c.Kind != kiln.CauseBurned || !strings.Contains(c.Detail, "it is old") {
		r.Errorf("the cause is %+v", death.Cause)
	}
	readyBefore := false
	for _, c := range r.seen {
		if c.Instance == nil {
			continue
		}
		if c.Instance.ID != old && c.Instance.State == kiln.InstanceReady {
			readyBefore = true
		}
		left := c.Instance.ID == old && c.Instance.State != kiln.InstanceReady && c.Instance.State != kiln.InstanceStarting
		if left && !readyBefore {
			r.Fatalf("the old one was %s before another was ready", c.Instance.State)
		}
	}
	for _, id := range []string{old, "nobody-1"} {
		if err := r.Engine.Replace(r.ctx, id, "again"); !errors.Is(err, kiln.ErrNotFound) {
			r.Errorf("Replace of %s: %v, want not found", id, err)
		}
	}
}

func checkQuarantine(r *run) {
	web := r.fleet(r.Serve("1"), 2)
	s, _ := r.up(web).Fleet(web.ID())
	r.route(web)
	body := s.Instances[0].ID
	if err := r.Engine.Quarantine(r.ctx, body, "it looks odd"); err != nil {
		r.Fatalf("Quarantine: %v", err)
	}
	r.await("it is quarantined and replaced", func(o kiln.Observation) bool {
		s, _ := o.Fleet(web.ID())
		i := slices.IndexFunc(s.Instances, func(i kiln.Instance) bool { return i.ID == body })
		if i < 0 {
			r.Fatal("the body is gone")
		}
		return s.Ready() == 2 && s.Instances[i].State == kiln.InstanceQuarantined
	})
	if r.Get != nil {
		before := r.requests(body)
		for range 20 {
			r.mustGet("1")
		}
		if after := r.requests(body); after != before {
			r.Errorf("the body got %d requests", after-before)
		}
	}
	if err := r.Engine.Quarantine(r.ctx, "nobody-1", "x"); !errors.Is(err, kiln.ErrNotFound) {
		r.Errorf("Quarantine of nobody: %v, want not found", err)
	}
}

func checkObserve(r *run) {
	fleets := []kiln.Fleet{r.fleet(r.Serve("1"), 1), r.fleet(r.Serve("2"), 2), r.fleet(r.IgnoresTerm(), 1)}
	o := r.up(fleets...)
	if o.Environment != r.Environment || len(o.Fleets) != len(fleets) {
		r.Fatalf("%d fleets are observed, want %d", len(o.Fleets), len(fleets))
	}
	if !slices.IsSortedFunc(o.Fleets, func(a, b kiln.FleetStatus) int { return strings.Compare(string(a.ID), string(b.ID)) }) {
		r.Error("the fleets are not sorted")
	}
	for _, f := range o.Fleets {
		if !slices.IsSortedFunc(f.Instances, func(a, b kiln.Instance) int { return a.CreatedAt.Compare(b.CreatedAt) }) {
			r.Errorf("the instances of %s are not sorted by age", f.ID)
		}
	}
	other, err := r.Engine.Observe(r.ctx, r.Environment+"-unknown")
	if err != nil || len(other.Fleets) != 0 {
		r.Errorf("an unknown environment is observed as %+v, %v", other, err)
	}
}

func checkWatch(r *run) {
	web := r.fleet(r.Serve("1"), 1)
	s, _ := r.up(web).Fleet(web.ID())
	id := s.Instances[0].ID
	r.apply()
	dead := r.awaitChange("its death", isDead(id))
	if dead.Missed || dead.At.IsZero() || dead.Instance.DiedAt.IsZero() {
		r.Errorf("the death is reported as %+v", dead)
	}
	want := []kiln.InstanceState{kiln.InstanceStarting, kiln.InstanceReady, kiln.InstanceDraining, kiln.InstanceDead}
	if got := r.states(id); !slices.Equal(got, want) {
		r.Errorf("its states were %v, want %v", got, want)
	}
}

func checkWatchEnds(r *run) {
	ctx, cancel := context.WithCancel(r.ctx)
	changes := r.Engine.Watch(ctx)
	cancel()
	limit := time.After(r.Patience)
	for {
		select {
		case _, ok := <-changes:
			if !ok {
				return
			}
		case <-limit:
			r.Fatalf("the channel is open %s after the end", r.Patience)
		}
	}
}

func checkMissed(r *run) {
	if r.Storm == nil {
		r.Skip("no way to cause so many changes")
	}
	r.Storm()
	c := r.awaitChange("that changes were missed", func(c kiln.Change) bool { return c.Missed })
	if c.Instance != nil || c.Event != nil {
		r.Errorf("it was reported with something else: %+v", c)
	}
	web := r.fleet(r.Serve("1"), 1)
	r.apply(web)
	r.awaitChange("what came after", func(c kiln.Change) bool { return c.Instance != nil })
}

func checkRun(r *run) {
	for _, code := range []int{0, 7} {
		got, err := r.Engine.Run(r.ctx, kiln.Task{Environment: r.Environment, Template: r.Exit(code), Timeout: r.Patience})
		if err != nil {
			r.Fatalf("Run: %v", err)
		}
		if c := got.Cause; c.Kind != kiln.CauseExited || c.ExitCode != code || !contains(c.LastLog, "bye") {
			r.Errorf("a command that exits with %d ended with %+v", code, c)
		}
	}
	got, err := r.Engine.Run(r.ctx, kiln.Task{Environment: r.Environment, Template: r.Serve("1"), Timeout: 300 * time.Millisecond})
	if err == nil && (!got.Cause.Failure() || got.Cause.Kind == kiln.CauseExited && got.Cause.ExitCode == 0) {
		r.Errorf("a command that ran into its timeout ended with %+v", got.Cause)
	}
	if n := living(r.observe()); n != 0 {
		r.Errorf("%d instances are left of it", n)
	}
}

func checkCheck(r *run) {
	web := r.fleet(r.Serve("1"), 2)
	r.up(web)
	checks := []struct {
		verify kiln.Verify
		ok     bool
	}{
		{kiln.Verify{Name: "body", HTTP: "/", Body: "1"}, true},
		{kiln.Verify{Name: "status", HTTP: "/healthz", Status: http.StatusOK}, true},
		{kiln.Verify{Name: "wrong body", HTTP: "/", Body: "no such text"}, false},
		{kiln.Verify{Name: "wrong status", HTTP: "/healthz", Status: http.StatusTeapot}, false},
	}
	for _, c := range checks {
		c.verify.Timeout = r.Patience
		err := r.Engine.Check(r.ctx, web.ID(), c.verify)
		if (err == nil) != c.ok {
			r.Errorf("check %q: %v", c.verify.Name, err)
		}
	}
	if err := r.Engine.Check(r.ctx, kiln.FleetIDOf(r.Environment, r.Serve("unknown")), checks[0].verify); err == nil {
		r.Error("a check of an unknown fleet passed")
	}
}

// route sends the host's requests to one fleet.
func (r *run) route(f kiln.Fleet) {
	r.Helper()
	port, _ := f.Template.Port("")
	table := kiln.RouteTable{
		Public: []kiln.PublicRoute{{
			Environment: r.Environment, Protocol: port.Protocol, Number: port.Number, Drain: time.Second,
			Route:  kiln.Route{Name: "check", Service: f.Template.Service, Port: port.Name, Host: r.Host, Path: "/", TLS: kiln.TLS{Mode: "off"}},
			Fleets: []kiln.Weight{{Fleet: f.ID(), Percent: 100}},
		}},
		Callers: map[kiln.FleetID]int{f.ID(): 1},
	}
	if err := r.Engine.Route(r.ctx, table); err != nil {
		r.Fatalf("Route: %v", err)
	}
}

func (r *run) mustGet(version string) {
	r.Helper()
	status, body, err := r.Get(r.ctx, "/")
	if err != nil || status != http.StatusOK || strings.TrimSpace(body) != version {
		r.Fatalf("GET / was answered with %d %q, %v; want version %s", status, body, err, version)
	}
}

func (r *run) requests(instance string) uint64 {
	r.Helper()
	all, err := r.Engine.Measure(r.ctx)
	if err != nil {
		r.Fatalf("Measure: %v", err)
	}
	for _, m := range all {
		if m.Instance == instance {
			return m.Requests
		}
	}
	return 0
}

func checkRoute(r *run) {
	if r.Get == nil {
		r.Skip("no way to send requests")
	}
	older, newer := r.fleet(r.Serve("1"), 2), r.fleet(r.Serve("2"), 2)
	r.up(older, newer)
	r.route(older)
	r.mustGet("1")
	failed := make(chan error, 1)
	stop := make(chan struct{})
	go func() {
		defer close(failed)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if status, _, err := r.Get(r.ctx, "/"); err != nil || status != http.StatusOK {
				failed <- errors.Join(err, errors.New(http.StatusText(status)))
				return
			}
		}
	}()
	for range 20 {
		r.route(newer)
		r.mustGet("2")
		r.route(older)
		r.mustGet("1")
	}
	close(stop)
	if err := <-failed; err != nil {
		r.Errorf("a request failed during the switch: %v", err)
	}
}

func checkMeasure(r *run) {
	if r.Get == nil {
		r.Skip("no way to send requests")
	}
	web := r.fleet(r.Serve("1"), 2)
	s, _ := r.up(web).Fleet(web.ID())
	r.route(web)
	for range 10 {
		r.mustGet("1")
	}
	sum := r.requests(s.Instances[0].ID) + r.requests(s.Instances[1].ID)
	if sum < 10 {
		r.Errorf("%d requests are counted, want 10", sum)
	}
	all, err := r.Engine.Measure(r.ctx)
	if err != nil {
		r.Fatalf("Measure: %v", err)
	}
	i := slices.IndexFunc(all, func(m kiln.Measurement) bool { return m.Fleet == web.ID() && m.Instance == "" })
	if i < 0 || all[i].Requests < 10 || all[i].Status[1] < 10 {
		r.Errorf("the fleet's sum is not counted: %+v", all)
	}
}

func checkLogs(r *run) {
	task, web := r.fleet(r.Exit(0), 1), r.fleet(r.Serve("1"), 1)
	r.apply(task, web)
	var id string
	r.await("it exits", func(o kiln.Observation) bool {
		s, _ := o.Fleet(task.ID())
		if len(s.Deaths) > 0 {
			id = s.Deaths[0].ID
		}
		return len(s.Deaths) > 0
	})
	lines := r.logs(kiln.LogQuery{Environment: r.Environment, Instance: id})
	if !slices.ContainsFunc(lines, func(l kiln.LogLine) bool { return l.Text == "bye" && l.Instance == id && !l.At.IsZero() }) {
		r.Errorf("the logs of %s are %+v", id, lines)
	}
	for _, l := range r.logs(kiln.LogQuery{Environment: r.Environment, Service: web.Template.Service}) {
		if strings.HasPrefix(l.Instance, task.Template.Service+"-") {
			r.Errorf("the logs of %s have a line of %s", web.Template.Service, l.Instance)
		}
	}
	if lines := r.logs(kiln.LogQuery{Environment: r.Environment, Instance: id, Tail: 1}); len(lines) != 1 {
		r.Errorf("the last line of %s is %+v", id, lines)
	}
	if lines := r.logs(kiln.LogQuery{Environment: r.Environment + "-unknown"}); len(lines) != 0 {
		r.Errorf("the logs of an unknown environment are %+v", lines)
	}
}

func (r *run) logs(q kiln.LogQuery) []kiln.LogLine {
	r.Helper()
	var b bytes.Buffer
	if err := r.Engine.Logs(r.ctx, &b, q); err != nil {
		r.Fatalf("Logs: %v", err)
	}
	var out []kiln.LogLine
	for d := json.NewDecoder(&b); d.More(); {
		var l kiln.LogLine
		if err := d.Decode(&l); err != nil {
			r.Fatalf("a line of Logs: %v", err)
		}
		out = append(out, l)
	}
	return out
}
