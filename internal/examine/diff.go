package examine

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/aymanbagabas/go-udiff"

	"github.com/kilnproject/kiln"
)

// Bounds of what is told of one file of the definition.
const (
	maxLines = 200
	maxText  = 256 << 10 // bytes of a file that is compared line by line
)

// Of says what a diff is to look at.
type Of struct {
	Files bool // of the images, which takes a process for each that is another
}

// Diff says what differs between the bundles of two releases.
func (e *Examiner) Diff(ctx context.Context, from, to kiln.ReleaseName) (kiln.ReleaseDiff, error) {
	before, err := e.opt.Store.Bundle(ctx, from.Bundle)
	if err != nil {
		return kiln.ReleaseDiff{}, fmt.Errorf("read release %d of %s: %w", from.Release, from.Environment, err)
	}
	after, err := e.opt.Store.Bundle(ctx, to.Bundle)
	if err != nil {
		return kiln.ReleaseDiff{}, fmt.Errorf("read release %d of %s: %w", to.Release, to.Environment, err)
	}
	out := kiln.ReleaseDiff{From: from, To: to}
	if out.Definition, err = e.definition(before.Files, after.Files); err != nil {
		return out, fmt.Errorf("compare the definitions: %w", err)
	}
	out.Images, err = e.Images(ctx, before.Images, after.Images, Of{Files: true})
	return out, err
}

// Images says what differs between the images of two bundles. An image without a
// digest is not known yet, and left out.
func (e *Examiner) Images(ctx context.Context, before, after []kiln.BundleImage, of Of) ([]kiln.ImageChange, error) {
	sides := map[string][2]kiln.Digest{}
	for i, all := range [][]kiln.BundleImage{before, after} {
		for _, image := range all {
			side := sides[image.Name]
			side[i] = image.Manifest
			sides[image.Name] = side
		}
	}
	for _, image := range after {
		if image.Manifest == "" {
			delete(sides, image.Name)
		}
	}
	out := []kiln.ImageChange{}
	for _, name := range slices.Sorted(maps.Keys(sides)) {
		if sides[name][0] == sides[name][1] {
			continue
		}
		one, err := e.image(ctx, name, sides[name][0], sides[name][1], of)
		if err != nil {
			return nil, err
		}
		out = append(out, one)
	}
	return out, nil
}

func (e *Examiner) image(ctx context.Context, name string, from, to kiln.Digest, of Of) (kiln.ImageChange, error) {
	out := kiln.ImageChange{Name: name, From: from, To: to, Packages: []kiln.PackageChange{}, Introduced: []kiln.Finding{}, Fixed: []kiln.Finding{}}
	out.FromSize, out.ToSize = e.size(ctx, from), e.size(ctx, to)
	before, known := e.packages(ctx, from, &out)
	after, knownToo := e.packages(ctx, to, &out)
	if known && knownToo {
		out.Packages = comparePackages(before, after)
		if err := e.findings(ctx, before, after, &out); err != nil {
			return out, err
		}
	}
	if of.Files && from != "" && to != "" {
		entries := e.entries(ctx, name, from, to)
		out.Files = &entries
	}
	return out, ctx.Err()
}

// size is the bytes of an image's compressed layers; 0 for one that is not there.
func (e *Examiner) size(ctx context.Context, image kiln.Digest) (n int64) {
	if image == "" {
		return 0
	}
	m, err := e.opt.Store.Manifest(ctx, image)
	if err != nil {
		return 0
	}
	for _, l := range m.Layers {
		n += l.Size
	}
	return n
}

// packages are those of an image; of none there are none.
func (e *Examiner) packages(ctx context.Context, image kiln.Digest, out *kiln.ImageChange) ([]kiln.Package, bool) {
	if image == "" {
		return nil, true
	}
	inventory, err := e.opt.Proved.Inventory(ctx, image)
	if err != nil {
		note := "there is no inventory of " + image.Short()
		if !errors.Is(err, kiln.ErrNotFound) {
			note = fmt.Sprintf("the inventory of %s cannot be read: %v", image.Short(), err)
		}
		out.Notes = append(out.Notes, note)
		return nil, false
	}
	return inventory.Packages, true
}

func (e *Examiner) findings(ctx context.Context, before, after []kiln.Package, out *kiln.ImageChange) error {
	old, why, err := e.opt.Match(ctx, before)
	if err != nil {
		return fmt.Errorf("ask the advisories: %w", err)
	}
	now, whyNow, err := e.opt.Match(ctx, after)
	if err != nil {
		return fmt.Errorf("ask the advisories: %w", err)
	}
	if why = cmp.Or(whyNow, why); why != "" {
		out.Notes = append(out.Notes, "findings are not compared: "+why)
		return nil
	}
	introduced, fixed := e.opt.Change(old, now)
	out.Introduced, out.Fixed = append(out.Introduced, introduced...), append(out.Fixed, fixed...)
	return nil
}

