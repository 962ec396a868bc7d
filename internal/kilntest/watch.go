package kilntest

import (
	"context"
	"time"

	"github.com/kilnproject/kiln"
)

// watchBuffer is how far a watcher may fall behind.
const watchBuffer = 256

type watcher struct {
	missed bool // the last change in its channel says so
}

// Watch implements kiln.Engine.
func (f *Fake) Watch(ctx context.Context) <-chan kiln.Change {
	ch := make(chan kiln.Change, watchBuffer+1) // one for what says that some were missed
	f.mu.Lock()
	f.watchers[ch] = &watcher{}
	f.mu.Unlock()
	context.AfterFunc(ctx, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.watchers, ch)
		if !f.broken[WatchNeverCloses] {
			close(ch)
		}
	})
	return ch
}

// report publishes an instance as it is.
func (f *Fake) report(i *fakeInstance) {
	if f.broken[SilentDeaths] && i.State == kiln.InstanceDead {
		return
	}
	shot := i.Instance
	f.publish(kiln.Change{At: time.Now(), Instance: &shot})
}

// publish sends a change to those who can take it. Only it sends, under f.mu,
// so that a free place stays free until it is used.
func (f *Fake) publish(c kiln.Change) {
	for ch, w := range f.watchers {
		switch {
		case len(ch) < watchBuffer:
			w.missed = false
			ch <- c
		case !w.missed && !f.broken[NeverMissed]:
			w.missed = true
			ch <- kiln.Change{At: c.At, Missed: true}
		}
	}
}
