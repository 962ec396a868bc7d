package install

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"syscall"

	"github.com/kilnproject/kiln"
)

// Action is what is done with an item.
type Action string

// The actions.
const (
	Make    Action = "make"
	Replace Action = "replace"
	Change  Action = "change" // mode and owner of a folder
	Same    Action = "same"   // it is there as it should be
	Keep    Action = "keep"   // it stays as it is, because it is not ours to touch
	Remove  Action = "remove"
)

// Step is one item and what is done with it.
type Step struct {
	Action Action
	Item   Item
	Why    string // why it is kept, or what changes; may be empty

	digest kiln.Digest // of a file as it will be
	whole  bool        // a folder goes with all that is in it
}

// safePath is a path that needs no quoting in a unit or a shell.
var safePath = regexp.MustCompile(`^(/[A-Za-z0-9_.+-]+)+$`)

func (o Options) check() error {
	for _, one := range []struct{ flag, path string }{{"--prefix", o.Prefix}, {"--data", o.Data}} {
		if !safePath.MatchString(one.path) || filepath.Clean(one.path) != one.path {
			return kiln.Errorf(kiln.CodeInvalid, "letters, digits and any of _.+- make up its names", "%s %q is not an absolute path that a unit can name", one.flag, one.path)
		}
	}
	return nil
}

// Plan says what Install would do, and refuses what it must not do.
func Plan(o Options) ([]Step, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	h, err := openHost(o.Root, o.Run)
	if err != nil {
		return nil, err
	}
	defer h.close()
	p, err := newPlanner(h, o)
	if err != nil {
		return nil, err
	}
	return p.steps()
}

// planner compares what should be with what is there.
type planner struct {
	*host
	options Options
	record  Record
	made    map[string]bool // folders that earlier steps make
	foreign []string        // what is in the way
}

func newPlanner(h *host, o Options) (*planner, error) {
	record, err := h.record()
	if err != nil {
		return nil, err
	}
	if record == nil {
		if err := h.packaged(o.Prefix); err != nil {
			return nil, err
		}
		record = &Record{Version: recordVersion, Prefix: o.Prefix, Data: o.Data}
	}
	if record.Prefix != o.Prefix || record.Data != o.Data {
		return nil, kiln.Errorf(kiln.CodeConflict, "kiln uninstall first; it keeps the data directory",
			"Kiln is installed with the prefix %s and the data directory %s", record.Prefix, record.Data)
	}
	return &planner{host: h, options: o, record: *record, made: map[string]bool{}}, nil
}

// packaged refuses a second installation beside that of a package: its units
// would hide the package's.
func (h *host) packaged(prefix string) error {
	if prefix == "/usr" {
		return nil // then what differs is in the way
	}
	if _, err := h.root.Lstat(h.at(filepath.Join(UnitDir("/usr"), DaemonUnit))); err == nil {
		return kiln.Errorf(kiln.CodeConflict, "upgrade the package, or apt-get remove kiln first", "Kiln is installed by a package")
	}
	return nil
}

func (p *planner) steps() ([]Step, error) {
	var all []Step
	for _, item := range Items(p.options) {
		if item.Kind != KindGroup && item.Kind != KindUser {
			parents, err := p.parents(item.Name)
			if err != nil {
				return nil, err
			}
			all = append(all, parents...)
		}
		step, err := p.step(item)
		if err != nil {
			return nil, fmt.Errorf("look at %s: %w", item.Name, err)
		}
		all = append(all, step)
	}
	if len(p.foreign) > 0 {
		return nil, &kiln.Error{
			Code: kiln.CodeConflict, Message: fmt.Sprintf("%d files are in the way that kiln install did not write, or that were changed since", len(p.foreign)),
			Hint: "move them away, or --force replaces them", Evidence: p.foreign,
		}
	}
	return all, nil
}

// parents are the folders above a path that have to be made.
func (p *planner) parents(path string) ([]Step, error) {
	var missing []Step
	for dir := filepath.Dir(path); dir != "/" && !p.made[dir]; dir = filepath.Dir(dir) {
		_, err := p.root.Stat(p.at(dir))
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		p.made[dir] = true
		missing = append(missing, Step{Action: Make, Item: Item{Kind: KindFolder, Name: dir, Mode: 0o755}})
	}
	slices.Reverse(missing)
	return missing, nil
}

func (p *planner) step(i Item) (Step, error) {
	switch i.Kind {
	case KindGroup, KindUser:
		_, found, err := p.account(i.Kind, i.Name)
		return Step{Action: pick(found, Same, Make), Item: i}, err
	case KindFolder:
		return p.folder(i)
	case KindLink:
		return p.link(i)
	default:
		return p.file(i)
	}
}

