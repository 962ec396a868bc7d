package advisory

import (
	"archive/zip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/durable"
)

// Bounds of an ecosystem's zip.
const (
	maxZip     = 4 << 30   // bytes
	maxRecords = 2_000_000 // in it
	// maxRatio is how much a zip of records may unpack to for each of its bytes,
	// over minUnpacked.
	maxRatio    = 100
	minUnpacked = 64 << 20
)

// Source is the zip of an ecosystem: all.zip of the OSV export.
type Source struct {
	Ecosystem string
	Zip       io.ReaderAt
	Size      int64
	Dated     time.Time // when there was nothing newer; zero is now
	From      string    // for people
	ETag      string

	records int // that it must have; 0 is any
}

// Import replaces the records of the sources' ecosystems, all of them or, with
// an error, none.
func (db *DB) Import(ctx context.Context, sources []Source) error {
	db.writing.Lock()
	defer db.writing.Unlock()
	return db.importLocked(ctx, sources, nil)
}

// importLocked imports and, in the same step, dates what was found unchanged.
func (db *DB) importLocked(ctx context.Context, sources []Source, unchanged []string) error {
	if db.closed {
		return errors.New("import the advisories: the database is closed")
	}
	m := db.manifest()
	for _, name := range unchanged {
		e := m.Ecosystems[name]
		e.Dated = db.now().UTC()
		m.Ecosystems[name] = e
	}
	seen := map[string]bool{}
	for _, s := range sources {
		if err := checkEcosystem(s.Ecosystem); err != nil {
			return err
		}
		if seen[s.Ecosystem] {
			return twice(s.Ecosystem)
		}
		seen[s.Ecosystem] = true
	}
	for _, s := range sources {
		e, err := db.build(ctx, s)
		if err != nil {
			return errors.Join(err, db.sweep())
		}
		m.Ecosystems[s.Ecosystem] = e
	}
	if err := db.replace(m); err != nil {
		return errors.Join(fmt.Errorf("import the advisories: %w", err), db.sweep())
	}
	return db.sweep()
}

// manifest is a copy of the one that counts.
func (db *DB) manifest() manifest {
	db.mu.Lock()
	defer db.mu.Unlock()
	m := db.present.manifest
	m.Format = formatVersion
	m.Ecosystems = maps.Clone(m.Ecosystems)
	if m.Ecosystems == nil {
		m.Ecosystems = map[string]Ecosystem{}
	}
	return m
}

// checkEcosystem refuses what the matcher knows no versions of.
func checkEcosystem(name string) error {
	if neutral(name) != nil {
		return nil
	}
	base, _, release := strings.Cut(name, ":")
	if release && neutral(base) != nil {
		return kiln.Errorf(kiln.CodeInvalid, "name the ecosystem "+base+", which has all releases", "%q is one release of an ecosystem", name)
	}
	return kiln.Errorf(kiln.CodeInvalid, "name one of "+strings.Join(Ecosystems(), ", "), "%q is no ecosystem whose versions can be compared", name)
}

// build writes the file of a source beside what is there, under its own name.
func (db *DB) build(ctx context.Context, s Source) (Ecosystem, error) {
	entries, err := entriesOf(s)
	if err != nil {
		return Ecosystem{}, err
	}
	temporary := filepath.Join(db.dir, durable.Unfinished+fmt.Sprintf("%x", s.Ecosystem)+extension)
	if err := os.Remove(temporary); err != nil && !errors.Is(err, os.ErrNotExist) {
		return Ecosystem{}, fmt.Errorf("import %s: %w", s.Ecosystem, err)
	}
	e, err := fill(ctx, s, entries, temporary)
	if err == nil {
		err = publish(temporary, filepath.Join(db.dir, fileOf(e.Digest)))
	}
	if err != nil {
		return Ecosystem{}, err
	}
	e.Dated, e.From, e.ETag = s.Dated.UTC(), s.From, s.ETag
	if s.Dated.IsZero() {
		e.Dated = db.now().UTC()
	}
	return e, nil
}

// publish makes a finished file durable under its name.
func publish(temporary, path string) error {
	f, err := os.Open(temporary)
	if err != nil {
		return fmt.Errorf("import: %w", err)
	}
	if err := errors.Join(f.Chmod(0o400), f.Sync(), f.Close(), os.Rename(temporary, path), durable.SyncFolder(filepath.Dir(path))); err != nil {
		return fmt.Errorf("import: %w", err)
	}
	return nil
}

