package control

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/kilntest"
)

func TestUpReplacesAndParks(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		first := shop("production", "1")
		r := b.mustUp(first)
		if r.Release.Number != 1 || r.Nothing || len(r.Steps) != 3 || !slices.Equal(r.URLs, []string{"http://production.example.com/"}) {
			t.Fatalf("first up: %+v", r)
		}
		b.wantRunning("production", map[string]int{"web 1": 3, "orders 1": 2, "mailer 1": 1})

		if r = b.mustUp(first); !r.Nothing || r.Release.Number != 1 {
			t.Fatalf("an up without a change: %+v", r)
		}
		second := shop("production", "2")
		b.mustUp(second)
		b.settled()
		b.wantStates("production", kiln.ReleaseParked, kiln.ReleaseLive)
		b.wantRunning("production", map[string]int{"web 1": 3, "orders 1": 2, "web 2": 3, "orders 2": 2, "mailer 2": 1})
		b.wantPublic(b.fleet(*second.service("web")))

		b.mustUp(shop("production", "3"))
		b.settled()
		b.wantStates("production", kiln.ReleaseRetired, kiln.ReleaseParked, kiln.ReleaseLive)
		b.wantRunning("production", map[string]int{"web 2": 3, "orders 2": 2, "web 3": 3, "orders 3": 2, "mailer 3": 1})

		kilntest.Pass(31 * time.Minute)
		b.settled()
		b.wantStates("production", kiln.ReleaseRetired, kiln.ReleaseRetired, kiln.ReleaseLive)
		b.wantRunning("production", map[string]int{"web 3": 3, "orders 3": 2, "mailer 3": 1})
	})
}

func TestOnlyWhatChangedIsReplaced(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		a := shop("production", "1")
		b.mustUp(a)
		before, err := b.Instances(t.Context(), "production")
		check(t, err)
		*a.service("web") = serving("web", "2", 3)
		a.service("orders").Count = 4
		r := b.mustUp(a)
		b.settled()
		var verbs []string
		for _, s := range r.Steps {
			verbs = append(verbs, string(s.Verb)+" "+s.Service)
		}
		if !slices.Equal(verbs, []string{"create orders", "replace web"}) {
			t.Fatalf("steps %+v", r.Steps)
		}
		after, err := b.Instances(t.Context(), "production")
		check(t, err)
		for _, i := range before {
			if i.Service == "web" {
				continue
			}
			if !slices.ContainsFunc(after, func(o kiln.Instance) bool { return o.ID == i.ID && o.State == kiln.InstanceReady }) {
				t.Errorf("%s was touched", i.ID)
			}
		}
		b.wantRunning("production", map[string]int{"web 1": 3, "web 2": 3, "orders 1": 4, "mailer 1": 1})
	})
}

func TestFailuresBeforeTheSwitchLeaveTheOldRelease(t *testing.T) {
	for name, c := range map[string]struct {
		behave   kilntest.Behaviour
		service  string
		verify   []kiln.Verify
		cause    string
		evidence string
	}{
		"exits": {
			service: "web", behave: kilntest.Behaviour{Exits: true, ExitCode: 3, Output: []string{"cannot read /etc/web.conf"}, Start: time.Minute},
			cause: "exited with code 3", evidence: "log: cannot read /etc/web.conf",
		},
		"never ready": {
			service: "web", behave: kilntest.Behaviour{NeverReady: true}, cause: "did not become ready in time", evidence: "connection refused",
		},
		"cannot start": {service: "orders", behave: kilntest.Behaviour{StartFailed: "no such file"}, cause: "could not be started: no such file"},
		"slow":         {service: "web", behave: kilntest.Behaviour{Start: time.Hour}, cause: "0 of 3 instances were ready"},
		"worker exits": {service: "mailer", behave: kilntest.Behaviour{Exits: true, ExitCode: 1, Start: time.Minute}, cause: "exited with code 1"},
		"daemonizes": {
			service: "web", behave: kilntest.Behaviour{Exits: true, ExitAfter: 100 * time.Millisecond}, cause: "exited with code 0",
		},
		"dies of its first requests": {
			service: "web", behave: kilntest.Behaviour{Exits: true, ExitAfter: 300 * time.Millisecond, ExitCode: 2}, cause: "exited with code 2",
		},
		"verify": {
			service: "web", verify: []kiln.Verify{{Name: "page", HTTP: "/", Body: "9", Timeout: time.Second}}, cause: `verify "page" of service web`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			onBench(t, func(t *testing.T, b *bench) {
				first := shop("production", "1")
				b.mustUp(first)
				second := shop("production", "2")
				s := second.service(c.service)
				s.Rollout.Verify = c.verify
				b.engine.BehaveImage(kiln.DigestOf([]byte(s.Image)), c.behave)
				_, err := b.up(second)
				var failed *kiln.Error
				if !errors.As(err, &failed) || !strings.Contains(failed.Message, c.cause) {
					t.Fatalf("up: %v, want %q", err, c.cause)
				}
				if !strings.Contains(strings.Join(failed.Evidence, "\n"), c.evidence) {
					t.Fatalf("evidence %q, want %q", failed.Evidence, c.evidence)
				}
				b.settled()
				b.wantStates("production", kiln.ReleaseLive, kiln.ReleaseFailed)
				b.wantRunning("production", map[string]int{"web 1": 3, "orders 1": 2, "mailer 1": 1})
				b.wantPublic(b.fleet(*first.service("web")))
				b.mustUp(shop("production", "3"))
			})
		})
	}
}

