// Package track follows repositories: when a branch moves, the definition at
// its new commit is brought up in the environments that name the branch.
//
// A commit is tried once in each environment. However that ends, and whatever
// becomes of the release later, it is not tried again until the branch moves: a
// person who rolled back is not overruled by a repository that has not changed.
// What was tried is in a file that is written before it is.
//
// The package decides when to bring up what. How a repository is fetched, how a
// definition is read, and what bringing up is, others know.
package track

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/control"
)

// Source is a repository that is followed.
type Source struct {
	Name       string // a folder name
	Repository string
	Protocol   string // "https", "ssh", "file"
	Folder     string
	Interval   time.Duration
	// CredentialsFile is read anew for every look; empty is none.
	CredentialsFile string
}

// Repository is a copy of a repository of others.
type Repository interface {
	// Fetch returns which commit each branch is at.
	Fetch(ctx context.Context) (map[string]string, error)
	// Definition stores what the definition at a commit is read from, Tree all
	// of its folder.
	Definition(ctx context.Context, commit string) (kiln.Tree, error)
	Tree(ctx context.Context, commit string) (kiln.Tree, error)
}

// Options are what a Tracker works with. All must be set.
type Options struct {
	Dir string // for its files, and nobody else's
	// Open opens the copy of a source's repository in a folder.
	Open func(ctx context.Context, dir string, s Source) (Repository, error)
	// Following reads which environments of a definition a branch is brought up
	// in. The error has the code not_found where there is no definition.
	Following func(definition kiln.Tree, branch string) ([]string, error)
	Up        func(ctx context.Context, r control.UpRequest, emit func(kiln.Progress)) (control.UpResult, error)
	// Releases lists an environment's releases; none of one that is unknown.
	Releases func(ctx context.Context, environment string) ([]kiln.Release, error)
	// Record puts an event into the history.
	Record func(ctx context.Context, e kiln.Event) error
	Log    *slog.Logger
}

// Tracker follows sources. Its methods may be called at once.
type Tracker struct {
	options Options

	mu       sync.Mutex
	wanted   []Source
	problems map[string][]string // by source
	changed  chan struct{}
}

// New returns a Tracker that follows nothing before Set and Run.
func New(o Options) *Tracker {
	return &Tracker{options: o, problems: map[string][]string{}, changed: make(chan struct{}, 1)}
}

// Set exchanges the sources. One that is new, or has another repository, is
// looked at as if for the first time; one that has changed otherwise goes on
// where it was.
func (t *Tracker) Set(sources []Source) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.wanted = slices.Clone(sources)
	select {
	case t.changed <- struct{}{}:
	default:
	}
}

// Problems are sentences about sources that cannot be followed, and commits that
// did not go live.
func (t *Tracker) Problems() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []string
	for _, s := range t.wanted {
		out = append(out, t.problems[s.Name]...)
	}
	return out
}

func (t *Tracker) tell(name string, problems []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.problems[name] = problems
}

func (t *Tracker) sources() []Source {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.wanted)
}

// running is a source's loop.
type running struct {
	source Source
	end    context.CancelFunc
	ended  chan struct{}
}

func (r *running) stop() {
	r.end()
	<-r.ended
}

// Run follows until ctx ends. A rollout that has begun goes on without it.
func (t *Tracker) Run(ctx context.Context) error {
	loops := map[string]*running{}
	defer func() {
		for _, one := range loops {
			one.stop()
		}
	}()
	for {
		wanted := t.sources()
		t.retain(ctx, wanted, loops)
		for _, s := range wanted {
			if loops[s.Name] == nil {
				loops[s.Name] = t.start(ctx, s)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.changed:
		}
	}
}

// retain ends the loops of sources that are gone or have changed, and removes
// the copies of those that are gone.
func (t *Tracker) retain(ctx context.Context, wanted []Source, loops map[string]*running) {
	named := func(name string) (Source, bool) {
		i := slices.IndexFunc(wanted, func(s Source) bool { return s.Name == name })
		if i < 0 {
			return Source{}, false
		}
		return wanted[i], true
	}
	for name, one := range loops {
		if s, stays := named(name); !stays || s != one.source {
			one.stop()
			delete(loops, name)
			t.tell(name, nil)
		}
	}
	folders, err := os.ReadDir(t.options.Dir)
	if err != nil && !os.IsNotExist(err) {
		t.options.Log.WarnContext(ctx, "copies of repositories that are no longer followed stay", "error", err)
	}
	for _, f := range folders {
		if _, stays := named(f.Name()); !stays {
			if err := os.RemoveAll(filepath.Join(t.options.Dir, f.Name())); err != nil {
				t.options.Log.WarnContext(ctx, "the copy of a repository that is no longer followed stays", "source", f.Name(), "error", err)
			}
		}
	}
}

func (t *Tracker) start(ctx context.Context, s Source) *running {
	ctx, end := context.WithCancel(ctx)
	one := &running{source: s, end: end, ended: make(chan struct{})}
	go func() {
		defer close(one.ended)
		l := &loop{tracker: t, source: s, dir: filepath.Join(t.options.Dir, s.Name), log: t.options.Log.With("source", s.Name), said: map[string]string{}}
		l.run(ctx)
	}()
	return one
}

// actor is who brings up what a source says, in the ledger.
func actor(source string) string { return fmt.Sprintf("source %s", source) }
