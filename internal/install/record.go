package install

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/kilnproject/kiln"
)

// Record is what an installation made, in the order of its making.
type Record struct {
	Version int     `json:"version"` // of this form
	Kiln    string  `json:"kiln"`
	Prefix  string  `json:"prefix"`
	Data    string  `json:"data"`
	Items   []Entry `json:"items"`
}

// recordVersion is the form that this program writes.
const recordVersion = 1

// Entry is one item of a record.
type Entry struct {
	Kind Kind   `json:"kind"`
	Name string `json:"name"`
	// Digests are of a file as it was written. While it is being replaced it
	// has two.
	Digests []kiln.Digest `json:"digests,omitempty"`
	Target  string        `json:"target,omitempty"` // of a link
}

func (r *Record) find(kind Kind, name string) *Entry {
	for i, e := range r.Items {
		if e.Kind == kind && e.Name == name {
			return &r.Items[i]
		}
	}
	return nil
}

// add adds an entry, or what an entry of its name lacks.
func (r *Record) add(e Entry) {
	have := r.find(e.Kind, e.Name)
	if have == nil {
		r.Items = append(r.Items, e)
		return
	}
	have.Target = e.Target
	for _, d := range e.Digests {
		if !slices.Contains(have.Digests, d) {
			have.Digests = append(have.Digests, d)
		}
	}
}

// clone is a copy that shares nothing.
func (r *Record) clone() Record {
	out := *r
	out.Items = slices.Clone(r.Items)
	for i, e := range out.Items {
		out.Items[i].Digests = slices.Clone(e.Digests)
	}
	return out
}

// Read returns what is installed below a root ("" for this machine), nil when
// `kiln install` installed nothing there.
func Read(root string) (*Record, error) {
	h, err := openHost(root, nil)
	if err != nil {
		return nil, err
	}
	defer h.close()
	return h.record()
}

func (h *host) record() (*Record, error) {
	b, err := h.root.ReadFile(h.at(RecordFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read what is installed: %w", err)
	}
	var r Record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, kiln.Errorf(kiln.CodeFailed, "", "%s does not say what is installed: %w", RecordFile, err)
	}
	if r.Version != recordVersion {
		return nil, kiln.Errorf(kiln.CodeRefused, "use the kiln that installed it, version "+r.Kiln,
			"%s is of form %d, and this program knows form %d", RecordFile, r.Version, recordVersion)
	}
	for _, e := range r.Items {
		if (e.Kind == KindFile || e.Kind == KindFolder || e.Kind == KindLink) && !strings.HasPrefix(e.Name, "/") {
			return nil, kiln.Errorf(kiln.CodeFailed, "", "%s names %q, which is no absolute path", RecordFile, e.Name)
		}
	}
	return &r, nil
}

func (h *host) writeRecord(r Record) error {
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	return h.write(Item{Kind: KindFile, Name: RecordFile, Mode: 0o644, Text: append(b, '\n')})
}
