package track

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/durable"
)

// state is what is known of a source's branches. It is in a file, so that what
// was tried once is not tried again after a restart.
type state struct {
	// Repository and Folder are what it is of; of others nothing is known.
	Repository string             `json:"repository"`
	Folder     string             `json:"folder"`
	Branches   map[string]*branch `json:"branches"`
}

// branch is what is known of the commit that a branch is at.
type branch struct {
	Head string `json:"head"`
	// Read is true once the definition there was read, or cannot be.
	Read bool `json:"read"`
	// Absent is true when there is none.
	Absent bool `json:"absent,omitempty"`
	// Pending are the environments that it is still to be brought up in.
	Pending []string `json:"pending,omitempty"`
	// Trying is the one of them where that has begun.
	Trying *trial `json:"trying,omitempty"`
	// Failed says why it was not brought up, by environment; "" is all of them.
	Failed map[string]string `json:"failed,omitempty"`
}

// trial is what has begun and may have been cut short.
type trial struct {
	Environment string `json:"environment"`
	// After is the newest release that the environment had before.
	After int `json:"after"`
}

// load reads a state; without a file, or with one of another repository, it is
// that of a source that was never looked at.
func load(path, repository, folder string) (*state, error) {
	fresh := &state{Repository: repository, Folder: folder, Branches: map[string]*branch{}}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fresh, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read what is known of a source: %w", err)
	}
	var s state
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, kiln.Errorf(kiln.CodeFailed, "remove the file: the source is then taken as new, and what its branches are at is brought up", "%s cannot be read: %w", path, err)
	}
	if s.Repository != repository || s.Folder != folder || s.Branches == nil {
		return fresh, nil
	}
	return &s, nil
}

func (s *state) save(path string) error {
	text, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("keep what is known of a source: %w", err)
	}
	if err := durable.Write(path, text, 0o600); err != nil {
		return fmt.Errorf("keep what is known of a source: %w", err)
	}
	return nil
}

// move is a branch that is at another commit than before; from is empty for one
// that is new.
type move struct{ branch, from, to string }

// moves compares what is known with where the branches are, and says what has
// moved. It changes nothing.
func (s *state) moves(heads map[string]string) []move {
	var out []move
	for _, name := range slices.Sorted(maps.Keys(heads)) {
		from := ""
		if b := s.Branches[name]; b != nil {
			from = b.Head
		}
		if from != heads[name] {
			out = append(out, move{name, from, heads[name]})
		}
	}
	return out
}

// follow makes what is known that of the branches as they are. Of a branch that
// has moved everything is open; of one that is gone nothing is known any more,
// and its environments stay.
func (s *state) follow(heads map[string]string) {
	for name := range s.Branches {
		if heads[name] == "" {
			delete(s.Branches, name)
		}
	}
	for _, m := range s.moves(heads) {
		s.Branches[m.branch] = &branch{Head: m.to}
	}
}

// next is the environment to bring a branch's commit up in, "" for none. One
// that has begun and was cut short comes first.
func (b *branch) next(passed map[string]bool) string {
	if b.Trying != nil {
		return b.Trying.Environment
	}
	for _, name := range b.Pending {
		if !passed[name] {
			return name
		}
	}
	return ""
}

// settle notes how a trial ended: what is not to be tried again is no longer
// pending.
func (b *branch) settle(environment string, o outcome, why string) {
	b.Trying = nil
	if o == again {
		return
	}
	b.Pending = slices.DeleteFunc(b.Pending, func(name string) bool { return name == environment })
	if o == failed {
		b.fail(environment, why)
	}
}

func (b *branch) fail(environment, why string) {
	if b.Failed == nil {
		b.Failed = map[string]string{}
	}
	b.Failed[environment] = why[:min(len(why), maxWhy)]
}

// maxWhy bounds a cause that is kept, in bytes.
const maxWhy = 1000

// outcome is how a trial ended.
type outcome int

const (
	released outcome = iota
	failed           // for good: until the branch moves, or a person brings it up
	again            // nothing was tried: the environment was busy, or the control plane
)

// judge says how a trial ended. tried is whether a release came of it: then it
// is never tried again, however it ended, because whoever ended it or rolled it
// back meant it.
func judge(err error, tried bool) outcome {
	var e *kiln.Error
	switch {
	case err == nil:
		return released
	case tried:
		return failed
	case errors.As(err, &e) && (e.Code == kiln.CodeConflict || e.Code == kiln.CodeUnavailable):
		return again
	}
	return failed
}

// made says whether a commit became a release of an environment after one.
func made(releases []kiln.Release, commit string, after int) bool {
	return slices.ContainsFunc(releases, func(r kiln.Release) bool { return r.Number > after && r.Source.Commit == commit })
}

func newest(releases []kiln.Release) int {
	out := 0
	for _, r := range releases {
		out = max(out, r.Number)
	}
	return out
}

// transient says whether the reading of a commit is worth another attempt: what
// is wrong with the commit itself is not.
func transient(err error) bool {
	var e *kiln.Error
	return !errors.As(err, &e) || e.Code != kiln.CodeInvalid && e.Code != kiln.CodeRefused
}