func TestVerifyRunsAsACallerOfTheNewRelease(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		a := shop("production", "1")
		a.service("web").Rollout.Verify = []kiln.Verify{
			{Name: "page", HTTP: "/", Body: "1", Timeout: time.Second},
			{Name: "smoke", Command: []string{"/bin/smoke"}, Image: "orders-1", Timeout: time.Minute},
		}
		b.engine.Behave(func(t kiln.Template) bool { return len(t.Config.Entrypoint) > 0 }, kilntest.Behaviour{Exits: true})
		b.mustUp(a)
		calls := b.engine.Calls()
		run := slices.IndexFunc(calls, func(c kilntest.Call) bool { return c.Method == "Run" })
		if run < 0 || calls[run].Task.Release != 1 || calls[run].Task.Template.Image != kiln.DigestOf([]byte("orders-1")) {
			t.Fatalf("calls %+v", b.engine.Methods())
		}
		for _, c := range calls[:run] {
			if c.Method == "Route" && len(c.Table.Public) > 0 {
				t.Fatal("public traffic before verify")
			}
		}
	})
}

func TestOneChangeAtATime(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.baker.block = make(chan struct{})
		done := make(chan error, 1)
		go func() {
			_, err := b.up(shop("production", "1"))
			done <- err
		}()
		synctest.Wait()
		_, err := b.up(shop("production", "2"))
		if !errors.Is(err, kiln.ErrConflict) || !strings.Contains(err.Error(), "ada") {
			t.Fatalf("second up: %v", err)
		}
		close(b.baker.block)
		check(t, <-done)
		b.mustUp(shop("production", "2"))
	})
}

func TestEnvironmentsMoveInParallel(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.engine.BehaveService("web", kilntest.Behaviour{Start: 5 * time.Second})
		began := time.Now()
		done := make(chan error, 2)
		for _, name := range []string{"staging", "production"} {
			go func() {
				_, err := b.up(shop(name, "1"))
				done <- err
			}()
		}
		check(t, <-done)
		check(t, <-done)
		if took := time.Since(began); took > 9*time.Second {
			t.Fatalf("took %s", took)
		}
		b.wantStates("staging", kiln.ReleaseLive)
		b.wantStates("production", kiln.ReleaseLive)
	})
}

func TestAHostNameBelongsToOneEnvironment(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.mustUp(shop("production", "1"))
		thief := shop("staging", "1")
		thief.Routes[0].Host = "PRODUCTION.example.com"
		_, err := b.up(thief)
		var refused *kiln.Error
		if !errors.As(err, &refused) || refused.Code != kiln.CodeRefused || !strings.Contains(err.Error(), "production") {
			t.Fatalf("claim: %v", err)
		}
		check(t, b.Down(t.Context(), DownRequest{Environment: "production"}, nil))
		b.mustUp(thief)
	})
}

func TestBranchesAreKept(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		a := shop("production", "1")
		a.Environment.Branch = "main"
		for _, s := range []kiln.Source{{Branch: "main", Dirty: true}, {Branch: "other"}, {}} {
			r := a.request()
			r.Source = s
			_, err := b.Up(t.Context(), r, nil)
			var refused *kiln.Error
			if !errors.As(err, &refused) || refused.Code != kiln.CodeRefused {
				t.Errorf("%+v: %v", s, err)
			}
		}
		r := a.request()
		r.Source = kiln.Source{Branch: "main", Commit: "abc"}
		_, err := b.Up(t.Context(), r, nil)
		check(t, err)
	})
}

