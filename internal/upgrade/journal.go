package upgrade

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/durable"
)

// step is what an upgrade is at: it was begun, and may be done.
type step string

const (
	staged        step = "staged"
	replaceKeeper step = "keeper"
	replaceFiles  step = "files"
	replaceDaemon step = "daemon"
	goingBack     step = "back"
)

// journalForm is the form of the journal.
const journalForm = 1

// journal is an upgrade, as it is on the disk.
type journal struct {
	Form    int      `json:"form"`
	From    string   `json:"from"`
	To      string   `json:"to"`
	Step    step     `json:"step"`
	Reached step     `json:"reached,omitempty"` // before it went back
	Tries   int      `json:"tries,omitempty"`   // of the last step, after it was cut short
	Place   Programs `json:"place"`
	// Command is how the control plane was started, nil where none ran.
	Command *Command `json:"command,omitempty"`
	// InPlace is true where the new files were in place before.
	InPlace bool `json:"in_place,omitempty"`

	data string
}

func folder(data string) string { return filepath.Join(data, "upgrade") }

func journalPath(data string) string { return filepath.Join(folder(data), "upgrade.json") }

// exists says whether there is an upgrade that has not ended.
func exists(data string) bool {
	_, err := os.Lstat(journalPath(data))
	return err == nil
}

// take makes sure that no other process is at an upgrade of the data directory.
func take(data string) (*os.File, error) {
	if err := os.MkdirAll(folder(data), 0o700); err != nil {
		return nil, fmt.Errorf("begin an upgrade: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(folder(data), "lock"), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("begin an upgrade: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, kiln.Errorf(kiln.CodeConflict, "wait until it has ended", "another upgrade is under way")
		}
		return nil, fmt.Errorf("begin an upgrade: %w", err)
	}
	return f, nil
}

// read reads the journal, nil where there is none.
func read(data string) (*journal, error) {
	b, err := os.ReadFile(journalPath(data))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil //nolint:nilnil // mostly there is none
	}
	j := &journal{data: data}
	if err == nil {
		err = json.Unmarshal(b, j)
	}
	if err == nil && j.Form != journalForm {
		err = fmt.Errorf("it has form %d, and this program knows form %d", j.Form, journalForm)
	}
	if err != nil {
		return nil, kiln.Errorf(kiln.CodeFailed, "", "read what an upgrade was at: %s: %w", journalPath(data), err)
	}
	return j, nil
}

// at records the step that comes next.
func (j *journal) at(s step) error {
	j.Step = s
	return j.write()
}

func (j *journal) write() error {
	b, err := json.MarshalIndent(j, "", "  ")
	if err != nil {
		return err
	}
	if err := durable.Write(journalPath(j.data), append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("record the upgrade: %w", err)
	}
	return nil
}

// clear ends the upgrade: its record first, then the files that it kept.
func (j *journal) clear() error {
	if err := os.Remove(journalPath(j.data)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("end the upgrade: %w", err)
	}
	if err := durable.SyncFolder(folder(j.data)); err != nil {
		return err
	}
	return os.RemoveAll(j.kept())
}

// kept is the folder of the new and the old programs, beside those in place, so
// that they can be renamed into it.
func (j *journal) kept() string { return filepath.Join(filepath.Dir(j.Place.Kiln), ".kiln-upgrade") }

func (j *journal) new() Programs {
	if j.InPlace {
		return j.Place
	}
	return In(filepath.Join(j.kept(), "new"))
}

func (j *journal) old() Programs { return In(filepath.Join(j.kept(), "old")) }

// oldOrPlaced are the old programs, which may be in place already.
func (j *journal) oldOrPlaced() Programs {
	if _, err := os.Stat(j.old().Kiln); err != nil {
		return j.Place
	}
	return j.old()
}

// stage copies the new programs and keeps the old ones.
func (j *journal) stage(o Options) error {
	if err := os.RemoveAll(j.kept()); err != nil {
		return fmt.Errorf("make room for the new programs: %w", err)
	}
	for _, dir := range []string{j.kept(), filepath.Dir(In(filepath.Join(j.kept(), "new")).Kiln), filepath.Dir(j.old().Kiln)} {
		if err := os.Mkdir(dir, 0o755); err != nil { //nolint:gosec // the gateway's user executes what is in it
			return fmt.Errorf("make room for the new programs: %w", err)
		}
	}
	j.InPlace = o.New == o.Place
	old := o.Place
	if j.InPlace {
		old = o.Old
	} else if err := errors.Join(copyProgram(o.New.Kiln, j.new().Kiln), copyProgram(o.New.Kilnd, j.new().Kilnd)); err != nil {
		return err
	}
	return errors.Join(keepProgram(old.Kiln, j.old().Kiln), keepProgram(old.Kilnd, j.old().Kilnd), durable.SyncFolder(filepath.Dir(j.old().Kiln)), durable.SyncFolder(filepath.Dir(j.new().Kiln)))
}

// keepProgram gives an executable a second name, or copies it.
func keepProgram(from, to string) error {
	if info, err := os.Lstat(from); err == nil && info.Mode().IsRegular() && os.Link(from, to) == nil {
		return nil
	}
	return copyProgram(from, to)
}

// copyProgram copies an executable; of what is executable later, nobody but the
// owner can write it.
func copyProgram(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return kiln.Errorf(kiln.CodeNotFound, "--from names a folder with kiln and kilnd", "read the program: %w", err)
	}
	defer func() { _ = in.Close() }()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
		return kiln.Errorf(kiln.CodeInvalid, "chmod +x "+from, "%s is not an executable file", from)
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o755) //nolint:gosec // the gateway's user executes it
	if err != nil {
		return fmt.Errorf("copy %s: %w", from, err)
	}
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Chmod(0o755), out.Sync(), out.Close()); err != nil {
		return fmt.Errorf("copy %s: %w", from, err)
	}
	return nil
}

// put renames programs to their place. What is there already is.
func (j *journal) put(from Programs) error {
	for _, pair := range [][2]string{{from.Kiln, j.Place.Kiln}, {from.Kilnd, j.Place.Kilnd}} {
		if pair[0] == pair[1] {
			continue
		}
		if err := os.Rename(pair[0], pair[1]); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("put %s in its place: %w", filepath.Base(pair[1]), err)
		}
	}
	return durable.SyncFolder(filepath.Dir(j.Place.Kiln))
}
