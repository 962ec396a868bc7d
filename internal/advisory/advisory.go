// Package advisory knows which versions of which packages have known
// vulnerabilities: the OSV database, kept on disk for use without a network.
//
// A database is a folder with one file for each ecosystem, named by what is in
// it, and current.json, which says which of them count. Records come from zips
// of the OSV export (https://google.github.io/osv.dev/data/), by file, from a
// server, or in a signed bundle. Every record is read when it is imported: where
// one is broken, the import is refused as a whole, and the old database stays.
// A record is indexed by the packages that it names, and a match reads no other.
//
// Versions are compared by scalibr's matcher, never here.
package advisory

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/durable"
)

// formatVersion is that of the files. Files of another one are not read.
const formatVersion = 1

const manifestName = "current.json"

// Ecosystem is what is known of one ecosystem.
type Ecosystem struct {
	Name      string      `json:"name"` // "Debian", "Go"
	Digest    kiln.Digest `json:"digest"`
	Records   int         `json:"records"`
	Withdrawn int         `json:"withdrawn"` // of them
	// Dated is when the source had nothing newer.
	Dated time.Time `json:"dated"`
	From  string    `json:"from,omitempty"` // an URL, or "bundle"
	ETag  string    `json:"etag,omitempty"` // of the server's file
}

// Status is what a database is at one moment.
type Status struct {
	// Digest follows from the records alone; "" where there are none.
	Digest     kiln.Digest `json:"digest"`
	Version    int         `json:"version"`        // of the folder: how often it was replaced
	Dated      time.Time   `json:"dated,omitzero"` // the oldest of the ecosystems'
	Ecosystems []Ecosystem `json:"ecosystems"`     // by name
}

// Age is how old the oldest part is.
func (s Status) Age(now time.Time) time.Duration { return now.Sub(s.Dated) }

// manifest is current.json.
type manifest struct {
	Format     int                  `json:"format"`
	Version    int                  `json:"version"`
	Ecosystems map[string]Ecosystem `json:"ecosystems"`
}

// status describes a manifest. The digest names the ecosystems and theirs.
func (m manifest) status() Status {
	s := Status{Version: m.Version, Ecosystems: []Ecosystem{}}
	digests := map[string]kiln.Digest{}
	for _, name := range slices.Sorted(maps.Keys(m.Ecosystems)) {
		e := m.Ecosystems[name]
		digests[name] = e.Digest
		s.Ecosystems = append(s.Ecosystems, e)
		if s.Dated.IsZero() || e.Dated.Before(s.Dated) {
			s.Dated = e.Dated
		}
	}
	if len(digests) > 0 {
		s.Digest = kiln.DigestJSON(digests)
	}
	return s
}

// DB is a database in a folder that no other process writes to. Many may match
// while it is replaced; who began before is answered by the old one.
type DB struct {
	dir string
	now func() time.Time

	writing sync.Mutex // one import at a time
	closed  bool       // under writing

	mu      sync.Mutex
	present *snapshot   // an empty one once closed
	old     []*snapshot // that are still read
}

// Open opens the database in a folder, which it makes if need be, and removes
// what imports that did not end have left there. now is for what is dated. An
// unreadable database is an error with CodeFailed; a new one is empty.
func Open(dir string, now func() time.Time) (*DB, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open the advisories: %w", err)
	}
	m, err := readManifest(filepath.Join(dir, manifestName))
	if err != nil {
		return nil, err
	}
	s, err := openSnapshot(dir, m, nil)
	if err != nil {
		return nil, err
	}
	db := &DB{dir: dir, now: now, present: s}
	if err := db.sweep(); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

func readManifest(path string) (manifest, error) {
	m := manifest{Format: formatVersion, Ecosystems: map[string]Ecosystem{}}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &m)
	}
	if err == nil && m.Format != formatVersion {
		err = fmt.Errorf("it has the format %d, not %d", m.Format, formatVersion)
	}
	for name, e := range m.Ecosystems {
		if _, derr := kiln.ParseDigest(string(e.Digest)); derr != nil || e.Name != name {
			err = errors.Join(err, fmt.Errorf("its entry %q is not sound", name))
		}
	}
	if err != nil {
		return m, unreadable(path, err)
	}
	return m, nil
}

