package cli

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/control"
	"github.com/kilnproject/kiln/internal/server"
	"github.com/kilnproject/kiln/internal/source"
	"github.com/kilnproject/kiln/internal/spec"
)

// stageSend is the stage of what this command does before the control plane
// begins.
const stageSend = "prepare"

// definitionFlags are the flags of commands that read a definition.
type definitionFlags struct {
	vars     []string
	varFiles []string
	locked   bool
	again    bool
}

// registerValues adds the flags that give variables their values.
func (d *definitionFlags) registerValues(command *cobra.Command) {
	flags := command.Flags()
	flags.StringArrayVar(&d.vars, "var", nil, "value of a variable, name=value; KILN_VAR_name in the environment does the same")
	flags.StringArrayVar(&d.varFiles, "var-file", nil, "file of values: lines of name = value, or a JSON object")
}

func (d *definitionFlags) register(command *cobra.Command) {
	d.registerValues(command)
	command.Flags().BoolVar(&d.locked, "locked", false, "refuse to resolve what kiln.lock does not name")
}

// loaded is a definition that was read on this side.
type loaded struct {
	*spec.Definition
	values map[string]json.RawMessage // as given, not as used
}

// load reads the definition here, so that what is wrong with it is said at
// once and without a control plane.
func (a *app) load(ctx context.Context, d definitionFlags, environment string) (loaded, error) {
	values, err := a.values(d)
	if err != nil {
		return loaded{}, err
	}
	root, err := os.OpenRoot(a.dir)
	if err != nil {
		return loaded{}, fileError(err)
	}
	defer func() { _ = root.Close() }()
	from, err := source.Git(ctx, a.dir)
	if err != nil {
		return loaded{}, err
	}
	definition, err := spec.Load(root.FS(), spec.Options{Environment: environment, Branch: from.Branch, Values: values})
	if err != nil {
		return loaded{}, a.elsewhere(err)
	}
	return loaded{definition, values}, nil
}

// elsewhere adds to what is said of a folder without a definition which folder
// above has one: a definition is never looked for, so that it is clear which
// one is meant.
func (a *app) elsewhere(err error) error {
	var said *kiln.Error
	if !errors.As(err, &said) || said.Code != kiln.CodeNotFound {
		return err
	}
	dir, _ := filepath.Abs(a.dir)
	for above := filepath.Dir(dir); dir != "" && above != dir; dir, above = above, filepath.Dir(above) {
		if _, gone := os.Stat(filepath.Join(above, "kiln.hcl")); gone == nil {
			said.Hint = "there is one above: -C " + above
			break
		}
	}
	return err
}

func (a *app) values(d definitionFlags) (map[string]json.RawMessage, error) {
	files := make(map[string][]byte, len(d.varFiles))
	for _, name := range d.varFiles {
		content, err := os.ReadFile(name)
		if err != nil {
			return nil, fileError(err)
		}
		files[name] = content
	}
	return spec.ParseVars(d.vars, files, a.Environ)
}

// prepared is an UpRequest whose blobs are in the store.
type prepared struct {
	control.UpRequest
	lock []byte // kiln.lock as it was read, nil when there is none
}

// prepare reads the definition, starts the control plane where none runs, and
// sends what it does not have.
func (a *app) prepare(ctx context.Context, d definitionFlags, environment string, p *progress) (prepared, *server.Client, error) {
	definition, err := a.load(ctx, d, environment)
	if err != nil {
		return prepared{}, nil, err
	}
	out := prepared{}
	if out.lock, err = a.readLock(); err != nil {
		return prepared{}, nil, err
	}
	client, err := a.running(ctx, p)
	if err != nil {
		return prepared{}, nil, err
	}
	want := source.Want{Files: definition.Spec.Files, Images: definition.Spec.Images}
	tree, open, from, err := source.Snapshot(ctx, a.dir, want)
	if err != nil {
		return prepared{}, nil, err
	}
	if err := send(ctx, client, tree, open, p); err != nil {
		return prepared{}, nil, err
	}
	out.UpRequest = control.UpRequest{
		Environment: environment, Tree: tree, Source: from,
		Values: definition.values, Locked: d.locked, Again: d.again,
	}
	return out, client, nil
}

// send streams the blobs that the store has not.
func send(ctx context.Context, client *server.Client, tree kiln.Tree, open source.Opener, p *progress) error {
	sizes := map[kiln.Digest]int64{}
	for _, e := range tree.Entries {
		if e.Digest != "" {
			sizes[e.Digest] = e.Size
		}
	}
	digests := make([]kiln.Digest, 0, len(sizes))
	for d := range sizes {
		digests = append(digests, d)
	}
	slices.Sort(digests)
	missing, err := client.Missing(ctx, digests)
	if err != nil || len(missing) == 0 {
		return err
	}
	var blobs []server.Blob
	for _, d := range missing {
		blobs = append(blobs, server.Blob{Digest: d, Size: sizes[d], Open: func() (io.ReadCloser, error) { return open(d) }})
	}
	return sendBlobs(ctx, client, blobs, "file", p)
}

// readLock returns kiln.lock as it is, nil when there is none.
func (a *app) readLock() ([]byte, error) {
	root, err := os.OpenRoot(a.dir)
	if err != nil {
		return nil, fileError(err)
	}
	defer func() { _ = root.Close() }()
	lock, err := readFile(root, spec.LockFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return lock, err
}

// writeLock puts what a bake resolved into kiln.lock, when that differs from
// what the file says. The overlay says what a repave pinned instead of it: with
// that in the file, it says what runs.
func (a *app) writeLock(before []byte, lock kiln.Lock, overlay []string) error {
	for _, line := range overlay {
		a.say("%s", escape(line))
	}
	after := spec.FormatLock(lock)
	if string(after) == string(before) || before == nil && len(lock.References)+len(lock.Debian) == 0 {
		return nil
	}
	root, err := os.OpenRoot(a.dir)
	if err != nil {
		return fileError(err)
	}
	defer func() { _ = root.Close() }()
	if err := replaceFile(root, spec.LockFile, after); err != nil {
		return err
	}
	if len(overlay) > 0 {
		a.say("%s was written with what the repave pinned: commit it, so that it says what runs", filepath.Join(a.dir, spec.LockFile))
		return nil
	}
	a.say("%s was written: commit it, so that every bake starts from the same bases", filepath.Join(a.dir, spec.LockFile))
	return nil
}
