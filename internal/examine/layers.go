package examine

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/kilnproject/kiln"
)

// maxEntries bounds the entries that are told of one image.
const maxEntries = 200

// entries compares the layers of two images, entry by entry. What cannot be
// looked at is noted.
func (e *Examiner) entries(ctx context.Context, name string, from, to kiln.Digest) kiln.ImageEntries {
	out := kiln.ImageEntries{Name: name, From: from, To: to, Entries: []kiln.EntryChange{}}
	a, b, err := e.layers(ctx, from, to)
	if err != nil {
		out.Note = "the layers cannot be compared: " + err.Error()
		return out
	}
	var notes []string
	for i := range max(len(a), len(b)) {
		before, after := layerAt(a, i), layerAt(b, i)
		if before.Digest == after.Digest {
			continue
		}
		changes := compareLayers(i+1, before.Entries, after.Entries)
		if len(changes) == 0 && before.More+after.More == 0 {
			notes = append(notes, fmt.Sprintf("layer %d is packed otherwise, and has the same entries", i+1))
		}
		if before.More+after.More > 0 {
			notes = append(notes, fmt.Sprintf("layer %d has more entries than are compared", i+1))
		}
		out.Total += len(changes)
		out.Entries = append(out.Entries, changes[:min(len(changes), maxEntries-len(out.Entries))]...)
	}
	if out.Total == 0 && len(notes) == 0 && from != to {
		notes = append(notes, "the layers are the same: the configuration differs")
	}
	out.Note = strings.Join(notes, "; ")
	return out
}

// layers lists those layers of two images that the other has not in the same
// place.
func (e *Examiner) layers(ctx context.Context, from, to kiln.Digest) (a, b []kiln.Layer, err error) {
	own, err := e.digests(ctx, from)
	if err != nil {
		return nil, nil, err
	}
	other, err := e.digests(ctx, to)
	if err != nil {
		return nil, nil, err
	}
	var same []kiln.Digest
	for i := range min(len(own), len(other)) {
		if own[i] == other[i] {
			same = append(same, own[i])
		}
	}
	if a, err = e.opt.Layers(ctx, from, same); err != nil {
		return nil, nil, err
	}
	b, err = e.opt.Layers(ctx, to, same)
	return a, b, err
}

func (e *Examiner) digests(ctx context.Context, image kiln.Digest) ([]kiln.Digest, error) {
	m, err := e.opt.Store.Manifest(ctx, image)
	if err != nil {
		return nil, err
	}
	out := make([]kiln.Digest, len(m.Layers))
	for i, l := range m.Layers {
		out[i] = kiln.Digest(l.Digest)
	}
	return out, nil
}

func layerAt(all []kiln.Layer, i int) kiln.Layer {
	if i < len(all) {
		return all[i]
	}
	return kiln.Layer{}
}

// compareLayers lists what differs, in the order of the paths. Of entries with
// the same path the last counts, as when they are unpacked.
func compareLayers(layer int, before, after []kiln.LayerEntry) []kiln.EntryChange {
	old, now := byPath(before), byPath(after)
	out := []kiln.EntryChange{}
	for p, e := range now {
		was, ok := old[p]
		if !ok {
			out = append(out, kiln.EntryChange{Layer: layer, Path: p, Change: "added"})
		} else if what := differs(was, e); what != "" {
			out = append(out, kiln.EntryChange{Layer: layer, Path: p, Change: what})
		}
	}
	for p := range old {
		if _, ok := now[p]; !ok {
			out = append(out, kiln.EntryChange{Layer: layer, Path: p, Change: "removed"})
		}
	}
	slices.SortFunc(out, func(x, y kiln.EntryChange) int { return strings.Compare(x.Path, y.Path) })
	return out
}

func byPath(entries []kiln.LayerEntry) map[string]kiln.LayerEntry {
	out := make(map[string]kiln.LayerEntry, len(entries))
	for _, e := range entries {
		out["/"+strings.Trim(strings.TrimPrefix(e.Path, "./"), "/")] = e
	}
	return out
}

// differs says what of an entry is another; "" for nothing.
func differs(a, b kiln.LayerEntry) string {
	var out []string
	add := func(different bool, format string, args ...any) {
		if different {
			out = append(out, fmt.Sprintf(format, args...))
		}
	}
	add(a.Type != b.Type, "%s to %s", a.Type, b.Type)
	add(a.Content != b.Content && a.Type == b.Type, "content")
	add(a.Size != b.Size, "size %d to %d", a.Size, b.Size)
	add(a.Mode != b.Mode, "mode %04o to %04o", a.Mode, b.Mode)
	add(a.UID != b.UID || a.GID != b.GID, "owner %d:%d to %d:%d", a.UID, a.GID, b.UID, b.GID)
	add(a.Link != b.Link, "target %q to %q", a.Link, b.Link)
	add(!a.ModTime.Equal(b.ModTime), "time %s to %s", a.ModTime.UTC().Format("2006-01-02T15:04:05Z"), b.ModTime.UTC().Format("2006-01-02T15:04:05Z"))
	return strings.Join(out, ", ")
}
