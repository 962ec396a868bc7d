package local

import (
	"context"
	"sync"
	"time"

	"github.com/kilnproject/kiln"
)

// changesBuffer is how many changes a slow watcher may be behind.
const changesBuffer = 1024

// fanout hands changes to watchers and never waits for one.
type fanout struct {
	mu       sync.Mutex
	watchers map[*watcher]struct{}
}

// watcher is one reader; missed says that it must be told of a loss.
type watcher struct {
	out    chan kiln.Change
	missed bool
}

func newFanout() *fanout { return &fanout{watchers: map[*watcher]struct{}{}} }

func (f *fanout) watch(ctx context.Context) <-chan kiln.Change {
	w := &watcher{out: make(chan kiln.Change, changesBuffer)}
	f.mu.Lock()
	f.watchers[w] = struct{}{}
	f.mu.Unlock()
	context.AfterFunc(ctx, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.watchers, w)
		close(w.out)
	})
	return w.out
}

func (f *fanout) send(c kiln.Change) {
	if c.At.IsZero() {
		c.At = time.Now()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for w := range f.watchers {
		// One place is kept for the word of a loss.
		if w.missed && len(w.out) < cap(w.out)/2 {
			w.out <- kiln.Change{At: c.At, Missed: true}
			w.missed = false
		}
		if w.missed || len(w.out) >= cap(w.out)-1 {
			if !w.missed {
				w.out <- kiln.Change{At: c.At, Missed: true}
			}
			w.missed = true
			continue
		}
		w.out <- c
	}
}
