package advisory

import (
	"archive/zip"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kilnproject/kiln"
)

// day is when the tests happen.
func day() time.Time { return time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC) }

// source is a zip with records by file name.
func source(t testing.TB, ecosystem string, records map[string]string) Source {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for name, content := range records {
		w, err := z.Create(name)
		if err == nil {
			_, err = w.Write([]byte(content))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return Source{Ecosystem: ecosystem, Zip: bytes.NewReader(b.Bytes()), Size: int64(b.Len()), Dated: day()}
}

// fixture are the records of testdata.
func fixture(t testing.TB, ecosystem string) map[string]string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", "osv", ecosystem, "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatal("no fixture", ecosystem, err)
	}
	records := map[string]string{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		records[filepath.Base(f)] = string(b)
	}
	return records
}

func empty(t testing.TB) *DB {
	t.Helper()
	db, err := Open(t.TempDir(), day)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// filled is a database with the fixtures of ecosystems.
func filled(t testing.TB, ecosystems ...string) *DB {
	t.Helper()
	db := empty(t)
	var sources []Source
	for _, e := range ecosystems {
		sources = append(sources, source(t, e, fixture(t, e)))
	}
	if err := db.Import(t.Context(), sources); err != nil {
		t.Fatal(err)
	}
	return db
}

// real is a zip of real advisories, where there is one.
func real(t testing.TB, ecosystem string) Source {
	t.Helper()
	dir := os.Getenv("KILN_OSV_DATA")
	if dir == "" {
		root, err := filepath.Abs(filepath.Join("..", "..", "..", "shared", "data", "osv"))
		if err != nil {
			t.Fatal(err)
		}
		dir = root
	}
	b, err := os.ReadFile(filepath.Join(dir, ecosystem, "all.zip"))
	if errors.Is(err, os.ErrNotExist) {
		t.Skipf("no real advisories for %s: KILN_OSV_DATA names no folder that has them", ecosystem)
	}
	if err != nil {
		t.Fatal(err)
	}
	return Source{Ecosystem: ecosystem, Zip: bytes.NewReader(b), Size: int64(len(b))}
}

// line is a finding in short.
func line(f kiln.Finding) string {
	return fmt.Sprintf("%s %s %s@%s [%s] fixed %s: %s; %s", f.ID, f.Severity, f.Package, f.Version, strings.Join(f.Aliases, " "), strings.Join(f.FixedIn, " "), f.Title, f.Change)
}

func isRefused(t *testing.T, err error, words ...string) {
	t.Helper()
	var k *kiln.Error
	if !errors.As(err, &k) || k.Hint == "" {
		t.Fatalf("no error for people: %v", err)
	}
	for _, w := range words {
		if !strings.Contains(k.Message, w) {
			t.Errorf("%q does not say %q", k.Message, w)
		}
	}
}