// fill reads all records into a new file. The digest follows from the records
// and their names, not from how the zip has them.
func fill(ctx context.Context, s Source, entries []*zip.File, path string) (Ecosystem, error) {
	b, err := newBuilder(ctx, path)
	if err != nil {
		return Ecosystem{}, fmt.Errorf("import %s: %w", s.Ecosystem, err)
	}
	e := Ecosystem{Name: s.Ecosystem, Records: len(entries)}
	sums := sha256.New()
	left := s.Size*maxRatio + minUnpacked
	about := 0                  // rows about the ecosystem
	for _, f := range entries { // by name
		content, err := unpack(f, left)
		var p parsed
		if err == nil {
			left -= int64(len(content))
			p, err = parseRecord(s.Ecosystem, content)
		}
		if err == nil && p.id+".json" != f.Name {
			err = fmt.Errorf("its id is %s", p.id)
		}
		if err != nil {
			return Ecosystem{}, errors.Join(broken(s.Ecosystem, f.Name, err), b.abandon())
		}
		if p.withdrawn {
			e.Withdrawn++
		}
		about += len(p.rows)
		if err := errors.Join(ctx.Err(), b.add(ctx, p.rows)); err != nil {
			return Ecosystem{}, errors.Join(fmt.Errorf("import %s: %w", s.Ecosystem, err), b.abandon())
		}
		_, _ = fmt.Fprintf(sums, "%s %x\n", f.Name, sha256.Sum256(content)) // a hash takes all
	}
	if about == 0 && e.Withdrawn < e.Records { // another's: with it every package would be without a finding
		return Ecosystem{}, errors.Join(refuse(s.Ecosystem, "none of the %d records is about a package of it", e.Records), b.abandon())
	}
	e.Digest = kiln.DigestOf(fmt.Appendf(nil, "osv %d %s %x", formatVersion, s.Ecosystem, sums.Sum(nil)))
	return e, b.finish(ctx, e.Digest)
}

func twice(ecosystem string) error {
	return kiln.Errorf(kiln.CodeInvalid, "name it once", "the ecosystem %s is there twice", ecosystem)
}

func broken(ecosystem, record string, err error) error {
	if k := (*kiln.Error)(nil); errors.As(err, &k) {
		return err
	}
	return kiln.Errorf(kiln.CodeInvalid, "get the database again; what was there before still counts", "the advisories for %s are refused: the record %q: %w", ecosystem, clip(record), err)
}

func refuse(ecosystem, format string, args ...any) error {
	return kiln.Errorf(kiln.CodeInvalid, "get the database again; what was there before still counts", "the advisories for %s are refused: %w", ecosystem, fmt.Errorf(format, args...))
}

// encrypted is the flag of a file of a zip whose bytes are no record without a
// password (APPNOTE.TXT, general purpose bit 0). The library does not look at it.
const encrypted = 1

var recordName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:+-]{0,127}\.json$`)

// entriesOf are the records of a zip by name, once nothing is wrong with what
// it says of them.
func entriesOf(s Source) ([]*zip.File, error) {
	if s.Size > maxZip {
		return nil, refuse(s.Ecosystem, "the zip has %d bytes, and %d are the most", s.Size, int64(maxZip))
	}
	z, err := zip.NewReader(s.Zip, s.Size)
	if err != nil && !errors.Is(err, zip.ErrInsecurePath) {
		return nil, refuse(s.Ecosystem, "they are not a zip: %w", err)
	}
	if len(z.File) == 0 || len(z.File) > maxRecords {
		return nil, refuse(s.Ecosystem, "the zip has %d records, and must have 1 to %d", len(z.File), maxRecords)
	}
	if slices.ContainsFunc(z.File, func(f *zip.File) bool { return f.Name == bundleManifest }) {
		return nil, kiln.Errorf(kiln.CodeInvalid, "kiln db import FILE --key PUBLIC_KEY takes it, with the key of who made it", "the file is a signed bundle, and not the zip of an ecosystem")
	}
	if s.records != 0 && s.records != len(z.File) {
		return nil, refuse(s.Ecosystem, "the zip has %d records, and the manifest says %d", len(z.File), s.records)
	}
	entries := slices.SortedFunc(slices.Values(z.File), func(a, b *zip.File) int { return strings.Compare(a.Name, b.Name) })
	var unpacked uint64
	for i, f := range entries {
		switch {
		case strings.Contains(f.Name, "/") || strings.Contains(f.Name, `\`) || !f.Mode().IsRegular():
			return nil, refuse(s.Ecosystem, "the zip has the path %q, and records are files without a folder", clip(f.Name))
		case !recordName.MatchString(f.Name):
			return nil, refuse(s.Ecosystem, "the zip has %q, which is not the name of a record", clip(f.Name))
		case i > 0 && entries[i-1].Name == f.Name:
			return nil, refuse(s.Ecosystem, "the zip has the record %q twice", f.Name)
		case f.Flags&encrypted != 0:
			return nil, refuse(s.Ecosystem, "the record %q is encrypted", f.Name)
		case f.UncompressedSize64 > maxRecord:
			return nil, refuse(s.Ecosystem, "the record %q has %d bytes, and %d are the most", f.Name, f.UncompressedSize64, maxRecord)
		}
		unpacked += f.UncompressedSize64
	}
	if unpacked > uint64(s.Size)*maxRatio+minUnpacked {
		return nil, refuse(s.Ecosystem, "the zip of %d bytes unpacks to %d, as no database does", s.Size, unpacked)
	}
	return entries, nil
}

// unpack reads one record. What the zip says of its size, which is bounded, is
// held to by the library, and again here.
func unpack(f *zip.File, left int64) ([]byte, error) {
	r, err := f.Open()
	if err != nil {
		return nil, err
	}
	most := min(maxRecord, left)
	content, err := io.ReadAll(io.LimitReader(r, most+1))
	if err = errors.Join(err, r.Close()); err != nil {
		return nil, err
	}
	if int64(len(content)) > most {
		return nil, fmt.Errorf("it has more than %d bytes", most)
	}
	return content, nil
}

// clip bounds a name from a zip for people.
func clip(name string) string {
	if len(name) > 200 {
		return name[:200] + "..."
	}
	return name
}
