package upgrade

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnproject/kiln"
)

// world is a machine whose programs are files that hold their version.
type world struct {
	t              *testing.T
	dir            string
	keeper, daemon string // versions that run
	broken         string // a version of the control plane that never comes up
	protocol       int    // of the control planes
	migrated       bool   // the ledger, by the new control plane

	calls []string
	fail  map[int]bool // calls that fail, by number
	kill  int          // the call that kill -9 ends the upgrade in; -1 for none
	late  bool         // after the call's effect
	said  []string
}

// killed is what a kill -9 is in a test.
type killed struct{}

const (
	was  = "1.4.0"
	will = "1.5.0"
)

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, dir: memoryDir(t), keeper: was, daemon: was, protocol: 1, kill: -1, fail: map[int]bool{}}
	w.programs("bin", was)
	w.programs("from", will)
	return w
}

// memoryDir is a folder where a sync costs nothing: hundreds of upgrades sync
// thousands of times.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "kiln-upgrade")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func (w *world) programs(folder, version string) {
	w.t.Helper()
	dir := filepath.Join(w.dir, folder)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		w.t.Fatal(err)
	}
	for _, path := range []string{In(dir).Kiln, In(dir).Kilnd} {
		if err := os.WriteFile(path, []byte(version), 0o755); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *world) options() Options {
	place := In(filepath.Join(w.dir, "bin"))
	return Options{Data: w.dir, Place: place, Old: place, New: In(filepath.Join(w.dir, "from")), Report: w.report}
}

func (w *world) report(format string, args ...any) {
	w.said = append(w.said, fmt.Sprintf(format, args...))
}

func (w *world) version(program string) string {
	b, err := os.ReadFile(program)
	if err != nil {
		w.t.Errorf("%v", err)
	}
	return string(b)
}

// call is one call, which may fail or be the last.
func (w *world) call(name string, effect func() error) error {
	n := len(w.calls)
	w.calls = append(w.calls, name)
	if n == w.kill && !w.late {
		panic(killed{})
	}
	if w.fail[n] {
		return fmt.Errorf("%s fails", name)
	}
	err := effect()
	if n == w.kill {
		panic(killed{})
	}
	return err
}

func (w *world) Running(context.Context) (r Running, err error) {
	err = w.call("running", func() error {
		r = Running{Keeper: w.keeper, Daemon: w.daemon}
		if w.daemon != "" {
			r.Command = &Command{Args: []string{"--data", w.dir}}
		}
		return nil
	})
	return r, err
}

func (w *world) Rehearse(_ context.Context, p Programs, _ *Command) (keeper, daemon Rehearsal, err error) {
	err = w.call("rehearse", func() error {
		keeper, daemon = Rehearsal{w.version(p.Kiln), 1}, Rehearsal{w.version(p.Kilnd), w.protocol}
		return nil
	})
	return keeper, daemon, err
}

func (w *world) Keeper(_ context.Context, program string) error {
	return w.call("keeper", func() error {
		if w.keeper != "" {
			w.keeper = w.version(program)
		}
		return nil
	})
}

func (w *world) Files(context.Context, string) error {
	return w.call("files", func() error { return nil })
}

func (w *world) End(context.Context) error {
	return w.call("end", func() error { w.daemon = ""; return nil })
}

func (w *world) Start(_ context.Context, program string, c Command) error {
	return w.call("start", func() error {
		if len(c.Args) != 2 {
			w.t.Errorf("started with %+v", c)
		}
		if w.comesUp(w.version(program)) {
			return nil
		}
		return kiln.Errorf(kiln.CodeUnavailable, "look at its log", "it does not answer")
	})
}

// comesUp starts a control plane, which the old one does not on a ledger that
// the new one has migrated.
func (w *world) comesUp(version string) bool {
	w.migrated = w.migrated || version == will
	if version == w.broken || w.migrated && version == was {
		return false
	}
	w.daemon = version
	return true
}

func (w *world) GoBack(context.Context, string, Command) error {
	return w.call("go back", func() error {
		w.migrated = false
		if w.daemon != "" {
			w.t.Error("the ledger of a control plane that runs was changed")
		}
		return nil
	})
}

