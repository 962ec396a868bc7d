package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/kilnproject/kiln"
)

// take takes the steps. From before the first file on, the record names all
// that will be there, so that what is cut short can be done again or undone.
func (p *planner) take(ctx context.Context, steps []Step, tell func(Step) error) error {
	record := p.record.clone()
	record.Kiln = p.options.Version
	recorded := false
	for _, s := range steps {
		if e, ours := s.entry(); ours {
			record.add(e)
		}
	}
	for _, s := range steps {
		if s.Item.Kind == KindFile && !recorded {
			if err := p.writeRecord(record); err != nil {
				return fmt.Errorf("record what is installed: %w", err)
			}
			recorded = true
		}
		if err := tell(s); err != nil {
			return err
		}
		if err := p.do(ctx, s); err != nil {
			return fmt.Errorf("%s %s %s: %w", s.Action, s.Item.Kind, s.Item.Name, err)
		}
	}
	for _, s := range steps { // now nothing has its former content
		if e, ours := s.entry(); ours {
			*record.find(e.Kind, e.Name) = e
		}
	}
	return p.writeRecord(record)
}

// entry is what the record says of a step's item, when it is the installation's:
// what it makes, and files that are as it would have made them.
func (s Step) entry() (Entry, bool) {
	e := Entry{Kind: s.Item.Kind, Name: s.Item.Name, Target: s.Item.Target}
	if s.digest != "" {
		e.Digests = []kiln.Digest{s.digest}
	}
	switch s.Action {
	case Make, Replace:
		return e, true
	case Same, Change:
		return e, s.Item.Kind == KindFile || s.Item.Kind == KindLink
	default:
		return e, false
	}
}

func (h *host) do(ctx context.Context, s Step) error {
	i := s.Item
	switch {
	case s.Action == Same || s.Action == Keep:
		return nil
	case i.Kind == KindGroup || i.Kind == KindUser:
		return h.change(ctx, MakeAccount(i))
	case i.Kind == KindFolder:
		return h.makeFolder(i)
	case i.Kind == KindLink:
		return h.writeLink(i)
	case s.Action == Change:
		return h.setMode(i)
	default:
		return h.write(i)
	}
}

func (h *host) makeFolder(i Item) error {
	err := h.root.Mkdir(h.at(i.Name), 0o700)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return h.setMode(i)
}

// setMode gives an item its mode and owner.
func (h *host) setMode(i Item) error {
	want := h.wanted(i)
	if want.gid < 0 {
		return fmt.Errorf("there is no group %s", i.Group)
	}
	path := h.at(i.Name)
	if err := h.root.Chown(path, want.uid, want.gid); err != nil {
		return err
	}
	return h.root.Chmod(path, i.Mode)
}

func (h *host) writeLink(i Item) error {
	path := h.at(i.Name)
	if err := h.root.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return h.root.Symlink(i.Target, path)
}

// write puts a file in its place in one step.
func (h *host) write(i Item) error {
	var content io.Reader = bytes.NewReader(i.Text)
	if i.Source != "" {
		f, err := os.Open(i.Source)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		content = f
	}
	path := h.at(i.Name)
	temp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".kiln-new")
	if err := h.root.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	err := h.fill(temp, i, content)
	if err == nil {
		err = h.root.Rename(temp, path)
	}
	if err != nil {
		return errors.Join(err, ignoreMissing(h.root.Remove(temp)))
	}
	return h.syncFolder(filepath.Dir(path))
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (h *host) fill(temp string, i Item, content io.Reader) error {
	want := h.wanted(i)
	if want.gid < 0 {
		return fmt.Errorf("there is no group %s", i.Group)
	}
	f, err := h.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content)
	for _, step := range []func() error{
		func() error { return f.Chown(want.uid, want.gid) },
		func() error { return f.Chmod(i.Mode) },
		f.Sync,
	} {
		if err == nil {
			err = step()
		}
	}
	return errors.Join(err, f.Close())
}

func (h *host) syncFolder(dir string) error {
	f, err := h.root.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
