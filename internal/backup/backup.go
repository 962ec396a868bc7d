// Package backup writes what a control plane cannot make anew as one file, and
// makes a data directory of such a file.
//
// The file is a tar archive, compressed with zstd. Its first entry is
// manifest.json: canonical JSON with the name, the size and the SHA-256 of every
// other entry, in their order. So the digest of the manifest stands for the
// whole. Of names and contents nothing is believed that the manifest does not
// say, and of the manifest nothing that is not exactly as Write writes it.
//
// Keys are in one entry, encrypted with age to the recipients that were named;
// without any they are left out. Everything else can be read by whoever has the
// file, and written by whoever knows the format: what tells of that is a digest
// that was kept elsewhere.
//
// The package knows no ledger, store or API; who calls it hands their content in.
package backup

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"
	"time"

	"github.com/kilnproject/kiln"
)

// Format is the form of the file that this version writes. It reads no other.
const Format = 1

// The names of entries. A blob is blobPrefix and its 64 hex digits.
const (
	manifestName = "manifest.json"
	ledgerName   = "ledger.db"
	configName   = "kilnd.hcl"
	keysName     = "keys.age"
	indexName    = "store/index.json"
	blobPrefix   = "store/sha256/"
)

// Bounds of what is read. A blob may be as large as the disk has room for.
const (
	maxManifest = 64 << 20
	maxEntries  = 400_000
	maxConfig   = 4 << 20
	maxIndex    = 64 << 20
	maxKeys     = 32 << 20
)

// Manifest says what is in a backup.
type Manifest struct {
	Format  int       `json:"format"`
	Version string    `json:"version"` // of Kiln
	At      time.Time `json:"at"`
	Host    string    `json:"host"` // name of the machine
	// Tip is the end of the ledger's chain, as a verification says it.
	Tip     string  `json:"tip"`
	Entries []Entry `json:"entries"`
	// References are blobs of the store that are needed and not in the file.
	References []Blob `json:"references,omitempty"`
}

// Entry is one file of the archive.
type Entry struct {
	Name   string      `json:"name"`
	Size   int64       `json:"size"` // bytes
	Digest kiln.Digest `json:"digest"`
}

// Blob is one of the store.
type Blob struct {
	Digest kiln.Digest `json:"digest"`
	Size   int64       `json:"size"` // bytes
}

// Digest stands for all that the manifest names.
func (m Manifest) Digest() kiln.Digest { return kiln.DigestJSON(m) }

// Keys says whether keys are in the backup.
func (m Manifest) Keys() bool { return m.has(keysName) }

// Size is how many bytes the entries have together.
func (m Manifest) Size() int64 {
	var n int64
	for _, e := range m.Entries {
		n += e.Size
	}
	return n
}

// Missing is how many bytes of blobs are not in the file.
func (m Manifest) Missing() int64 {
	var n int64
	for _, b := range m.References {
		n += b.Size
	}
	return n
}

func (m Manifest) has(name string) bool {
	for _, e := range m.Entries {
		if e.Name == name {
			return true
		}
	}
	return false
}

// parseManifest reads a manifest, which must be exactly what Write makes of
// what it says.
func parseManifest(raw []byte) (Manifest, error) {
	var probe struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(raw, &probe); err != nil {
		return Manifest{}, broken("its manifest cannot be read: %w", err)
	}
	if probe.Format != Format {
		return Manifest{}, kiln.Errorf(kiln.CodeRefused, "use the version of Kiln that made it, or a newer one",
			"the backup has format %d, and this version reads format %d", probe.Format, Format)
	}
	var m Manifest
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&m); err != nil {
		return Manifest{}, broken("its manifest cannot be read: %w", err)
	}
	if canonical, err := json.Marshal(m); err != nil || !bytes.Equal(canonical, raw) {
		return Manifest{}, broken("its manifest is not canonical")
	}
	return m, m.check()
}

var hexDigest = regexp.MustCompile(`\A[0-9a-f]{64}\z`)

// check refuses a manifest of what no backup has.
func (m Manifest) check() error {
	if len(m.Entries)+len(m.References) > maxEntries {
		return broken("it names %d files, more than %d", len(m.Entries)+len(m.References), maxEntries)
	}
	seen := map[string]bool{}
	for _, e := range m.Entries {
		if seen[e.Name] {
			return broken("it names %q twice", e.Name)
		}
		seen[e.Name] = true
		if err := e.check(); err != nil {
			return err
		}
	}
	if !seen[ledgerName] || !seen[indexName] {
		return broken("it names no ledger, or no index of the store")
	}
	for _, b := range m.References {
		if err := (Entry{Name: blobPrefix + b.Digest.Hex(), Size: b.Size, Digest: b.Digest}).check(); err != nil {
			return err
		}
	}
	if m.Size() < 0 || m.Missing() < 0 {
		return broken("its sizes are too large")
	}
	return nil
}

// check refuses an entry that has no place in a data directory. It is the one
// place where a name is decided on.
func (e Entry) check() error {
	hex, blob := strings.CutPrefix(e.Name, blobPrefix)
	most := map[string]int64{ledgerName: maxSize, configName: maxConfig, keysName: maxKeys, indexName: maxIndex}[e.Name]
	if blob {
		most = maxSize
	}
	switch _, err := kiln.ParseDigest(string(e.Digest)); {
	case most == 0, blob && !hexDigest.MatchString(hex):
		return broken("it names %q, which no backup has", e.Name)
	case err != nil, blob && hex != e.Digest.Hex():
		return broken("%q has the digest %q", e.Name, e.Digest)
	case e.Size < 0 || e.Size > most:
		return broken("%q has %d bytes", e.Name, e.Size)
	}
	return nil
}

// maxSize bounds one file, so that sums of sizes cannot overflow.
const maxSize = 1 << 44

// broken is the error for a file that is not what Write wrote.
func broken(format string, args ...any) error {
	return kiln.Errorf(kiln.CodeInvalid, "copy it again from where it was made, or take another backup; nothing of this one was put in place",
		"the backup is damaged or was changed: "+format, args...)
}