// comparePackages lists what was added, removed and exchanged for another
// version, by name. Of several versions of one package those that both have are
// left out.
func comparePackages(before, after []kiln.Package) []kiln.PackageChange {
	old, now := versions(before), versions(after)
	keys := map[packageKey]bool{}
	for k := range old {
		keys[k] = true
	}
	for k := range now {
		keys[k] = true
	}
	out := []kiln.PackageChange{}
	for k := range keys {
		gone, come := without(old[k], now[k]), without(now[k], old[k])
		for i := range max(len(gone), len(come)) {
			c := kiln.PackageChange{Name: k.name, Ecosystem: k.ecosystem}
			if i < len(gone) {
				c.From = gone[i]
			}
			if i < len(come) {
				c.To = come[i]
			}
			out = append(out, c)
		}
	}
	slices.SortFunc(out, func(a, b kiln.PackageChange) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Ecosystem, b.Ecosystem), strings.Compare(a.From, b.From), strings.Compare(a.To, b.To))
	})
	return out
}

// packageKey is what makes two packages the same one. Another release of a
// system is the same ecosystem.
type packageKey struct{ name, ecosystem string }

// versions are those of each package, sorted.
func versions(all []kiln.Package) map[packageKey][]string {
	out := map[packageKey][]string{}
	for _, p := range all {
		ecosystem, _, _ := strings.Cut(p.Ecosystem, ":")
		k := packageKey{p.Name, ecosystem}
		if !slices.Contains(out[k], p.Version) {
			out[k] = append(out[k], p.Version)
		}
	}
	for _, v := range out {
		slices.Sort(v)
	}
	return out
}

func without(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(v string) bool { return slices.Contains(b, v) })
}

// definition compares the files of two definitions.
func (e *Examiner) definition(before, after kiln.Tree) ([]kiln.FileChange, error) {
	old, now := files(before), files(after)
	paths := slices.Sorted(maps.Keys(old))
	for p := range now {
		if _, ok := old[p]; !ok {
			paths = append(paths, p)
		}
	}
	slices.Sort(paths)
	out := []kiln.FileChange{}
	for _, p := range paths {
		was, had := old[p]
		is, has := now[p]
		c := kiln.FileChange{Path: p, Change: "changed", Lines: []string{}}
		switch {
		case had && has && was == is:
			continue
		case !had:
			c.Change = "added"
		case !has:
			c.Change = "removed"
		}
		text, textNow := "", ""
		var err error
		if had {
			if text, err = e.text(before, was); err != nil {
				return nil, err
			}
		}
		if has {
			if textNow, err = e.text(after, is); err != nil {
				return nil, err
			}
		}
		c.Lines, c.More = lines(text, textNow)
		out = append(out, c)
	}
	return out, nil
}

// files are a tree's but for its folders.
func files(t kiln.Tree) map[string]kiln.TreeEntry {
	out := map[string]kiln.TreeEntry{}
	for _, e := range t.Entries {
		if !e.Mode.IsDir() {
			out[e.Path] = e
		}
	}
	return out
}

// text is a file's content, or what is said of one that has none to show.
func (e *Examiner) text(tree kiln.Tree, entry kiln.TreeEntry) (string, error) {
	if entry.Mode.Type() == fs.ModeSymlink {
		return "symbolic link to " + entry.Link + "\n", nil
	}
	if entry.Size > maxText {
		return fmt.Sprintf("%d bytes, %s\n", entry.Size, entry.Digest), nil
	}
	f, err := e.opt.Store.TreeFS(tree).Open(entry.Path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	raw, err := io.ReadAll(io.LimitReader(f, maxText))
	if err != nil {
		return "", err
	}
	if !utf8.Valid(raw) || bytes.IndexByte(raw, 0) >= 0 {
		return fmt.Sprintf("%d bytes, %s\n", entry.Size, entry.Digest), nil
	}
	return string(raw), nil
}

// lines is a unified diff without its head, as far as it is shown, and how many
// lines more it has.
func lines(before, after string) ([]string, int) {
	text := udiff.Unified("before", "after", before, after)
	all := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	all = all[min(2, len(all)):] // "--- before" and "+++ after"
	if text == "" {
		all = []string{}
	}
	n := min(len(all), maxLines)
	return all[:n:n], len(all) - n
}

// Preview says what the images of a bundle that is not stored change, but for
// their files.
func (e *Examiner) Preview(ctx context.Context, from kiln.Digest, to []kiln.BundleImage) ([]kiln.ImageChange, error) {
	before, err := e.opt.Store.Bundle(ctx, from)
	if err != nil {
		return nil, fmt.Errorf("read the live release: %w", err)
	}
	return e.Images(ctx, before.Images, to, Of{})
}