func TestAClientThatGoesAway(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.baker.block = make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := b.Up(ctx, shop("production", "1").request(), nil)
			done <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-done; err == nil {
			t.Fatal("up went on")
		}
		if n := len(b.states("production")); n != 0 {
			t.Fatalf("%d releases", n)
		}
		b.baker.block = nil

		b.engine.BehaveService("web", kilntest.Behaviour{Start: 5 * time.Second})
		ctx, cancel = context.WithCancel(t.Context())
		go func() {
			_, err := b.Up(ctx, shop("production", "1").request(), nil)
			done <- err
		}()
		kilntest.Pass(time.Second)
		cancel()
		if err := <-done; err == nil {
			t.Fatal("up waited for nobody")
		}
		b.settled()
		b.wantStates("production", kiln.ReleaseLive)
	})
}

func TestPlanSaysWhatUpWouldDo(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.mustUp(shop("production", "1"))
		a := shop("production", "2")
		p, err := b.Plan(t.Context(), a.request())
		check(t, err)
		r := b.mustUp(a)
		if p.Live != 1 || len(p.Steps) != 3 || len(p.Steps) != len(r.Steps) {
			t.Fatalf("plan %+v, up %+v", p, r.Steps)
		}
		if p, err = b.Plan(t.Context(), a.request()); err != nil || len(p.Steps) != 0 || len(p.Routes) != 0 {
			t.Fatalf("plan of what is live: %+v, %v", p, err)
		}
	})
}

// TestPlanForesees what Up says besides its steps: Up is asked each time.
func TestPlanForesees(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		first, second := shop("production", "1"), shop("production", "2")
		b.mustUp(first)
		bound, other, empty := shop("production", "3"), shop("production", "3"), shop("production", "3")
		bound.Environment.Branch = "main"
		for _, s := range []string{"web", "orders", "mailer"} {
			other.service(s).Name = "other-" + s
		}
		other.Routes, empty.Services, empty.Routes = nil, nil, nil
		commented := first.request()
		commented.Tree.Entries[0].Link += " "
		for name, c := range map[string]struct {
			r       UpRequest
			refused bool
			release bool
		}{
			"the same": {r: first.request()}, "another": {r: second.request()},
			"a comment": {r: commented, release: true}, "no branch": {r: bound.request(), refused: true},
			"another project": {r: other.request(), refused: true}, "no service": {r: empty.request(), refused: true},
		} {
			p, err := b.Plan(t.Context(), c.r)
			if err != nil || (p.Refused != nil) != c.refused || (p.Release != "") != c.release {
				t.Errorf("%s: %+v, %v", name, p, err)
			}
			if !c.refused {
				continue
			}
			var said *kiln.Error
			if _, err := b.Up(t.Context(), c.r, func(kiln.Progress) {}); !errors.As(err, &said) || p.Refused == nil || said.Message != p.Refused.Message {
				t.Errorf("%s: up says %v, plan %v", name, err, p.Refused)
			}
		}
		if r, err := b.Up(t.Context(), commented, func(kiln.Progress) {}); err != nil || r.Nothing || len(r.Steps) != 0 {
			t.Errorf("up with a comment: %+v, %v", r, err)
		}
		b.mustUp(second)
		b.settled()
		_, err := b.Rollback(t.Context(), RollbackRequest{Environment: "production"}, func(kiln.Progress) {})
		check(t, err)
		b.settled()
		again := second.request()
		if p, err := b.Plan(t.Context(), again); err != nil || p.Refused == nil || !strings.Contains(p.Refused.Message, "condemned") {
			t.Errorf("plan of what was rolled back: %+v, %v", p, err)
		}
		again.Again = true
		if p, err := b.Plan(t.Context(), again); err != nil || p.Refused != nil {
			t.Errorf("plan of it again: %+v, %v", p, err)
		}
	})
}

func TestADefinitionWithoutServicesIsRefused(t *testing.T) {
	onBench(t, func(t *testing.T, b *bench) {
		b.mustUp(shop("production", "1"))
		empty := shop("production", "1")
		empty.Services, empty.Routes = nil, nil
		_, err := b.up(empty)
		var said *kiln.Error
		if !errors.As(err, &said) || said.Code != kiln.CodeInvalid {
			t.Fatalf("an empty definition: %v", err)
		}
		b.settled()
		b.wantRunning("production", map[string]int{"web 1": 3, "orders 1": 2, "mailer 1": 1})
	})
}
