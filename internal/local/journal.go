package local

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/durable"
)

// phase is how far an instance's record says it is.
type phase string

const (
	phaseMaking      phase = "making" // parts of it may exist
	phaseRunning     phase = "running"
	phaseEnding      phase = "ending"
	phaseQuarantined phase = "quarantined"
)

// record is an instance on disk: enough to adopt it, end it, or remove its
// parts. It is written before any of them exists.
type record struct {
	Phase    phase         `json:"phase"`
	Instance kiln.Instance `json:"instance"`
	Template kiln.Template `json:"template"`
	Task     bool          `json:"task,omitempty"`
	Release  int           `json:"release,omitempty"` // of a task
	Link     string        `json:"link"`
	Root     string        `json:"root"`            // the translated mount, if any
	Stop     int           `json:"stop"`            // signal
	End      *kiln.Cause   `json:"end,omitempty"`   // why it ends
	Leave    string        `json:"leave,omitempty"` // why it is to be replaced
}

// desired is an environment's desired set on disk.
type desired struct {
	Fleets []kiln.Fleet `json:"fleets"`
	Reason string       `json:"reason"`
}

// routes is the traffic table on disk, so that it holds also before the
// control plane speaks again. Generations up to Reserved may be in use.
type routes struct {
	Table    kiln.RouteTable `json:"table"`
	Reserved uint64          `json:"reserved"`
}

// writeDurable replaces a file by v's JSON so that after a power cut either
// the old or the new content is there.
func writeDurable(path string, v any) error {
	if err := replaceFile(path, v, true); err != nil {
		return fmt.Errorf("record %s: %w", filepath.Base(path), err)
	}
	return nil
}

// writeQuick replaces a file by v's JSON. It survives the end of this process
// but not of the machine, after which what it tells of is gone as well.
func writeQuick(path string, v any) error {
	if err := replaceFile(path, v, false); err != nil {
		return fmt.Errorf("record %s: %w", filepath.Base(path), err)
	}
	return nil
}

func replaceFile(path string, v any, lasting bool) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	temp := path + ".new"
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if lasting {
		err = errors.Join(err, f.Sync())
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	if !lasting {
		return nil
	}
	return durable.SyncFolder(filepath.Dir(path))
}

// readJSON reads a file into v; ok is false when it is not there.
func readJSON(path string, v any) (ok bool, err error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return false, fmt.Errorf("read %s: %w", path, err)
	}
	return true, nil
}

// load reads what was desired and routed before.
func (e *Engine) load() error {
	var r routes
	if _, err := readJSON(e.routesFile(), &r); err != nil {
		return err
	}
	e.table, e.generation, e.reserved = r.Table, r.Reserved, r.Reserved
	entries, err := os.ReadDir(e.paths.desired)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		name, ok := environmentOf(entry.Name())
		if !ok {
			continue
		}
		var d desired
		if _, err := readJSON(filepath.Join(e.paths.desired, entry.Name()), &d); err != nil {
			return err
		}
		env := e.environment(name)
		env.desire(d)
	}
	return nil
}

func environmentOf(file string) (string, bool) {
	ext := filepath.Ext(file)
	return file[:len(file)-len(ext)], ext == ".json"
}

func (e *Engine) desiredFile(environment string) string {
	return filepath.Join(e.paths.desired, environment+".json")
}
