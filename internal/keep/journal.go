package keep

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/kilnproject/kiln"
)

const journalName = "keep.journal"

// record is one line of the journal; exactly one field is set.
type record struct {
	Boot      string        `json:"boot,omitempty"` // the first line: pids mean something within one boot
	Starting  *kiln.Process `json:"starting,omitempty"`
	Started   *started      `json:"started,omitempty"`
	Ended     *ended        `json:"ended,omitempty"`
	Forgotten string        `json:"forgotten,omitempty"`
	Listeners *[]string     `json:"listeners,omitempty"`
	Gateway   *started      `json:"gateway,omitempty"`
	Orphans   *[]started    `json:"orphans,omitempty"` // gateways of keepers before
}

type started struct {
	ID    string    `json:"id,omitempty"`
	PID   int       `json:"pid"`
	Ticks uint64    `json:"ticks"`
	At    time.Time `json:"at"`
}

type ended struct {
	ID   string    `json:"id"`
	Exit kiln.Exit `json:"exit"`
}

// journal is what a keeper leaves to the next one. It survives the keeper, not
// the machine: after another boot nothing of it lives, so it is never synced.
type journal struct {
	path     string
	log      *slog.Logger
	snapshot func() []record

	mu     sync.Mutex
	file   *os.File
	size   int64
	broken bool // the last write did not work; the next one writes all anew
}

// journalSize is how large the journal grows before it is written anew.
const journalSize = 4 << 20

func newJournal(path string, log *slog.Logger, snapshot func() []record) *journal {
	return &journal{path: path, log: log, snapshot: snapshot, broken: true}
}

// append adds a record. A disk that does not take it costs only what the next
// keeper would know.
func (j *journal) append(r record) {
	line, err := json.Marshal(r)
	if err != nil {
		j.log.Error("journal record cannot be encoded", "error", err)
		return
	}
	j.mu.Lock()
	n := 0
	if !j.broken {
		n, err = j.file.Write(append(line, '\n'))
		j.size += int64(n)
		j.broken = err != nil
		if err != nil {
			j.log.Error("journal cannot be written", "error", err)
		}
	}
	anew := j.broken || j.size > journalSize
	j.mu.Unlock()
	if anew {
		j.rewrite()
	}
}

// rewrite replaces the journal by one of what is now.
func (j *journal) rewrite() {
	j.mu.Lock()
	defer j.mu.Unlock()
	var b bytes.Buffer
	encode := json.NewEncoder(&b)
	for _, r := range j.snapshot() {
		if err := encode.Encode(r); err != nil {
			j.log.Error("journal record cannot be encoded", "error", err)
		}
	}
	f, err := replaceFile(j.path, b.Bytes())
	if err != nil {
		if !j.broken {
			j.log.Error("journal cannot be written", "error", err)
		}
		j.broken = true
		return
	}
	if j.file != nil {
		_ = j.file.Close()
	}
	j.file, j.size, j.broken = f, int64(b.Len()), false
}

// replaceFile writes a file whole and returns it open for appending.
func replaceFile(path string, content []byte) (*os.File, error) {
	temp := path + ".new"
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	if _, err = f.Write(content); err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(temp))
	}
	return f, nil
}

func (j *journal) close() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.file != nil {
		_ = j.file.Close()
	}
}

// past is what a journal says.
type past struct {
	boot      string
	processes map[string]*pastProcess
	listeners []string
	gateway   *started
	orphans   []started
}

// gateways are all that may live.
func (p past) gateways() []started {
	if p.gateway == nil {
		return p.orphans
	}
	return append(slices.Clone(p.orphans), *p.gateway)
}

type pastProcess struct {
	process kiln.Process
	started *started
	exit    *kiln.Exit
}

// readJournal reads what the keeper before left; a line that was cut short is
// left out. No journal is an empty one.
func readJournal(path string) (past, error) {
	out := past{processes: map[string]*pastProcess{}}
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return out, nil
	}
	if err != nil {
		return out, fmt.Errorf("read the keeper's journal %s: %w", filepath.Base(path), err)
	}
	for line := range bytes.Lines(b) {
		var r record
		if json.Unmarshal(line, &r) == nil {
			out.add(r)
		}
	}
	return out, nil
}

func (p *past) add(r record) {
	switch {
	case r.Boot != "":
		p.boot = r.Boot
	case r.Starting != nil && validID.MatchString(r.Starting.ID):
		p.processes[r.Starting.ID] = &pastProcess{process: *r.Starting}
	case r.Started != nil && p.processes[r.Started.ID] != nil:
		p.processes[r.Started.ID].started = r.Started
	case r.Ended != nil && p.processes[r.Ended.ID] != nil:
		p.processes[r.Ended.ID].exit = &r.Ended.Exit
	case r.Forgotten != "":
		delete(p.processes, r.Forgotten)
	case r.Listeners != nil:
		p.listeners = *r.Listeners
	case r.Gateway != nil:
		p.gateway = r.Gateway
	case r.Orphans != nil:
		p.orphans = *r.Orphans
	}
}

// snapshot is the shortest journal of what is now.
func (k *keeper) snapshot() []record {
	out := []record{{Boot: bootID()}}
	k.mu.Lock()
	for _, p := range k.processes {
		process := p.Process
		out = append(out, record{Starting: &process})
		if p.pid != 0 {
			out = append(out, record{Started: &started{ID: p.ID, PID: p.pid, Ticks: p.ticks, At: p.startedAt}})
		}
		if p.exit != nil {
			out = append(out, record{Ended: &ended{ID: p.ID, Exit: *p.exit}})
		}
	}
	k.mu.Unlock()
	if k.gateway == nil {
		return out
	}
	listeners, running := k.gateway.state()
	slices.Sort(listeners)
	out = append(out, record{Listeners: &listeners})
	if left := k.gateway.orphans.list(); len(left) > 0 {
		out = append(out, record{Orphans: &left})
	}
	if running != nil {
		out = append(out, record{Gateway: running})
	}
	return out
}
