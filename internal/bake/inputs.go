package bake

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/kilnproject/kiln"
)

// inputs is everything that decides an image's bytes. Its digest is the key
// that says whether it was baked before.
type inputs struct {
	Format int   `json:"format"`
	Epoch  int64 `json:"epoch"`
	// Image is the definition without what does not matter: its own name, its
	// gate, and names that Bases resolves.
	Image      kiln.Image             `json:"image"`
	Dockerfile kiln.Digest            `json:"dockerfile,omitempty"`
	Context    []kiln.TreeEntry       `json:"context,omitempty"`
	Bases      map[string]kiln.Digest `json:"bases,omitempty"` // by the name that FROM uses
	Packages   []kiln.LockedPackage   `json:"packages,omitempty"`

	urls map[kiln.Digest]string // of the packages: no part of the inputs
}

func (in inputs) digest() kiln.Digest { return kiln.DigestJSON(in) }

// dockerfileInputs gathers what a Dockerfile image is made from.
func dockerfileInputs(image kiln.Image, r *recipe, f *folder, bases map[string]kiln.Digest) (inputs, error) {
	d := *image.Dockerfile
	entries, err := f.visible(path.Clean(d.File))
	if err != nil {
		return inputs{}, err
	}
	d.Context, d.Contexts = "", nil
	image.Name, image.Gate, image.Dockerfile = "", kiln.Gate{}, &d
	return inputs{
		Format:     format,
		Epoch:      Epoch,
		Image:      image,
		Dockerfile: kiln.DigestOf(r.source),
		Context:    entries,
		Bases:      bases,
	}, nil
}

// debianInputs gathers what a Debian image is made from. Where the packages
// came from does not matter, their content does.
func debianInputs(image kiln.Image, packages []kiln.LockedPackage) inputs {
	d := *image.Debian
	d.Mirror = ""
	image.Name, image.Gate, image.Debian = "", kiln.Gate{}, &d
	return inputs{Format: format, Epoch: Epoch, Image: image, Packages: contents(packages), urls: urlsOf(packages)}
}

func contents(packages []kiln.LockedPackage) []kiln.LockedPackage {
	out := slices.Clone(packages)
	for i := range out {
		out[i].URL = ""
	}
	return out
}

// changed says in a sentence what differs between an image's last inputs and
// these. The context is where its files are in the tree.
func changed(image kiln.Image, before, after inputs) string {
	switch {
	case before.Format != after.Format || before.Epoch != after.Epoch:
		return "Kiln bakes differently since its last bake"
	case before.Dockerfile != after.Dockerfile:
		return path.Join(image.Dockerfile.Context, image.Dockerfile.File) + " changed"
	}
	if s := changedFiles(image, before.Context, after.Context); s != "" {
		return s
	}
	if s := changedBases(image, before.Bases, after.Bases); s != "" {
		return s
	}
	if s := changedArgs(before.Image.Dockerfile, after.Image.Dockerfile); s != "" {
		return s
	}
	if s := changedPackages(before.Packages, after.Packages); s != "" {
		return s
	}
	if before.digest() == after.digest() {
		return "the store has lost it"
	}
	return "its definition changed"
}

func changedFiles(image kiln.Image, before, after []kiln.TreeEntry) string {
	old := make(map[string]kiln.TreeEntry, len(before))
	for _, e := range before {
		old[e.Path] = e
	}
	var names []string
	verb := "changed"
	note := func(name, what string) {
		if len(names) == 0 {
			verb = what
		} else if verb != what {
			verb = "changed"
		}
		names = append(names, name)
	}
	for _, e := range after {
		was, ok := old[e.Path]
		delete(old, e.Path)
		if !ok {
			note(e.Path, "is new")
		} else if was != e {
			note(e.Path, "changed")
		}
	}
	for _, name := range slices.SortedFunc(maps.Keys(old), comparePaths) {
		note(name, "is gone")
	}
	if len(names) == 0 {
		return ""
	}
	first := path.Join(image.Dockerfile.Context, names[0])
	switch {
	case len(names) == 1:
		return first + " " + verb
	case len(names) == 2:
		return fmt.Sprintf("%s and one other file changed", first)
	default:
		return fmt.Sprintf("%s and %d other files changed", first, len(names)-1)
	}
}

func changedBases(image kiln.Image, before, after map[string]kiln.Digest) string {
	for _, name := range slices.Sorted(maps.Keys(after)) {
		if before[name] == after[name] {
			continue
		}
		if from, ok := image.Dockerfile.Contexts[name]; ok {
			return "base image." + from + " changed"
		}
		return "base " + name + " changed"
	}
	return ""
}

func changedArgs(before, after *kiln.Dockerfile) string {
	if before == nil || after == nil {
		return ""
	}
	if before.Target != after.Target {
		return "its target changed"
	}
	all := maps.Clone(before.Args)
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, after.Args)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		was, had := before.Args[name]
		if is, has := after.Args[name]; was != is || had != has {
			return "argument " + name + " changed"
		}
	}
	return ""
}

func changedPackages(before, after []kiln.LockedPackage) string {
	old := map[string]kiln.LockedPackage{}
	for _, p := range before {
		old[p.Name+":"+p.Architecture] = p
	}
	var names []string
	for _, p := range after {
		key := p.Name + ":" + p.Architecture
		if old[key].Digest != p.Digest {
			names = append(names, p.Name)
		}
		delete(old, key)
	}
	for _, p := range old {
		names = append(names, p.Name)
	}
	slices.Sort(names)
	switch {
	case len(names) == 0:
		return ""
	case len(names) <= 3:
		return "packages changed: " + strings.Join(names, ", ")
	default:
		return fmt.Sprintf("packages changed: %s and %d more", strings.Join(names[:2], ", "), len(names)-2)
	}
}
