// Package notify tells others about events, by webhooks: each recorded event
// that a receiver asked for is posted to it as JSON, signed as Standard
// Webhooks says (standardwebhooks.com), and tried again until it is taken.
//
// How far a receiver has been told is in a file of its own, written after an
// event was taken: over a restart an event comes at least once, and may come
// twice with the same id. Each receiver has its own loop; one that is away
// delays no other, and nothing else. What it misses is bounded in number and
// age; beyond that events are passed over, which is recorded.
//
// The receivers' addresses are the operator's own. Redirects are not followed,
// and addresses that only this machine's surroundings have (169.254.0.0/16,
// fe80::/10: where clouds keep credentials) are not connected to.
package notify

import (
	"context"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/durable"
)

const (
	// keptBack bounds the events that wait for a receiver, all kinds counted,
	// and keptFor how old one may be that is still told.
	keptBack = 10_000
	keptFor  = 24 * time.Hour
	// refusals are how often a receiver may refuse one event (a status of 4xx)
	// before it is passed over: the next may be taken.
	refusals = 8
	// firstPause and longestPause are between attempts; each is twice the one
	// before, and less by chance up to a half.
	firstPause   = time.Second
	longestPause = 5 * time.Minute
)

// Receiver is whom to tell.
type Receiver struct {
	Name string // a file name
	URL  string
	Key  []byte // that it is signed with; empty for not at all
	// Events are patterns of kinds, such as "release.*".
	Events []string
	// Environments are patterns; with any, events of no environment are left
	// out.
	Environments kiln.Reach
}

// Source is where events are from.
type Source interface {
	// Events returns a page of events after a sequence, oldest first.
	Events(ctx context.Context, environment string, after int64, last int) ([]kiln.Event, error)
	// AllBut returns the sequence after which the newest so many are.
	AllBut(ctx context.Context, environment string, newest int) (int64, error)
	// Watch signals that events were added, until ctx ends.
	Watch(ctx context.Context) <-chan struct{}
}

// Counter is told how it goes.
type Counter interface {
	Notified(name string, err error)
	NotifyBehind(name string, waiting, skipped int64)
	NotifyGone(name string)
}

// Options are what a Notifier works with. All must be set.
type Options struct {
	Dir     string // for its files, and nobody else's
	Source  Source
	Counter Counter
	Version string
	// URLs says where an environment answers.
	URLs func(ctx context.Context, environment string) []string
	// Record puts an event into the history.
	Record func(ctx context.Context, e kiln.Event) error
	Log    *slog.Logger
}

// Notifier tells receivers. Its methods may be called at once.
type Notifier struct {
	options Options
	http    *http.Client
	now     func() time.Time
	chance  func() float64 // from 0 up to 1

	mu      sync.Mutex
	wanted  []Receiver
	changed chan struct{}
}

// Set exchanges the receivers. One that is new is told what happens from now
// on; one that has only changed goes on where it was.
func (n *Notifier) Set(receivers []Receiver) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.wanted = slices.Clone(receivers)
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

func (n *Notifier) receivers() []Receiver {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.wanted)
}

// running is a receiver's loop.
type running struct {
	receiver Receiver
	end      context.CancelFunc
	ended    chan struct{}
}

func (r *running) stop() {
	r.end()
	<-r.ended
}

// Run tells the receivers until ctx ends.
func (n *Notifier) Run(ctx context.Context) error {
	if err := os.MkdirAll(n.options.Dir, 0o700); err != nil {
		n.options.Log.ErrorContext(ctx, "nobody is notified", "error", err)
		<-ctx.Done()
		return nil
	}
	loops := map[string]*running{}
	defer func() {
		for _, one := range loops {
			one.stop()
		}
	}()
	for {
		wanted := n.receivers()
		n.retain(wanted, loops)
		for _, r := range wanted {
			if loops[r.Name] == nil {
				loops[r.Name] = n.start(ctx, r)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-n.changed:
		}
	}
}

// retain ends the loops of receivers that are gone or have changed, and
// forgets how far those that are gone were told.
func (n *Notifier) retain(wanted []Receiver, loops map[string]*running) {
	names := map[string]bool{}
	for _, r := range wanted {
		names[r.Name] = true
		if one := loops[r.Name]; one != nil && !reflect.DeepEqual(one.receiver, r) {
			one.stop()
			delete(loops, r.Name)
		}
	}
	for name, one := range loops {
		if !names[name] {
			one.stop()
			delete(loops, name)
			n.options.Counter.NotifyGone(name)
		}
	}
	files, err := os.ReadDir(n.options.Dir)
	if err != nil {
		n.options.Log.Warn("old cursors stay", "error", err)
	}
	for _, f := range files {
		// One that is being written is of a receiver, too.
		if name, ok := strings.CutSuffix(strings.TrimPrefix(f.Name(), durable.Unfinished), cursorSuffix); !ok || !names[name] {
			_ = os.Remove(filepath.Join(n.options.Dir, f.Name()))
		}
	}
}

func (n *Notifier) start(ctx context.Context, r Receiver) *running {
	ctx, end := context.WithCancel(ctx)
	one := &running{receiver: r, end: end, ended: make(chan struct{})}
	go func() {
		defer close(one.ended)
		(&loop{notifier: n, receiver: r, log: n.options.Log.With("notify", r.Name)}).run(ctx)
	}()
	return one
}
