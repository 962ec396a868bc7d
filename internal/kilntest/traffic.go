package kilntest

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/kilnproject/kiln"
)

// Get sends a request through the fake's public routes, as the table and the
// instances are now. It errs where a gateway would refuse: no route, or no
// instance that is ready.
func (f *Fake) Get(host, path string) (status int, body, instance string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	route, ok := f.match(host, path)
	if !ok {
		f.unrouted++
		return 0, "", "", fmt.Errorf("no route for %s%s", host, path)
	}
	i := f.choose(route)
	if i == nil {
		return 0, "", "", fmt.Errorf("no instance is ready for route %s", route.Route.Name)
	}
	status, body = i.answer(path)
	f.count(i, status, len(body))
	return status, body, i.ID, nil
}

// match finds the route with the longest prefix.
func (f *Fake) match(host, path string) (kiln.PublicRoute, bool) {
	var best kiln.PublicRoute
	found := false
	for _, r := range f.table.Public {
		prefix := cmp.Or(strings.TrimSuffix(r.Route.Path, "/"), "")
		below := path == prefix || strings.HasPrefix(path, prefix+"/")
		if r.Route.Host != host || !below {
			continue
		}
		if !found || len(prefix) > len(strings.TrimSuffix(best.Route.Path, "/")) {
			best, found = r, true
		}
	}
	return best, found
}

// choose takes the fleets by weight and their ready instances in turn.
func (f *Fake) choose(route kiln.PublicRoute) *fakeInstance {
	f.turns++
	at := f.turns * 37 % 100 // visits each percent once in a hundred turns
	for _, w := range route.Fleets {
		if at >= w.Percent {
			at -= w.Percent
			continue
		}
		e := f.environments[route.Environment]
		if e == nil || e.fleets[w.Fleet] == nil {
			return nil
		}
		var ready []*fakeInstance
		for _, i := range e.fleets[w.Fleet].instances {
			if i.State == kiln.InstanceReady || i.State == kiln.InstanceQuarantined && f.broken[QuarantineServes] {
				ready = append(ready, i)
			}
		}
		if len(ready) == 0 {
			return nil
		}
		return ready[f.turns%len(ready)]
	}
	return nil
}

func (i *fakeInstance) answer(path string) (status int, body string) {
	switch {
	case i.Answer != nil:
		return i.Answer(path)
	case path == "/":
		return http.StatusOK, i.template.Config.Env["VERSION"]
	case path == "/healthz":
		return http.StatusOK, "ok"
	default:
		return http.StatusNotFound, "not found"
	}
}

func (f *Fake) count(i *fakeInstance, status, size int) {
	if f.broken[MeasureStuck] {
		return
	}
	for _, key := range []kiln.Measurement{{Fleet: i.Fleet}, {Fleet: i.Fleet, Instance: i.ID}} {
		m := f.counts[key]
		if m == nil {
			m = &kiln.Measurement{Fleet: key.Fleet, Instance: key.Instance}
			f.counts[key] = m
		}
		m.Requests++
		m.Status[min(max(status/100, 1), 5)-1]++
		m.BytesOut += uint64(size)
		m.Latency[0]++
	}
}

// Measure implements kiln.Engine.
func (f *Fake) Measure(ctx context.Context) ([]kiln.Measurement, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []kiln.Measurement
	for _, m := range f.counts {
		out = append(out, *m)
	}
	slices.SortFunc(out, func(a, b kiln.Measurement) int {
		return cmp.Or(cmp.Compare(a.Fleet, b.Fleet), cmp.Compare(a.Instance, b.Instance))
	})
	return out, ctx.Err()
}

// Check implements kiln.Engine.
func (f *Fake) Check(ctx context.Context, fleet kiln.FleetID, check kiln.Verify) error {
	if err := f.called(ctx, Call{Method: "Check", Reason: check.Name}); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	environment, _, _ := strings.Cut(string(fleet), "/")
	e := f.environments[environment]
	if e == nil || e.fleets[fleet] == nil {
		return kiln.Errorf(kiln.CodeNotFound, "", "no fleet %s", fleet)
	}
	checked := 0
	for _, i := range e.fleets[fleet].instances {
		if i.State != kiln.InstanceReady {
			continue
		}
		checked++
		if err := i.check(check); err != nil && !f.broken[CheckIsKind] {
			return err
		}
	}
	if checked == 0 {
		return kiln.Errorf(kiln.CodeFailed, "", "check %s: no instance of %s is ready", check.Name, fleet)
	}
	return nil
}

func (i *fakeInstance) check(want kiln.Verify) error {
	status, body := i.answer(want.HTTP)
	ok := status == want.Status || want.Status == 0 && status >= 200 && status < 400
	if !ok {
		return kiln.Errorf(kiln.CodeFailed, "", "check %s: %s answered %d to GET %s", want.Name, i.ID, status, want.HTTP)
	}
	if !strings.Contains(body, want.Body) {
		return kiln.Errorf(kiln.CodeFailed, "", "check %s: the answer of %s to GET %s does not contain %q", want.Name, i.ID, want.HTTP, want.Body)
	}
	return nil
}

// Run implements kiln.Engine.
func (f *Fake) Run(ctx context.Context, task kiln.Task) (kiln.TaskResult, error) {
	if err := f.called(ctx, Call{Method: "Run", Environment: task.Environment, Task: &task}); err != nil {
		return kiln.TaskResult{}, err
	}
	began := time.Now()
	f.mu.Lock()
	i := f.newInstance(task.Environment, task.Template, "task")
	for _, text := range i.Output {
		f.log(i.ID, "stdout", text)
	}
	f.mu.Unlock()
	if i.StartFailed != "" {
		return kiln.TaskResult{}, kiln.Errorf(kiln.CodeFailed, "", "start %s: %s", i.ID, i.StartFailed)
	}
	cause, err := i.run(ctx, task.Timeout)
	f.mu.Lock()
	defer f.mu.Unlock()
	cause.LastLog = f.lastLog(i.ID)
	i.State, i.DiedAt, i.Cause = kiln.InstanceDead, time.Now(), &cause
	if f.broken[RunIsKind] {
		cause.ExitCode = 0
	}
	return kiln.TaskResult{Cause: cause, Took: time.Since(began)}, err
}

// run waits for a task's end. One that does not exit by itself runs into its
// timeout.
func (i *fakeInstance) run(ctx context.Context, timeout time.Duration) (kiln.Cause, error) {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, timeout, errTimeout)
		defer cancel()
	}
	var exit <-chan time.Time
	if i.Exits {
		exit = time.After(i.ExitAfter)
	}
	select {
	case <-exit:
		return kiln.Cause{Kind: kiln.CauseExited, ExitCode: i.ExitCode}, nil
	case <-ctx.Done():
	}
	if context.Cause(ctx) == errTimeout { //nolint:errorlint // our own value
		return kiln.Cause{Kind: kiln.CauseSignalled, Signal: "SIGKILL", Detail: "it did not end within " + timeout.String()}, nil
	}
	return kiln.Cause{Kind: kiln.CauseStopped}, ctx.Err()
}
