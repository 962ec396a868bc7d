package advisory

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	osv "github.com/ossf/osv-schema/bindings/go/osvschema"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/durable"
)

func TestImportIsKept(t *testing.T) {
	dir := t.TempDir()
	db, err := Open(dir, day)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Import(t.Context(), []Source{source(t, "Go", fixture(t, "Go")), source(t, "PyPI", fixture(t, "PyPI"))}); err != nil {
		t.Fatal(err)
	}
	before := db.Status()
	if len(before.Ecosystems) != 2 || before.Ecosystems[0].Records != 7 || before.Ecosystems[0].Withdrawn != 1 || before.Version != 1 || before.Age(day()) != 0 {
		t.Errorf("%+v", before)
	}
	if err := errors.Join(db.Close(), os.WriteFile(filepath.Join(dir, durable.Unfinished+"x"+extension), nil, 0o600), os.WriteFile(filepath.Join(dir, "old"+extension), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if db.Import(t.Context(), nil) == nil {
		t.Error("a closed database takes records")
	}
	db, err = Open(dir, day)
	if err != nil {
		t.Fatal(err)
	}
	if after := db.Status(); after.Digest != before.Digest || !slices.Equal(after.Ecosystems, before.Ecosystems) {
		t.Errorf("%+v", after)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 3 {
		t.Errorf("something is left: %v %v", entries, err)
	}
	if err := db.Close(); err != nil {
		t.Error(err)
	}
}

// TestTheDigestFollowsFromTheRecords and from nothing else.
func TestTheDigestFollowsFromTheRecords(t *testing.T) {
	records := fixture(t, "Go")
	digest := func(s ...Source) kiln.Digest {
		db := empty(t)
		if err := db.Import(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		return db.Status().Digest
	}
	one := digest(source(t, "Go", records))
	for range 3 { // maps, and so the zips, are in any order
		if digest(source(t, "Go", records)) != one {
			t.Error("the same records have another digest")
		}
	}
	changed := maps.Clone(records)
	changed["GO-2099-0001.json"] = strings.Replace(changed["GO-2099-0001.json"], "1.2.3", "1.2.4", 1)
	if digest(source(t, "Go", changed)) == one {
		t.Error("other records have the same digest")
	}
	if digest(source(t, "Go", records), source(t, "PyPI", fixture(t, "PyPI"))) == one {
		t.Error("more ecosystems have the same digest")
	}
}

const sound = `{"id":"X-1","affected":[{"package":{"ecosystem":"Go","name":"a"},"ranges":[{"type":"SEMVER","events":[{"introduced":"0"}]}]}]}`

func TestABrokenRecordRefusesAll(t *testing.T) {
	db := filled(t, "Go", "PyPI")
	before := db.Status()
	for name, c := range map[string]struct{ record, says string }{
		"no JSON":              {`{"id":"X-1"`, "OSV format"},
		"another type":         {strings.Replace(sound, `"X-1"`, `7`, 1), "OSV format"},
		"no id":                {strings.Replace(sound, `"X-1"`, `""`, 1), "no id"},
		"an id with a line":    {strings.Replace(sound, `"X-1"`, `"X-1\n"`, 1), "no id"},
		"another id":           {strings.Replace(sound, `"X-1"`, `"X-2"`, 1), "its id is X-2"},
		"nothing affected":     {`{"id":"X-1"}`, "nothing that is affected"},
		"no package":           {strings.Replace(sound, `"name":"a"`, `"name":""`, 1), "without a name"},
		"no ecosystem":         {strings.Replace(sound, `"ecosystem":"Go",`, ``, 1), "without a name or an ecosystem"},
		"a control sign":       {strings.Replace(sound, `"introduced":"0"`, `"introduced":"\u001b[2J"`, 1), "not text"},
		"a strange withdrawal": {strings.Replace(sound, `{"id"`, `{"withdrawn":7,"id"`, 1), "withdrawn"},
		"a long version":       {strings.Replace(sound, `"introduced":"0"`, `"introduced":"`+strings.Repeat("9", maxText+1)+`"`, 1), "too long"},
		"a deep one":           {`{"id":"X-1","database_specific":` + strings.Repeat(`{"a":`, 1000) + `1` + strings.Repeat(`}`, 1000) + `,` + sound[12:], "OSV format"},
		"100 MB":               {sound + strings.Repeat(" ", 100<<20), "104857"},
	} {
		records := fixture(t, "Go")
		records["X-1.json"] = c.record
		err := db.Import(t.Context(), []Source{source(t, "PyPI", fixture(t, "PyPI")), source(t, "Go", records)})
		t.Run(name, func(t *testing.T) { isRefused(t, err, c.says, "X-1.json", "Go") })
	}
	after := db.Status()
	entries, err := os.ReadDir(db.dir)
	if after.Version != before.Version || after.Digest != before.Digest || err != nil || len(entries) != 3 {
		t.Errorf("something was imported: %+v %v %v", after, entries, err)
	}
}

// TestARecordOfManyPackages costs what it is long, and is bounded.
func TestARecordOfManyPackages(t *testing.T) {
	naming := func(packages, aliases int) []byte {
		b := []byte(`{"id":"X-1","aliases":["a"`)
		for range aliases {
			b = append(b, `,"`+strings.Repeat("a", 100)+`"`...)
		}
		b = append(b, `],"affected":[`...)
		for i := range packages {
			b = fmt.Appendf(b, `{"package":{"ecosystem":"Go","name":"p%d"},"versions":["1"]},`, i)
		}
		return append(b, sound[len(`{"id":"X-1","affected":[`):]...)
	}
	if p, err := parseRecord("Go", naming(maxRows-1, 3)); err != nil || len(p.rows) != maxRows {
		t.Errorf("%d rows, %v", len(p.rows), err)
	}
	for says, content := range map[string][]byte{"more than 50000 packages": naming(maxRows, 0), "aliases": naming(maxRows/5, maxIDs)} {
		if _, err := parseRecord("Go", content); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
		}
	}
}

func TestAHostileZipIsRefused(t *testing.T) {
	db := filled(t, "Go")
	before := db.Status()
	zeros := strings.Repeat(" ", 10<<20)
	bomb := map[string]string{}
	for _, n := range []string{"1", "2", "3", "4", "5", "6", "7", "8"} {
		bomb["X-"+n+".json"] = zeros
	}
	for name, c := range map[string]struct {
		source Source
		says   string
	}{
		"a path that climbs":    {source(t, "Go", map[string]string{"../X-1.json": sound}), "path"},
		"an absolute path":      {source(t, "Go", map[string]string{"/X-1.json": sound}), "path"},
		"a folder":              {source(t, "Go", map[string]string{"a/X-1.json": sound}), "path"},
		"a path of others":      {source(t, "Go", map[string]string{`..\X-1.json`: sound}), "path"},
		"not a record":          {source(t, "Go", map[string]string{"README": "x"}), "not the name of a record"},
		"none":                  {source(t, "Go", nil), "0 records"},
		"a bomb":                {source(t, "Go", bomb), "as no database does"},
		"no zip":                {Source{Ecosystem: "Go", Zip: strings.NewReader("PK"), Size: 2}, "not a zip"},
		"too large":             {Source{Ecosystem: "Go", Zip: strings.NewReader(""), Size: maxZip + 1}, "are the most"},
		"cut":                   {cut(source(t, "Go", fixture(t, "Go"))), "not a zip"},
		"an unknown ecosystem":  {source(t, "Nobody's", map[string]string{"X-1.json": sound}), "no ecosystem"},
		"a release":             {source(t, "Debian:12", map[string]string{"X-1.json": sound}), "one release"},
		"one that lies of size": {lying(t), "X-1.json"},
		"an encrypted one":      {locked(t), "encrypted"},
		"a bundle":              {source(t, "Go", map[string]string{"1.zip": "PK", bundleManifest: "{}", bundleSignature: "x"}), "signed bundle"},
		"a record twice":        {repeated(t), "twice"},
	} {
		t.Run(name, func(t *testing.T) { isRefused(t, db.Import(t.Context(), []Source{c.source}), c.says) })
	}
	isRefused(t, db.Import(t.Context(), []Source{source(t, "Go", fixture(t, "Go")), source(t, "Go", fixture(t, "Go"))}), "twice")
	if after := db.Status(); after.Version != before.Version {
		t.Errorf("something was imported: %+v", after)
	}
}

func cut(s Source) Source {
	s.Size -= 30
	return s
}

// lying is a zip whose only record is larger than the zip says.
func lying(t *testing.T) Source {
	t.Helper()
	s := source(t, "Go", map[string]string{"X-1.json": sound + strings.Repeat(" ", 20<<20)})
	b := make([]byte, s.Size)
	if _, err := s.Zip.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	directory := bytes.Index(b, []byte("PK\x01\x02"))
	binary.LittleEndian.PutUint32(b[directory+24:], uint32(len(sound)))
	s.Zip = bytes.NewReader(b)
	return s
}

// locked is a zip whose record says that it is encrypted.
func locked(t *testing.T) Source {
	t.Helper()
	s := source(t, "Go", map[string]string{"X-1.json": sound})
	b := make([]byte, s.Size)
	if _, err := s.Zip.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	b[bytes.Index(b, []byte("PK\x01\x02"))+8] |= encrypted
	s.Zip = bytes.NewReader(b)
	return s
}

func repeated(t *testing.T) Source {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for range 2 {
		w, err := z.Create("X-1.json")
		if err == nil {
			_, err = w.Write([]byte(sound))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return Source{Ecosystem: "Go", Zip: bytes.NewReader(b.Bytes()), Size: int64(b.Len())}
}

func TestACalledOffImportLeavesNothing(t *testing.T) {
	db := filled(t, "Go")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := db.Import(ctx, []Source{source(t, "PyPI", fixture(t, "PyPI"))}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if entries, err := os.ReadDir(db.dir); err != nil || len(entries) != 2 {
		t.Errorf("%v %v", entries, err)
	}
}

func TestAnUnreadableDatabaseIsSaid(t *testing.T) {
	for name, damage := range map[string]func(path string, b []byte) error{
		"gone":    func(path string, _ []byte) error { return os.Remove(path) },
		"not one": func(path string, _ []byte) error { return os.WriteFile(path, []byte("x"), 0o600) },
		"a record": func(path string, b []byte) error {
			return os.WriteFile(path, bytes.ReplaceAll(b, []byte("read twice"), []byte("read thrice")[:10]), 0o600)
		},
		"a name": func(path string, _ []byte) error {
			return os.WriteFile(filepath.Join(filepath.Dir(path), manifestName), []byte(`{"format":1,"ecosystems":{"Go":{"name":"Go","digest":"../x"}}}`), 0o600)
		},
		"a format": func(path string, _ []byte) error {
			return os.WriteFile(filepath.Join(filepath.Dir(path), manifestName), []byte(`{"format":2}`), 0o600)
		},
		"no record": func(path string, _ []byte) error {
			return os.WriteFile(filepath.Join(filepath.Dir(path), manifestName), []byte(`x`), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			db := filled(t, "Go")
			path := filepath.Join(db.dir, fileOf(db.Status().Ecosystems[0].Digest))
			b, err := os.ReadFile(path)
			if err = errors.Join(err, db.Close(), os.Chmod(path, 0o600)); err != nil {
				t.Fatal(err)
			}
			if err := damage(path, b); err != nil {
				t.Fatal(err)
			}
			again, err := Open(db.dir, day)
			if err == nil {
				_, err = again.Match(t.Context(), []kiln.Package{goPackage("example.com/Mixed/net", "v1.0.0")})
				if cerr := again.Close(); cerr != nil {
					t.Error(cerr)
				}
			}
			if k := (*kiln.Error)(nil); !errors.As(err, &k) || k.Code != kiln.CodeFailed || !strings.Contains(k.Hint, "kiln db update") {
				t.Error(err)
			}
		})
	}
}

func FuzzRecord(f *testing.F) {
	for _, ecosystem := range []string{"Go", "PyPI", "Debian", "Alpine"} {
		for _, record := range fixture(f, ecosystem) {
			f.Add(ecosystem, []byte(record))
		}
	}
	f.Fuzz(func(t *testing.T, ecosystem string, content []byte) {
		p, err := parseRecord(ecosystem, content)
		if err != nil {
			return
		}
		if !isID(p.id) {
			t.Errorf("the id %q", p.id)
		}
		kind := neutral(ecosystem)
		for _, r := range p.rows {
			if r.name == "" || r.record.GetId() != p.id || strings.ContainsFunc(r.record.GetSummary(), func(c rune) bool { return c < ' ' }) {
				t.Errorf("%+v", r)
			}
			if kind == nil {
				continue
			}
			kind.Version = "1.2.3"
			for _, v := range merge(affecting(one(r), kind), one(r)) {
				v.finding(ecosystem, *kind, kiln.Package{Name: r.name, Version: "1.2.3"})
			}
		}
	})
}

func one(r row) []*osv.Vulnerability { return []*osv.Vulnerability{r.record} }
