package track

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/control"
	"github.com/kilnproject/kiln/internal/kilntest"
)

func TestMovesAndWhatIsKept(t *testing.T) {
	s := &state{Branches: map[string]*branch{
		"same": {Head: "1", Read: true, Pending: []string{"a"}}, "moved": {Head: "1", Read: true, Failed: map[string]string{"a": "x"}}, "gone": {Head: "1"},
	}}
	heads := map[string]string{"same": "1", "moved": "2", "new": "3"}
	if diff := cmp.Diff([]move{{"moved", "1", "2"}, {"new", "", "3"}}, s.moves(heads), cmp.AllowUnexported(move{})); diff != "" {
		t.Error(diff)
	}
	s.follow(heads)
	want := map[string]*branch{"same": {Head: "1", Read: true, Pending: []string{"a"}}, "moved": {Head: "2"}, "new": {Head: "3"}}
	if diff := cmp.Diff(want, s.Branches); diff != "" {
		t.Error(diff)
	}
}

func TestJudge(t *testing.T) {
	failure := func(code kiln.Code) error { return fmt.Errorf("up: %w", kiln.Errorf(code, "", "no")) }
	for _, c := range []struct {
		err   error
		tried bool
		want  outcome
	}{
		{nil, true, released},
		{nil, false, released}, // it was live already
		{failure(kiln.CodeConflict), false, again},
		{failure(kiln.CodeUnavailable), false, again},
		{failure(kiln.CodeConflict), true, failed},    // a person called it off
		{failure(kiln.CodeUnavailable), true, failed}, // a probe that nobody answered
		{failure(kiln.CodeRefused), false, failed},
		{failure(kiln.CodeFailed), false, failed},
		{failure(kiln.CodeNoRoom), false, failed},
		{errors.New("odd"), false, failed},
	} {
		if got := judge(c.err, c.tried); got != c.want {
			t.Errorf("%v, %v: %v, want %v", c.err, c.tried, got, c.want)
		}
	}
}

func TestPause(t *testing.T) {
	for _, c := range []struct {
		interval time.Duration
		failures int
		want     time.Duration
	}{
		{time.Minute, 0, time.Minute},
		{time.Minute, 1, 2 * time.Minute},
		{time.Minute, 5, 15 * time.Minute},
		{time.Minute, 1 << 30, 15 * time.Minute},
		{time.Hour, 3, time.Hour},
		{10 * time.Second, 2, 40 * time.Second},
	} {
		if got := pause(c.interval, c.failures); got != c.want {
			t.Errorf("%v after %d failures: %v, want %v", c.interval, c.failures, got, c.want)
		}
	}
}

func TestAStateOfAnotherRepositoryIsForgotten(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state.json")
	s := &state{Repository: "a", Folder: ".", Branches: map[string]*branch{"main": {Head: "1", Read: true, Trying: &trial{"x", 3}}}}
	if err := s.save(file); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		repository, folder string
		want               int
	}{{"a", ".", 1}, {"b", ".", 0}, {"a", "sub", 0}} {
		if got, err := load(file, c.repository, c.folder); err != nil || len(got.Branches) != c.want {
			t.Errorf("%+v: %+v %v", c, got, err)
		}
	}
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := load(file, "a", "."); err == nil {
		t.Error("what cannot be read is taken for new: everything would be tried again")
	}
}

// world is a repository, and environments that follow it.
type world struct {
	dir string

	mu       sync.Mutex
	heads    map[string]string
	fetching error
	follows  map[string][]string // environments by branch
	parse    map[string]error    // by commit
	answer   func(r control.UpRequest) (made bool, err error)
	releases map[string][]kiln.Release
	ups      []string
	events   []kiln.Event
}

func (w *world) Fetch(context.Context) (map[string]string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.heads), w.fetching
}

func (w *world) Definition(_ context.Context, commit string) (kiln.Tree, error) {
	return kiln.Tree{Entries: []kiln.TreeEntry{{Path: commit}}}, nil
}

func (w *world) Tree(ctx context.Context, commit string) (kiln.Tree, error) {
	return w.Definition(ctx, commit)
}

func (w *world) following(definition kiln.Tree, branch string) ([]string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.follows[branch], w.parse[definition.Entries[0].Path]
}

func (w *world) up(_ context.Context, r control.UpRequest, _ func(kiln.Progress)) (control.UpResult, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ups = append(w.ups, r.Environment+"@"+r.Source.Commit)
	made, err := w.answer(r)
	if !made {
		return control.UpResult{}, err
	}
	release := kiln.Release{Number: len(w.releases[r.Environment]) + 1, Source: r.Source, Actor: r.Actor}
	w.releases[r.Environment] = append(w.releases[r.Environment], release)
	return control.UpResult{Release: release}, err
}

func (w *world) record(_ context.Context, e kiln.Event) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, e)
	return nil
}

// run follows for a while, and returns what was asked of the control plane
// meanwhile. Each run is a control plane of its own.
func (w *world) run(t *testing.T, d time.Duration) (ups string, problems string) {
	t.Helper()
	tracker := New(Options{
		Dir: w.dir, Following: w.following, Up: w.up, Record: w.record, Log: slog.New(slog.DiscardHandler),
		Open: func(_ context.Context, dir string, _ Source) (Repository, error) { return w, os.MkdirAll(dir, 0o755) },
		Releases: func(_ context.Context, name string) ([]kiln.Release, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.releases[name], nil
		},
	})
	tracker.Set([]Source{{Name: "shop", Repository: "r", Folder: ".", Interval: time.Minute}})
	ctx, end := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- tracker.Run(ctx) }()
	kilntest.Pass(d)
	problems = strings.Join(tracker.Problems(), "\n")
	end()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	ups, w.ups = strings.Join(w.ups, " "), nil
	return ups, problems
}

