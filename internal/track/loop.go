package track

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/control"
)

const (
	// longestPause bounds the pause between looks that fail, where the interval
	// is not longer.
	longestPause = 15 * time.Minute
	stateFile    = "state.json"
	// shownProblems bounds what is said of one source.
	shownProblems = 5
	shortCommit   = 12
)

// loop follows one source.
type loop struct {
	tracker *Tracker
	source  Source
	dir     string
	log     *slog.Logger

	repository Repository
	state      *state
	// said is the last cause of each failure that may come again, so that it is
	// recorded once.
	said map[string]string
	// waits says why commits were not tried at the last look, by environment.
	waits    map[string]string
	failures int       // looks that failed in a row
	since    time.Time // the first of them
	why      error     // the last of them
}

func (l *loop) run(ctx context.Context) {
	for {
		err := l.look(ctx)
		if ctx.Err() != nil {
			return
		}
		l.note(ctx, err)
		l.tracker.tell(l.source.Name, l.problems())
		timer := time.NewTimer(pause(l.source.Interval, l.failures))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// pause is the time before the next look: the interval, twice as long after
// each failure.
func pause(interval time.Duration, failures int) time.Duration {
	p := interval
	for range failures {
		if p = 2 * p; p > longestPause {
			return max(longestPause, interval)
		}
	}
	return p
}

// look fetches the repository and brings up what moved. The error is that of
// the whole source; what is wrong with one commit is noted with its branch.
func (l *loop) look(ctx context.Context) error {
	if err := l.open(ctx); err != nil {
		return err
	}
	heads, err := l.repository.Fetch(ctx)
	if err != nil {
		return fmt.Errorf("%s cannot be fetched: %w", l.source.Repository, err)
	}
	for _, m := range l.state.moves(heads) {
		message := fmt.Sprintf("branch %s is at %s", m.branch, short(m.to))
		if m.from != "" {
			message += ", and was at " + short(m.from)
		}
		l.record(ctx, kiln.Event{Kind: "source.moved", Message: message, Data: map[string]string{"branch": m.branch, "from": m.from, "to": m.to}})
	}
	l.state.follow(heads)
	if err := l.save(); err != nil {
		return err
	}
	l.waits = map[string]string{}
	var first error // one branch keeps no other one up
	for _, name := range slices.Sorted(maps.Keys(heads)) {
		if err := l.advance(ctx, name, l.state.Branches[name]); err != nil && first == nil {
			first = err
		}
		if ctx.Err() != nil {
			break
		}
	}
	return first
}

// open opens the repository's copy and what is known of it. What was of another
// repository goes.
func (l *loop) open(ctx context.Context) (err error) {
	if l.state == nil {
		if l.state, err = load(l.path(), l.source.Repository, l.source.Folder); err != nil {
			return err
		}
		if len(l.state.Branches) == 0 {
			if err := os.RemoveAll(l.dir); err != nil {
				l.state = nil
				return fmt.Errorf("remove the copy of another repository: %w", err)
			}
		}
	}
	if l.repository == nil {
		l.repository, err = l.tracker.options.Open(ctx, l.dir, l.source)
	}
	return err
}

func (l *loop) path() string { return filepath.Join(l.dir, stateFile) }

func (l *loop) save() error { return l.state.save(l.path()) }

// advance reads the definition at a branch's commit and brings it up in the
// environments where that was not tried yet.
func (l *loop) advance(ctx context.Context, name string, b *branch) error {
	if !b.Read {
		if err := l.read(ctx, name, b); err != nil {
			return err
		}
	}
	passed := map[string]bool{}
	var tree *kiln.Tree
	for {
		environment := b.next(passed)
		if environment == "" {
			return nil
		}
		if done, err := l.resume(ctx, b); err != nil || done {
			if err != nil {
				return err
			}
			continue
		}
		passed[environment] = true
		if tree == nil {
			whole, err := l.repository.Tree(ctx, b.Head)
			if err != nil {
				return l.unreadable(ctx, name, b, err)
			}
			tree = &whole
		}
		if err := l.try(ctx, name, b, environment, *tree); err != nil || ctx.Err() != nil {
			return err
		}
	}
}

// read finds out which environments a branch's commit is for.
func (l *loop) read(ctx context.Context, name string, b *branch) error {
	definition, err := l.repository.Definition(ctx, b.Head)
	var environments []string
	if err == nil {
		environments, err = l.tracker.options.Following(definition, name)
	}
	switch {
	case errors.Is(err, kiln.ErrNotFound):
		b.Absent = true
	case err != nil:
		return l.unreadable(ctx, name, b, err)
	}
	b.Read, b.Pending = true, slices.Clone(environments)
	return l.save()
}

// unreadable notes that a commit cannot be read, for good where that is the
// commit's own fault.
func (l *loop) unreadable(ctx context.Context, name string, b *branch, err error) error {
	if ctx.Err() != nil || transient(err) {
		return fmt.Errorf("%s of branch %s cannot be read: %w", short(b.Head), name, err)
	}
	b.Read, b.Pending, b.Trying = true, nil, nil
	b.fail("", told(err))
	l.failed(ctx, name, b, "", err)
	return l.save()
}

// resume looks how a trial ended that was cut short, and returns true when it
// is not to be tried again: a release came of it.
func (l *loop) resume(ctx context.Context, b *branch) (bool, error) {
	if b.Trying == nil {
		return false, nil
	}
	releases, err := l.tracker.options.Releases(ctx, b.Trying.Environment)
	if err != nil {
		return false, fmt.Errorf("list the releases of %s: %w", b.Trying.Environment, err)
	}
	tried := made(releases, b.Head, b.Trying.After)
	o := again
	if tried {
		o = released
	}
	b.settle(b.Trying.Environment, o, "")
	return tried, l.save()
}

// try brings a commit up in one environment. That it has begun is kept before it
// does.
func (l *loop) try(ctx context.Context, name string, b *branch, environment string, tree kiln.Tree) error {
	o := l.tracker.options
	releases, err := o.Releases(ctx, environment)
	if err != nil {
		return fmt.Errorf("list the releases of %s: %w", environment, err)
	}
	b.Trying = &trial{Environment: environment, After: newest(releases)}
	if err := l.save(); err != nil {
		b.Trying = nil
		return err
	}
	result, upping := o.Up(ctx, control.UpRequest{
		Environment: environment, Tree: tree, Actor: actor(l.source.Name), Source: kiln.Source{Commit: b.Head, Branch: name},
	}, func(kiln.Progress) {})
	if ctx.Err() != nil {
		return nil // the next look finds out how it ended
	}
	if releases, err = o.Releases(ctx, environment); err != nil {
		return fmt.Errorf("list the releases of %s: %w", environment, err)
	}
	end := judge(upping, made(releases, b.Head, b.Trying.After))
	b.settle(environment, end, told(upping))
	if err := l.save(); err != nil {
		return err
	}
	l.ended(ctx, name, b, environment, end, result, upping)
	return nil
}

// ended tells how a trial ended.
func (l *loop) ended(ctx context.Context, name string, b *branch, environment string, end outcome, result control.UpResult, err error) {
	switch {
	case end == again:
		l.waits[environment] = fmt.Sprintf("%s of branch %s waits for %s: %s", short(b.Head), name, environment, told(err))
		l.log.InfoContext(ctx, "a commit waits for its environment", "branch", name, "commit", b.Head, "environment", environment, "because", err)
	case end == failed:
		l.failed(ctx, name, b, environment, err)
	case result.Nothing:
		l.log.InfoContext(ctx, "a commit changes nothing", "branch", name, "commit", b.Head, "environment", environment)
	default:
		l.record(ctx, kiln.Event{
			Environment: environment, Kind: "source.released",
			Message: fmt.Sprintf("%s of branch %s is release %d", short(b.Head), name, result.Release.Number),
			Data:    map[string]string{"branch": name, "commit": b.Head, "release": fmt.Sprint(result.Release.Number)},
		})
	}
}

// failed records that a commit did not go live.
func (l *loop) failed(ctx context.Context, name string, b *branch, environment string, err error) {
	data := evidence(err)
	data["branch"], data["commit"] = name, b.Head
	l.record(ctx, kiln.Event{
		Environment: environment, Kind: "source.failed", Data: data,
		Message: fmt.Sprintf("%s of branch %s was not brought up: %s", short(b.Head), name, err),
	})
}

// evidence is what an event carries of an error.
func evidence(err error) map[string]string {
	data := map[string]string{"cause": err.Error()}
	var e *kiln.Error
	if errors.As(err, &e) {
		if e.Hint != "" {
			data["hint"] = e.Hint
		}
		for i, line := range e.Evidence {
			data[fmt.Sprintf("evidence_%02d", i+1)] = line
		}
		for i, d := range e.Diagnostics {
			data[fmt.Sprintf("problem_%02d", i+1)] = kiln.Diagnostics{d}.Error()
		}
	}
	return data
}

// note counts looks that fail, and records each cause once.
func (l *loop) note(ctx context.Context, err error) {
	l.why = err
	if err == nil {
		if l.failures > 0 {
			l.log.InfoContext(ctx, "the source can be followed again")
		}
		l.failures = 0
		delete(l.said, "look")
		return
	}
	if l.failures++; l.failures == 1 {
		l.since = time.Now()
	}
	if l.said["look"] == err.Error() {
		return
	}
	l.said["look"] = err.Error()
	l.log.WarnContext(ctx, "the source cannot be followed, and is tried again", "error", err)
	l.record(ctx, kiln.Event{Kind: "source.failed", Message: err.Error(), Data: evidence(err)})
}

func (l *loop) record(ctx context.Context, e kiln.Event) {
	e.Subject, e.Actor = l.source.Name, actor(l.source.Name)
	if err := l.tracker.options.Record(ctx, e); err != nil {
		l.log.ErrorContext(ctx, "the event could not be recorded", "kind", e.Kind, "error", err)
	}
}

// problems are sentences about what is not as it should be.
func (l *loop) problems() []string {
	var out []string
	if l.why != nil {
		out = append(out, fmt.Sprintf("source %s: since %s %s", l.source.Name, l.since.UTC().Format(time.RFC3339), told(l.why)))
	}
	if l.state == nil {
		return out
	}
	for _, environment := range slices.Sorted(maps.Keys(l.waits)) {
		out = append(out, fmt.Sprintf("source %s: %s", l.source.Name, l.waits[environment]))
	}
	absent := len(l.state.Branches) > 0
	for _, name := range slices.Sorted(maps.Keys(l.state.Branches)) {
		b := l.state.Branches[name]
		absent = absent && b.Absent
		for _, environment := range slices.Sorted(maps.Keys(b.Failed)) {
			where := ""
			if environment != "" {
				where = " in " + environment
			}
			out = append(out, fmt.Sprintf("source %s: %s of branch %s was not brought up%s: %s", l.source.Name, short(b.Head), name, where, b.Failed[environment]))
		}
	}
	if absent {
		out = append(out, fmt.Sprintf("source %s: no branch has a definition in the folder %s: look at folder in the configuration", l.source.Name, l.source.Folder))
	}
	if n := len(out); n > shownProblems {
		out = append(out[:shownProblems], fmt.Sprintf("source %s: %d more problems: kiln events", l.source.Name, n-shownProblems))
	}
	return out
}

// told is an error and what to do about it.
func told(err error) string {
	if err == nil {
		return ""
	}
	text := err.Error()
	var e *kiln.Error
	if errors.As(err, &e) {
		if len(e.Diagnostics) > 0 {
			text += ": " + kiln.Diagnostics(e.Diagnostics[:1]).Error()
		}
		if e.Hint != "" {
			text += "; " + e.Hint
		}
	}
	return text
}

func short(commit string) string { return commit[:min(len(commit), shortCommit)] }
