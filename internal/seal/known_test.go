package seal

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/kilnproject/kiln"
)

func TestAKnownLayerIsHashedAgainOnceItWasTouched(t *testing.T) {
	path := filepath.Join(t.TempDir(), "layer")
	if err := os.WriteFile(path, []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	known, name := &knownLayers{}, kiln.DigestOf([]byte("one"))
	sum := func() (kiln.Digest, bool) {
		t.Helper()
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		before, _ := stateOf(f)
		remembered := known.has(name, before)
		s := known.sum(t.Context(), f, name)
		defer s.stop()
		got, err := s.wait(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return got, remembered
	}
	if got, remembered := sum(); got != name || remembered {
		t.Fatalf("first: %s, remembered %v", got, remembered)
	}
	if got, remembered := sum(); got != name || !remembered {
		t.Fatalf("second: %s, remembered %v", got, remembered)
	}

	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	// Of the same size, and with its mtime set back: only ctime tells.
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for ctime := info; ; {
		if _, err := f.WriteAt([]byte("two"), 0); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, time.Time{}, info.ModTime()); err != nil {
			t.Fatal(err)
		}
		if ctime, err = os.Stat(path); err != nil {
			t.Fatal(err)
		}
		before, _ := stateOf(f)
		if !known.has(name, before) && ctime.ModTime().Equal(info.ModTime()) {
			break // the clock of the file system has moved on
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if got, _ := sum(); got != kiln.DigestOf([]byte("two")) {
		t.Errorf("an edited layer still counts as %s", got)
	}
}