// run upgrades, or says that it was killed.
func (w *world) run(f func() error) (err error, wasKilled bool) {
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(killed); !ok {
				panic(r)
			}
			wasKilled = true
			w.kill = -1
		}
	}()
	return f(), false
}

func (w *world) upgrade() (error, bool) {
	return w.run(func() error { _, err := Run(w.t.Context(), w.options(), w); return err })
}

// whole demands that all is of one version, and that nothing is left.
func (w *world) whole(where string, versions ...string) {
	w.t.Helper()
	place := w.options().Place
	all := []string{w.version(place.Kiln), w.version(place.Kilnd), w.keeper, w.daemon}
	for _, v := range versions {
		if strings.Join(all, " ") == strings.Join([]string{v, v, v, v}, " ") {
			for _, left := range []string{journalPath(w.dir), filepath.Join(w.dir, "bin", ".kiln-upgrade")} {
				if _, err := os.Lstat(left); err == nil {
					w.t.Errorf("%s: %s was left", where, left)
				}
			}
			return
		}
	}
	w.t.Errorf("%s: kiln, kilnd, keeper and control plane are %v after %v\n%s", where, all, w.calls, strings.Join(w.said, "\n"))
}

func TestAnUpgradeReplacesAll(t *testing.T) {
	w := newWorld(t)
	if err, _ := w.upgrade(); err != nil {
		t.Fatal(err)
	}
	w.whole("no fault", will)
	if got := strings.Join(w.calls, ","); got != "running,rehearse,keeper,files,end,start" {
		t.Error(got)
	}
}

func TestWithoutAControlPlaneTheRestIsReplaced(t *testing.T) {
	w := newWorld(t)
	w.daemon = ""
	if err, _ := w.upgrade(); err != nil {
		t.Fatal(err)
	}
	if w.daemon != "" {
		t.Error("a control plane was started that did not run")
	}
	w.daemon = will
	w.whole("no control plane", will)
}

func TestAPackagesFilesAreInPlace(t *testing.T) {
	for _, broken := range []string{"", will} {
		w := newWorld(t)
		w.broken = broken
		w.programs("running", was)
		w.programs("bin", will)
		o := w.options()
		o.New, o.Old = o.Place, In(filepath.Join(w.dir, "running"))
		err, _ := w.run(func() error { _, err := Run(t.Context(), o, w); return err })
		if (err != nil) != (broken != "") {
			t.Fatal(err)
		}
		want := will
		if broken != "" {
			want = was
		}
		w.whole("in place", want)
	}
}

func TestWhatIsTooFarIsRefused(t *testing.T) {
	for name, change := range map[string]func(*world){
		"two minors ahead": func(w *world) { w.programs("from", "1.6.0") },
		"two minors back":  func(w *world) { w.programs("from", "1.2.0") },
		"a major ahead":    func(w *world) { w.programs("from", "2.0.0") },
		"an older keeper":  func(w *world) { w.keeper = "1.3.0" },
		"two versions":     func(w *world) { _ = os.WriteFile(filepath.Join(w.dir, "from", "kiln"), []byte("1.7.0"), 0o755) },
		"two languages":    func(w *world) { w.protocol = 2 },
		"not executable":   func(w *world) { _ = os.Chmod(filepath.Join(w.dir, "from", "kilnd"), 0o644) },
		"not there":        func(w *world) { _ = os.Remove(filepath.Join(w.dir, "from", "kiln")) },
		"a folder": func(w *world) {
			_ = os.Remove(filepath.Join(w.dir, "from", "kiln"))
			_ = os.Mkdir(filepath.Join(w.dir, "from", "kiln"), 0o755)
		},
		"what does not rehearse": func(w *world) { w.fail[1] = true },
	} {
		w := newWorld(t)
		change(w)
		keeper := w.keeper
		err, _ := w.upgrade()
		if err == nil {
			t.Errorf("%s: it was taken", name)
		}
		if w.keeper != keeper {
			t.Errorf("%s: the keeper was replaced", name)
		}
		w.keeper = was
		w.whole(name, was)
	}
}

