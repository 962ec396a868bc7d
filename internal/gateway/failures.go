package gateway

import (
	"sync"
	"time"
)

// failures tells who listens which instances refused or dropped a request.
type failures struct {
	mu   sync.Mutex
	subs map[chan string]struct{}
}

const failuresKept = 256 // per subscriber; a slower one loses the oldest

func (f *failures) subscribe() (<-chan string, func()) {
	c := make(chan string, failuresKept)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.subs == nil {
		f.subs = map[chan string]struct{}{}
	}
	f.subs[c] = struct{}{}
	return c, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.subs, c)
	}
}

func (f *failures) tell(instance string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.subs {
		select {
		case c <- instance:
		default:
		}
	}
}

// suspect takes a member out of the choice for a while and reports it; an
// instance that is suspect already is not reported again.
func (g *gateway) suspect(m *member) {
	now := g.now()
	was := m.suspect.Load()
	if was > now || !m.suspect.CompareAndSwap(was, now+int64(suspicion)) || m.instance.leaving.Load() {
		return
	}
	g.failures.tell(m.instance.id)
}

func (g *gateway) clock() time.Time { return time.Now() }