func pick(yes bool, a, b Action) Action {
	if yes {
		return a
	}
	return b
}

func (p *planner) folder(i Item) (Step, error) {
	p.made[i.Name] = true
	info, err := p.root.Stat(p.at(i.Name))
	if errors.Is(err, fs.ErrNotExist) {
		return Step{Action: Make, Item: i}, nil
	}
	if err != nil {
		return Step{}, err
	}
	if !info.IsDir() {
		p.foreign = append(p.foreign, i.Name+" is not a folder")
		return Step{Action: Keep, Item: i}, nil
	}
	return p.modeStep(i, info), nil
}

// modeStep is the step of an item that is there, but for its mode and owner
// perhaps.
func (p *planner) modeStep(i Item, info fs.FileInfo) Step {
	if info.Mode().Perm() == i.Mode && owner(info) == p.wanted(i) {
		return Step{Action: Same, Item: i}
	}
	return Step{Action: Change, Item: i, Why: fmt.Sprintf("mode %04o and owner %s before", info.Mode().Perm(), owner(info))}
}

// ids are a user's and a group's numbers; -1 is one that is not there yet.
type ids struct{ uid, gid int }

func (o ids) String() string { return fmt.Sprintf("%d:%d", o.uid, o.gid) }

func owner(info fs.FileInfo) ids {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return ids{int(stat.Uid), int(stat.Gid)}
	}
	return ids{-1, -1}
}

// wanted is who shall own an item.
func (h *host) wanted(i Item) ids {
	if i.Group == "" {
		return ids{}
	}
	gid, found, err := h.account(KindGroup, i.Group)
	if err != nil || !found {
		gid = -1
	}
	return ids{gid: gid}
}

func (p *planner) link(i Item) (Step, error) {
	recorded := p.record.find(i.Kind, i.Name)
	target, err := p.root.Readlink(p.at(i.Name))
	switch {
	case errors.Is(err, fs.ErrNotExist) && recorded != nil && i.Yours:
		return Step{Action: Keep, Item: i, Why: "it was taken away since"}, nil
	case errors.Is(err, fs.ErrNotExist):
		return Step{Action: Make, Item: i}, nil
	case err == nil && target == i.Target:
		return Step{Action: Same, Item: i}, nil
	case err == nil && recorded != nil && target == recorded.Target, p.options.Force:
		return Step{Action: Replace, Item: i}, nil
	}
	p.foreign = append(p.foreign, i.Name)
	return Step{Action: Keep, Item: i}, nil
}

func (p *planner) file(i Item) (Step, error) {
	want, err := i.digest()
	if err != nil {
		return Step{}, err
	}
	have, err := p.digestOf(i.Name)
	recorded := p.record.find(i.Kind, i.Name)
	step := Step{Item: i, digest: want}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		step.Action = Make
	case err != nil:
		return Step{}, err
	case i.Yours && have != want:
		step.Action, step.Why = Keep, "it is there"
	case have == want:
		info, err := p.root.Lstat(p.at(i.Name))
		if err != nil {
			return Step{}, err
		}
		step = p.modeStep(i, info)
		step.digest = want
	case recorded != nil && slices.Contains(recorded.Digests, have), p.options.Force:
		step.Action = Replace
	default:
		step.Action = Keep
		p.foreign = append(p.foreign, i.Name)
	}
	return step, nil
}

// digest is that of what a file will hold.
func (i Item) digest() (kiln.Digest, error) {
	if i.Source == "" {
		return kiln.DigestOf(i.Text), nil
	}
	f, err := os.Open(i.Source)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	return digestReader(f)
}

// digestOf is that of what a file holds. What is no regular file has none that
// anything else has.
func (h *host) digestOf(path string) (kiln.Digest, error) {
	info, err := h.root.Lstat(h.at(path))
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", nil
	}
	f, err := h.root.Open(h.at(path))
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	return digestReader(f)
}

func digestReader(r io.Reader) (kiln.Digest, error) {
	sum := sha256.New()
	if _, err := io.Copy(sum, r); err != nil {
		return "", err
	}
	return kiln.Digest("sha256:" + hex.EncodeToString(sum.Sum(nil))), nil
}

// Install does what Plan says and tells each step before it is taken. What it
// made is recorded also when it ends in the middle.
func Install(ctx context.Context, o Options, tell func(Step) error) error {
	if err := o.check(); err != nil {
		return err
	}
	h, err := openHost(o.Root, o.Run)
	if err != nil {
		return err
	}
	defer h.close()
	p, err := newPlanner(h, o)
	if err != nil {
		return err
	}
	steps, err := p.steps()
	if err != nil {
		return err
	}
	return p.take(ctx, steps, tell)
}
