package local

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kilnproject/kiln/internal/kilntest"
)

// TestAFailedPublishIsTriedAgainLessAndLessOften: the pauses double, each
// error is told of once, a request is met at once, and success begins anew.
func TestAFailedPublishIsTriedAgainLessAndLessOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex // the clock's going on orders nothing for the race detector
		var runs []time.Duration
		var fail error
		set := func(err error) {
			mu.Lock()
			defer mu.Unlock()
			runs, fail = nil, err
		}
		began := time.Now()
		said := &bytes.Buffer{}
		p := newPublisher(slog.New(slog.NewTextHandler(said, nil)), func(context.Context) error {
			mu.Lock()
			defer mu.Unlock()
			runs = append(runs, time.Since(began))
			return fail
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); p.run(ctx) }()

		set(errors.New("the address is held"))
		if err := p.publish(ctx); !errors.Is(err, fail) {
			t.Fatal(err)
		}
		kilntest.Pass(60 * time.Second)
		// 0, 0.1, 0.3, 0.7, 1.5, 3.1, 6.3, 11.3, ..., 56.3 s
		if len(runs) != 17 || runs[2] != 300*time.Millisecond || runs[7]-runs[6] != 5*time.Second {
			t.Errorf("%d runs: %v", len(runs), runs)
		}
		if n := strings.Count(said.String(), "will try again"); n != 1 {
			t.Errorf("told %d times: %s", n, said)
		}
		began = time.Now()
		set(errors.New("another cause"))
		if err := p.publish(ctx); !errors.Is(err, fail) {
			t.Fatal(err)
		}
		kilntest.Pass(time.Second)
		if len(runs) != 4 || runs[0] != 0 || runs[1] != firstRetry {
			t.Errorf("after a request: %v", runs)
		}
		set(nil)
		kilntest.Pass(lastRetry)
		set(nil)
		kilntest.Pass(time.Minute)
		if len(runs) != 0 {
			t.Errorf("after success: %v", runs)
		}
		set(errors.New("the address is held"))
		_ = p.publish(ctx)
		synctest.Wait()
		if n := strings.Count(said.String(), "will try again"); n != 3 {
			t.Errorf("told %d times: %s", n, said)
		}
		cancel()
		<-done
	})
}