func TestTwoUpgradesAtOnceAreRefused(t *testing.T) {
	w := newWorld(t)
	lock, err := take(w.dir)
	if err != nil {
		t.Fatal(err)
	}
	if err, _ := w.upgrade(); !errors.Is(err, kiln.ErrConflict) {
		t.Error(err)
	}
	// Who starts a control plane waits for none.
	if err := os.WriteFile(journalPath(w.dir), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if was, err := Resume(t.Context(), w.dir, w, false, w.report); was || err != nil {
		t.Error(was, err)
	}
	if v, err := Settle(w.dir, will); v != "" || err != nil {
		t.Error(v, err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestWhateverFailsAllIsOfOneVersion fails each call, and each pair of calls.
func TestWhateverFailsAllIsOfOneVersion(t *testing.T) {
	for _, broken := range []string{"", will} {
		for first := range 12 {
			for second := first; second < 12 && (first > 1 || second == first); second++ { // nothing follows a refusal
				w := newWorld(t)
				w.broken, w.fail = broken, map[int]bool{first: true, second: true}
				where := fmt.Sprintf("broken %q, %d and %d fail", broken, first, second)
				err, _ := w.upgrade()
				if exists(w.dir) { // going back failed too
					if err == nil || !strings.Contains(err.Error(), "going back") {
						t.Errorf("%s: %v", where, err)
					}
					if again, _ := w.upgrade(); !errors.Is(again, kiln.ErrConflict) {
						t.Errorf("%s: another upgrade: %v", where, again)
					}
					w.fail = nil
					if _, err := Resume(t.Context(), w.dir, w, true, w.report); err == nil {
						t.Errorf("%s: the resumed one does not say that it went back", where)
					}
				}
				if err == nil {
					w.whole(where, will)
				} else {
					w.whole(where, was)
				}
			}
		}
	}
}

// TestWhereverItIsKilledItEnds kills the upgrade in each call, before and after
// its effect, and ends it in each way there is.
func TestWhereverItIsKilledItEnds(t *testing.T) {
	ways := map[string]func(*world){
		"kiln upgrade --resume": func(w *world) {
			_, _ = Resume(w.t.Context(), w.dir, w, true, w.report) // the error tells that it went back
		},
		"the machine starts again": func(w *world) {
			place := w.options().Place
			w.keeper, w.daemon = w.version(place.Kiln), ""
			w.startUntilItAnswers()
			// A keeper that was not asked for is what is in place.
			w.keeper = w.version(place.Kiln)
		},
		"the control plane starts again": func(w *world) {
			w.daemon = ""
			w.startUntilItAnswers()
		},
	}
	for name, end := range ways {
		for broken, calls := range map[string]int{"": 6, will: 12} {
			for n := range calls {
				for _, late := range []bool{false, true} {
					w := newWorld(t)
					w.broken, w.kill, w.late = broken, n, late
					err, wasKilled := w.upgrade()
					where := fmt.Sprintf("%s, broken %q, killed in call %d, late %v", name, broken, n, late)
					if wasKilled {
						end(w)
						if n < 2 { // it has not begun
							w.kill = -1
							_ = os.RemoveAll(filepath.Join(w.dir, "bin", ".kiln-upgrade"))
						}
					} else if (err != nil) != (broken != "") {
						t.Errorf("%s: %v", where, err)
					}
					if broken != "" {
						w.whole(where, was)
					} else {
						w.whole(where, was, will)
					}
				}
			}
		}
	}
}

// startUntilItAnswers is what systemd does: it has the upgrade resumed, and
// starts what is in place, again and again.
func (w *world) startUntilItAnswers() {
	place := w.options().Place
	for range 4 {
		if _, err := Resume(w.t.Context(), w.dir, w, false, w.report); err != nil {
			w.t.Error(err)
		}
		if version := w.version(place.Kilnd); w.comesUp(version) {
			if _, err := Settle(w.dir, version); err != nil {
				w.t.Error(err)
			}
			return
		}
	}
	w.t.Errorf("no control plane comes up after %v", w.calls)
}