func (w *world) kinds() string {
	var out []string
	for _, e := range w.events {
		if e.Subject != "shop" || e.Actor != "source shop" {
			return fmt.Sprintf("%+v", e)
		}
		out = append(out, strings.TrimPrefix(e.Kind, "source."))
	}
	w.events = nil
	return strings.Join(out, " ")
}

func inWorld(t *testing.T, test func(t *testing.T, w *world)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		test(t, &world{
			dir: dir, heads: map[string]string{"main": "c1"}, follows: map[string][]string{"main": {"production"}}, parse: map[string]error{},
			answer: func(control.UpRequest) (bool, error) { return true, nil }, releases: map[string][]kiln.Release{},
		})
	})
}

func expect(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

func TestAHeadIsTriedOnce(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ups, problems := w.run(t, time.Hour)
		expect(t, "first sight", ups, "production@c1")
		expect(t, "problems", problems, "")
		expect(t, "events", w.kinds(), "moved released")
		// Somebody brought up, or rolled back to, something else.
		w.releases["production"] = append(w.releases["production"], kiln.Release{Number: 2, Source: kiln.Source{Commit: "other"}})
		ups, _ = w.run(t, time.Hour)
		expect(t, "after a restart", ups, "")
		w.heads = map[string]string{"main": "c2", "side": "c9"}
		ups, _ = w.run(t, time.Hour)
		expect(t, "after a move", ups, "production@c2")
		w.heads = map[string]string{"main": "c1"}
		ups, _ = w.run(t, time.Hour)
		expect(t, "after a move back", ups, "production@c1")
	})
}

func TestWhatFailedIsNotTriedAgain(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.answer = func(control.UpRequest) (bool, error) {
			return false, kiln.Errorf(kiln.CodeRefused, "mend it", "the gate refuses it")
		}
		ups, problems := w.run(t, time.Hour)
		expect(t, "ups", ups, "production@c1")
		expect(t, "events", w.kinds(), "moved failed")
		expect(t, "problems", problems, "source shop: c1 of branch main was not brought up in production: the gate refuses it; mend it")
		ups, again := w.run(t, time.Hour)
		expect(t, "after a restart", ups, "")
		expect(t, "problems", again, problems)
		expect(t, "events", w.kinds(), "")
	})
}

func TestABusyEnvironmentIsTriedAgain(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.follows["main"] = []string{"a", "b"}
		busy := true
		w.answer = func(r control.UpRequest) (bool, error) {
			if r.Environment == "a" && busy {
				busy = false
				return false, kiln.Errorf(kiln.CodeConflict, "", "environment a is being changed")
			}
			return true, nil
		}
		ups, problems := w.run(t, 30*time.Second)
		expect(t, "ups", ups, "a@c1 b@c1")
		if !strings.Contains(problems, "waits for a") {
			t.Errorf("problems: %s", problems)
		}
		ups, problems = w.run(t, time.Hour)
		expect(t, "later", ups, "a@c1")
		expect(t, "problems", problems, "")
	})
}

// TestWhatWasCutShort is killed while it brings up: before a release was made,
// and after.
func TestWhatWasCutShort(t *testing.T) {
	for _, made := range []bool{false, true} {
		inWorld(t, func(t *testing.T, w *world) {
			s := &state{Repository: "r", Folder: ".", Branches: map[string]*branch{
				"main": {Head: "c1", Read: true, Pending: []string{"production"}, Trying: &trial{Environment: "production", After: 1}},
			}}
			w.releases["production"] = []kiln.Release{{Number: 1, Source: kiln.Source{Commit: "c1"}}}
			want := "production@c1"
			if made {
				w.releases["production"] = append(w.releases["production"], kiln.Release{Number: 2, Source: kiln.Source{Commit: "c1"}})
				want = ""
			}
			if err := errors.Join(os.MkdirAll(filepath.Join(w.dir, "shop"), 0o755), s.save(filepath.Join(w.dir, "shop", stateFile))); err != nil {
				t.Fatal(err)
			}
			ups, _ := w.run(t, time.Hour)
			expect(t, fmt.Sprintf("made %v", made), ups, want)
		})
	}
}

func TestWhatCannotBeRead(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.heads = map[string]string{"a": "c0", "main": "c1", "pages": "c3"}
		w.parse["c0"] = kiln.Errorf(kiln.CodeInvalid, "", "the definition has an error")
		w.parse["c3"] = kiln.Errorf(kiln.CodeNotFound, "", "no definition")
		ups, problems := w.run(t, time.Hour)
		expect(t, "one branch keeps no other up", ups, "production@c1")
		expect(t, "problems", problems, "source shop: c0 of branch a was not brought up: the definition has an error")
		expect(t, "events", w.kinds(), "moved moved moved failed released")
		w.parse["c1"], w.heads = w.parse["c3"], map[string]string{"pages": "c3"}
		_, problems = w.run(t, time.Hour)
		if !strings.Contains(problems, "no branch has a definition in the folder .") {
			t.Errorf("problems: %s", problems)
		}
	})
}

func TestASourceThatCannotBeFetched(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.fetching = kiln.Errorf(kiln.CodeFailed, "look at the network", "no route")
		began := time.Now().UTC().Format(time.RFC3339)
		ups, problems := w.run(t, time.Hour)
		expect(t, "ups", ups, "")
		expect(t, "once a cause", w.kinds(), "failed")
		expect(t, "problems", problems, "source shop: since "+began+" r cannot be fetched: no route; look at the network")
		w.fetching = nil
		ups, problems = w.run(t, time.Hour)
		expect(t, "it is back", ups, "production@c1")
		expect(t, "problems", problems, "")
	})
}
