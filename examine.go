package kiln

import (
	"io/fs"
	"time"
)

// CheckKind is what of a release is checked.
type CheckKind string

// The kinds of checks.
const (
	CheckSignature  CheckKind = "signature"
	CheckProvenance CheckKind = "provenance"
	CheckVerdict    CheckKind = "verdict"
	CheckInventory  CheckKind = "inventory" // the SBOM
	CheckContent    CheckKind = "content"   // that bundle and image are there whole
	CheckSealed     CheckKind = "sealed"    // the sealed file that instances run from
	CheckRebuild    CheckKind = "rebuild"   // baked again from nothing
)

// Check is one thing that holds of a release or does not. With OutcomeUnknown
// there was nothing to check, which is no failure.
type Check struct {
	Subject string    `json:"subject"` // "bundle", an image's name, or "service NAME"
	Digest  Digest    `json:"digest"`  // of its manifest
	Kind    CheckKind `json:"kind"`
	Outcome Outcome   `json:"outcome"`
	Detail  string    `json:"detail"`         // one sentence without its stop
	Hint    string    `json:"hint,omitempty"` // what to do where it fails
}

// ReleaseProof is what holds of a release.
type ReleaseProof struct {
	Environment string  `json:"environment"`
	Release     int     `json:"release"`
	Bundle      Digest  `json:"bundle"`
	Holds       bool    `json:"holds"` // no check failed
	Checks      []Check `json:"checks"`
	// Rebuilt are the images that came out otherwise when they were baked again.
	Rebuilt []ImageEntries `json:"rebuilt,omitempty"`
}

// ImageEntries is what differs between the layers of two images.
type ImageEntries struct {
	Name  string `json:"name"`
	From  Digest `json:"from"`
	To    Digest `json:"to"`
	Total int    `json:"total"`
	// Entries are the first of them.
	Entries []EntryChange `json:"entries"`
	Note    string        `json:"note,omitempty"` // what could not be told
}

// EntryChange is an entry of a layer that is another, or not there on one side.
type EntryChange struct {
	Layer int    `json:"layer"` // from 1, the lowest
	Path  string `json:"path"`
	// Change is "added", "removed", or what differs: "content, mode 0644 to 0755".
	Change string `json:"change"`
}

// Layer is what the tar of a layer has.
type Layer struct {
	Digest  Digest       `json:"digest"`
	Entries []LayerEntry `json:"entries"`        // in the tar's order
	More    int          `json:"more,omitempty"` // entries that are left out
}

// LayerEntry is one entry of a tar.
type LayerEntry struct {
	Path    string      `json:"path"` // as the tar has it
	Type    string      `json:"type"` // "file", "folder", "link", "hard link", "device", "pipe"
	Mode    fs.FileMode `json:"mode"` // the twelve bits of a mode
	UID     int         `json:"uid"`
	GID     int         `json:"gid"`
	Size    int64       `json:"size"`
	ModTime time.Time   `json:"mod_time"`
	Link    string      `json:"link,omitempty"`
	Content Digest      `json:"content,omitempty"` // of a file
}

// ReleaseName names a release, or what would become one (number 0).
type ReleaseName struct {
	Environment string `json:"environment"`
	Release     int    `json:"release"`
	Bundle      Digest `json:"bundle,omitempty"`
}

// ReleaseDiff is what differs between two releases.
type ReleaseDiff struct {
	From       ReleaseName  `json:"from"`
	To         ReleaseName  `json:"to"`
	Definition []FileChange `json:"definition"`
	// Images are those of which something differs, by name.
	Images []ImageChange `json:"images"`
}

// Same says that nothing differs.
func (d ReleaseDiff) Same() bool { return len(d.Definition)+len(d.Images) == 0 }

// FileChange is a file of the definition that is another.
type FileChange struct {
	Path   string   `json:"path"`
	Change string   `json:"change"` // "added", "removed", "changed"
	Lines  []string `json:"lines"`  // a unified diff without its head, the first lines of it
	More   int      `json:"more,omitempty"`
}

// ImageChange is an image that is another. From is empty for a new one, To for
// one that is gone.
type ImageChange struct {
	Name     string          `json:"name"`
	From     Digest          `json:"from,omitempty"`
	To       Digest          `json:"to,omitempty"`
	FromSize int64           `json:"from_size"` // bytes of its compressed layers
	ToSize   int64           `json:"to_size"`
	Packages []PackageChange `json:"packages"`
	// Introduced and Fixed are the findings of today's database that one has and
	// the other has not, whatever gates say of them.
	Introduced []Finding     `json:"introduced"`
	Fixed      []Finding     `json:"fixed"`
	Files      *ImageEntries `json:"files,omitempty"`
	Notes      []string      `json:"notes,omitempty"` // what could not be told
}

// PackageChange is a package that is there in another version. From is empty
// for one that was added, To for one that is gone.
type PackageChange struct {
	Name      string `json:"name"`
	Ecosystem string `json:"ecosystem,omitempty"`
	From      string `json:"from,omitempty"`
	To        string `json:"to,omitempty"`
}
