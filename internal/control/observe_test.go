package control

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/kilntest"
)

// watcher is an observer that notes what is part of what.
type watcher struct {
	mu     sync.Mutex
	began  []string // "kiln up/rollout/rollout step start"
	ended  map[string]int
	failed []string
}

type placeKey struct{}

func (w *watcher) Begin(ctx context.Context, name string, about ...string) (context.Context, End) {
	if name == workStep {
		name += " " + about[1]
	}
	if above, ok := ctx.Value(placeKey{}).(string); ok {
		name = above + "/" + name
	}
	w.mu.Lock()
	w.began = append(w.began, name)
	w.mu.Unlock()
	return context.WithValue(ctx, placeKey{}, name), func(err error, about ...string) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.ended[name]++
		if err != nil {
			w.failed = append(w.failed, name)
		}
		if len(about)%2 != 0 {
			panic("a name without a value")
		}
	}
}

// work is what was begun, without reconciles, which come by the clock.
func (w *watcher) work() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(w.began), func(name string) bool { return name == workReconcile })
}

// placedEngine notes where its methods are called from.
type placedEngine struct {
	*kilntest.Fake
	mu     sync.Mutex
	admits []string
}

func (e *placedEngine) Admit(ctx context.Context, fleets []kiln.Fleet) error {
	place, _ := ctx.Value(placeKey{}).(string)
	e.mu.Lock()
	e.admits = append(e.admits, place)
	e.mu.Unlock()
	return e.Fake.Admit(ctx, fleets)
}

func observed(t *testing.T, test func(b *bench, w *watcher, e *placedEngine)) {
	onBench(t, func(_ *testing.T, b *bench) {
		w := &watcher{ended: map[string]int{}}
		e := &placedEngine{Fake: b.engine}
		b.halt()
		b.observer, b.engineAs = w, e
		b.start()
		test(b, w, e)
	})
}

func TestWorkIsObserved(t *testing.T) {
	observed(t, func(b *bench, w *watcher, e *placedEngine) {
		first := shop("production", "v1")
		first.service("web").Rollout.Verify = []kiln.Verify{{Name: "home", HTTP: "/", Timeout: time.Second}}
		b.mustUp(first)
		kilntest.Pass(time.Minute)
		want := []string{
			"kiln up", "kiln up/parse", "kiln up/bake", "kiln up/bundle", "kiln up/release", "kiln up/rollout",
			"kiln up/rollout/rollout step admit", "kiln up/rollout/rollout step start", "kiln up/rollout/rollout step ready",
			"kiln up/rollout/rollout step verify", "kiln up/rollout/rollout step verify/verify",
			"kiln up/rollout/rollout step switch", "kiln up/rollout/rollout step workers", "kiln up/rollout/rollout step settle",
		}
		if diff := cmp.Diff(want, w.work()); diff != "" {
			b.t.Error(diff)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		reconciled := false
		for _, name := range w.began {
			reconciled = reconciled || name == workReconcile
			if name != workReconcile && w.ended[name] != 1 {
				b.t.Errorf("%s ended %d times", name, w.ended[name])
			}
		}
		if !reconciled || len(w.failed) > 0 {
			b.t.Errorf("reconciled: %v; failed: %v", reconciled, w.failed)
		}
		if diff := cmp.Diff([]string{"kiln up/rollout/rollout step admit"}, e.admits); diff != "" {
			b.t.Error(diff)
		}
	})
}

func TestFailuresAreObservedWhereTheyHappened(t *testing.T) {
	observed(t, func(b *bench, w *watcher, _ *placedEngine) {
		b.mustUp(shop("production", "v1"))
		b.engine.BehaveImage(kiln.DigestOf([]byte("web-v2")), kilntest.Behaviour{NeverReady: true})
		if _, err := b.up(shop("production", "v2")); err == nil {
			b.t.Fatal("it went live")
		}
		kilntest.Pass(time.Minute)
		w.mu.Lock()
		defer w.mu.Unlock()
		slices.Sort(w.failed)
		want := []string{"kiln up", "kiln up/rollout", "kiln up/rollout/rollout step ready"}
		if diff := cmp.Diff(want, w.failed); diff != "" {
			b.t.Error(diff)
		}
	})
}

// TestARolloutIsObservedAgainAfterARestart: what asked for it is gone.
func TestARolloutIsObservedAgainAfterARestart(t *testing.T) {
	observed(t, func(b *bench, w *watcher, _ *placedEngine) {
		b.engine.BehaveService("web", kilntest.Behaviour{Start: 8 * time.Second})
		go func() { _, _ = b.up(shop("production", "v1")) }()
		kilntest.Pass(4 * time.Second)
		b.halt()
		b.start()
		kilntest.Pass(time.Minute)
		again := 0
		for _, name := range w.work() {
			if strings.HasPrefix(name, "rollout/rollout step ready") {
				again++
			}
		}
		if again != 1 {
			b.t.Errorf("the step was observed %d times after the restart: %v", again, w.work())
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, name := range w.began {
			if name != workReconcile && w.ended[name] != 1 {
				b.t.Errorf("%s ended %d times", name, w.ended[name])
			}
		}
	})
}