// unreadable is the error of a database that cannot be used.
func unreadable(path string, err error) error {
	return kiln.Errorf(kiln.CodeFailed, "move the folder "+filepath.Dir(path)+" away, then kiln db update or kiln db import", "the advisory database %s cannot be read: %w", path, err)
}

// sweep removes the files that are not used.
func (db *DB) sweep() error {
	keep := []string{manifestName}
	db.mu.Lock()
	for _, s := range slices.Concat(db.old, []*snapshot{db.present}) {
		for _, e := range s.manifest.Ecosystems {
			keep = append(keep, fileOf(e.Digest))
		}
	}
	db.mu.Unlock()
	entries, err := os.ReadDir(db.dir)
	for _, e := range entries {
		ours := strings.HasPrefix(e.Name(), durable.Unfinished) || filepath.Ext(e.Name()) == extension
		if ours && !slices.Contains(keep, e.Name()) {
			err = errors.Join(err, os.Remove(filepath.Join(db.dir, e.Name())))
		}
	}
	if err != nil {
		return fmt.Errorf("clean the advisories: %w", err)
	}
	return nil
}

// Status says what the database has.
func (db *DB) Status() Status {
	s := db.acquire()
	defer db.release(s)
	return s.manifest.status()
}

// Close closes the database. Matches that run end as they would have.
func (db *DB) Close() error {
	db.writing.Lock()
	defer db.writing.Unlock()
	db.closed = true
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.swap(&snapshot{tables: map[string]*table{}})
}

// replace makes a manifest the one that counts: files first, then their names.
// What ran on the old one goes on with it.
func (db *DB) replace(m manifest) error {
	m.Version++
	db.mu.Lock()
	old := db.present
	db.mu.Unlock()
	next, err := openSnapshot(db.dir, m, old)
	if err != nil {
		return err
	}
	b, err := json.MarshalIndent(m, "", "  ")
	if err == nil {
		err = durable.Write(filepath.Join(db.dir, manifestName), b, 0o600)
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	if err != nil {
		return errors.Join(err, next.retire())
	}
	return db.swap(next)
}

// swap makes a snapshot the present one. It is for who holds the lock.
func (db *DB) swap(next *snapshot) error {
	old := db.present
	db.present = next
	if old.users > 0 {
		db.old = append(db.old, old)
	}
	return old.retire()
}

// acquire takes the present database for reading, until release.
func (db *DB) acquire() *snapshot {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.present.users++
	return db.present
}

func (db *DB) release(s *snapshot) {
	db.mu.Lock()
	defer db.mu.Unlock()
	s.users--
	_ = s.closeUnused() // it was only read
	db.old = slices.DeleteFunc(db.old, func(one *snapshot) bool { return one.users == 0 })
}

// snapshot is a database as it was at one moment. How many read it is under the
// DB's lock.
type snapshot struct {
	manifest manifest
	tables   map[string]*table // by ecosystem
	users    int               // that read
	retired  bool
}

// openSnapshot opens the files of a manifest, but for those that another
// snapshot has open.
func openSnapshot(dir string, m manifest, shared *snapshot) (*snapshot, error) {
	s := &snapshot{manifest: m, tables: map[string]*table{}}
	for name, e := range m.Ecosystems {
		var t *table
		if shared != nil {
			t = shared.tables[name]
		}
		if t == nil || t.digest != e.Digest {
			var err error
			if t, err = openTable(filepath.Join(dir, fileOf(e.Digest)), e.Digest); err != nil {
				return nil, errors.Join(err, s.retire())
			}
		}
		t.snapshots.Add(1)
		s.tables[name] = t
	}
	return s, nil
}

// retire closes the files once nobody reads them any more.
func (s *snapshot) retire() error {
	s.retired = true
	return s.closeUnused()
}

func (s *snapshot) closeUnused() error {
	if !s.retired || s.users > 0 {
		return nil
	}
	var errs []error
	for _, t := range s.tables {
		if t.snapshots.Add(-1) == 0 {
			errs = append(errs, t.db.Close())
		}
	}
	clear(s.tables)
	return errors.Join(errs...)
}
