package kilntest

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kilnproject/kiln"
)

// fakeUnderTest is a fake with the templates of the suite.
func fakeUnderTest(f *Fake) EngineUnderTest {
	template := func(service, version string) kiln.Template {
		t := fleetOf(service, version, 0).Template
		t.Config.StartTimeout, t.Config.Grace = 200*time.Millisecond, 100*time.Millisecond
		return t
	}
	f.BehaveService("stuck", Behaviour{NeverReady: true})
	f.BehaveService("deaf", Behaviour{IgnoresTerm: true})
	return EngineUnderTest{
		Engine: f, Environment: "production", Host: "shop.localhost", Patience: 5 * time.Second,
		Serve: func(version string) kiln.Template { return template("web", version) },
		Exit: func(code int) kiln.Template {
			t := template("task", fmt.Sprint(code))
			t.Ports = nil
			f.BehaveImage(t.Image, Behaviour{Exits: true, ExitCode: code, Output: []string{"hello", "bye"}})
			return t
		},
		NeverReady:  func() kiln.Template { return template("stuck", "1") },
		IgnoresTerm: func() kiln.Template { return template("deaf", "1") },
		Kill: func(i kiln.Instance) error {
			return f.Kill(i.ID, kiln.Cause{Kind: kiln.CauseSignalled, Signal: "SIGKILL"})
		},
		Get: func(_ context.Context, path string) (int, string, error) {
			status, body, _, err := f.Get("shop.localhost", path)
			return status, body, err
		},
		Storm: func() {
			for range 10 * watchBuffer {
				f.Emit(kiln.Event{Kind: "egress.blocked"})
			}
		},
	}
}

func TestFakePassesTheSuite(t *testing.T) {
	RunEngineSuite(t, func(*testing.T) EngineUnderTest { return fakeUnderTest(NewFake()) })
}

// recorder is a test that may fail without failing the one that it is in.
type recorder struct {
	testing.TB
	mu     sync.Mutex
	failed []string
}

func (r *recorder) fail(text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed = append(r.failed, text)
}

func (r *recorder) Failed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.failed) > 0
}
func (r *recorder) Helper()                        {}
func (r *recorder) Error(args ...any)              { r.fail(fmt.Sprint(args...)) }
func (r *recorder) Errorf(format string, a ...any) { r.fail(fmt.Sprintf(format, a...)) }
func (r *recorder) Fatal(args ...any)              { r.Error(args...); runtime.Goexit() }
func (r *recorder) Fatalf(format string, a ...any) { r.Errorf(format, a...); runtime.Goexit() }

// TestSuiteFindsEachDefect breaks each guard once.
func TestSuiteFindsEachDefect(t *testing.T) {
	for _, m := range Mutations() {
		t.Run(string(m), func(t *testing.T) {
			var found []string
			for _, c := range suiteCases() {
				synctest.Test(t, func(t *testing.T) {
					r := &recorder{TB: t}
					f := NewFake()
					f.Break(m)
					done := make(chan struct{})
					go func() { defer close(done); c.check(r, fakeUnderTest(f)) }()
					<-done
					synctest.Wait()
					if r.Failed() {
						found = append(found, c.name)
					}
				})
			}
			if len(found) == 0 {
				t.Fatalf("the suite does not find that %s", m)
			}
			t.Logf("found by: %s", strings.Join(found, "; "))
		})
	}
}
