package backup

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/ledger"
	"github.com/kilnproject/kiln/internal/store"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// origin is a data directory that is backed up.
type origin struct {
	dir    string
	ledger *ledger.Ledger
	store  *store.Store
	file   kiln.Digest // a blob that is no bundle's
	who    *age.X25519Identity
}

func newOrigin(t *testing.T) *origin {
	t.Helper()
	o := &origin{dir: t.TempDir()}
	var err error
	o.ledger, err = ledger.Open(t.Context(), filepath.Join(o.dir, "ledger", "ledger.db"))
	check(t, err)
	t.Cleanup(func() { _ = o.ledger.Close() })
	o.store, err = store.Open(filepath.Join(o.dir, "store"))
	check(t, err)
	o.file, _, err = o.store.Put(t.Context(), strings.NewReader(strings.Repeat("service\n", 4_000)), "")
	check(t, err)
	bundle, err := o.store.PutBundle(t.Context(), kiln.Bundle{Files: kiln.Tree{Entries: []kiln.TreeEntry{
		{Path: "kiln.hcl", Mode: 0o644, Size: 32_000, Digest: o.file},
	}}}, nil)
	check(t, err)
	for range 3 {
		_, err := o.ledger.CreateRelease(t.Context(), kiln.Release{Environment: "production", Bundle: bundle, State: kiln.ReleaseRetired, Actor: "root"})
		check(t, err)
	}
	for path, text := range map[string]string{
		"kilnd.hcl": "log {\n  level = \"warn\"\n}\n", "api/authority.key": "secret of the API", "api/authority.pem": "public",
		"gateway/acme/certificates/ca/a.test/a.test.key": "secret of the gateway", "gateway/table": "not a key",
		"sign/image/keys.json": "[]", "sign/image/0123.pem": "secret of the signatures",
	} {
		check(t, os.MkdirAll(filepath.Dir(filepath.Join(o.dir, path)), 0o700))
		check(t, os.WriteFile(filepath.Join(o.dir, path), []byte(text), 0o600))
	}
	o.who, err = age.GenerateX25519Identity()
	check(t, err)
	return o
}

// source is what the control plane hands in; to are the recipients.
func (o *origin) source(t *testing.T, byReference bool, to ...age.Recipient) Source {
	t.Helper()
	path, report, err := o.ledger.Copy(t.Context(), t.TempDir())
	check(t, err)
	s := Source{Version: "1.2.3", Host: "first", At: time.Date(2031, 2, 3, 4, 5, 6, 0, time.UTC), Ledger: path, Tip: report.Tip, Recipients: to, Open: o.store.Open}
	blobs, index, err := o.store.List(t.Context())
	check(t, err)
	s.Index = index
	for _, b := range blobs {
		if byReference && !b.Bundle {
			s.References = append(s.References, Blob{b.Digest, b.Size})
		} else {
			s.Blobs = append(s.Blobs, Blob{b.Digest, b.Size})
		}
	}
	s.Keys, err = ReadKeys(o.dir)
	check(t, err)
	s.Config, err = os.ReadFile(filepath.Join(o.dir, "kilnd.hcl"))
	check(t, err)
	return s
}

func write(t *testing.T, s Source) ([]byte, Manifest) {
	t.Helper()
	var out bytes.Buffer
	m, err := Write(t.Context(), &out, s)
	check(t, err)
	return out.Bytes(), m
}

// restore unpacks a backup into a new directory, which is returned.
func restore(t *testing.T, raw []byte, u Unpacking) (string, error) {
	t.Helper()
	dir := t.TempDir()
	s, err := NewStage(dir)
	check(t, err)
	if _, err := s.Unpack(t.Context(), bytes.NewReader(raw), u); err != nil {
		check(t, s.Discard())
		return dir, err
	}
	return dir, s.Commit()
}

// wantRefused wants an error in words and nothing in the directory.
func wantRefused(t *testing.T, dir string, err error) *kiln.Error {
	t.Helper()
	var known *kiln.Error
	if !errors.As(err, &known) || known.Hint == "" {
		t.Fatalf("not refused in words: %v", err)
	}
	left, err := os.ReadDir(dir)
	check(t, err)
	if len(left) > 0 {
		t.Fatalf("it left %v", left)
	}
	return known
}

func TestABackupComesBack(t *testing.T) {
	o := newOrigin(t)
	raw, m := write(t, o.source(t, false, o.who.Recipient()))
	verified, err := Verify(t.Context(), bytes.NewReader(raw))
	check(t, err)
	if diff := cmp.Diff(m, verified); diff != "" || verified.Digest() != m.Digest() {
		t.Error(diff)
	}
	dir, err := restore(t, raw, Unpacking{Identities: []age.Identity{o.who}, Want: m.Digest()})
	check(t, err)
	if diff := cmp.Diff(files(t, o.dir), files(t, dir)); diff != "" {
		t.Error(diff)
	}
	again, err := ledger.Open(t.Context(), filepath.Join(dir, "ledger", "ledger.db"))
	check(t, err)
	defer func() { check(t, again.Close()) }()
	report, err := again.Verify(t.Context(), m.Tip)
	check(t, err)
	releases, err := again.Releases(t.Context(), "production")
	check(t, err)
	if len(report.Faults) > 0 || len(releases) != 3 {
		t.Fatalf("%+v, %d releases", report, len(releases))
	}
	blobs, err := store.Open(filepath.Join(dir, "store"))
	check(t, err)
	if b, err := blobs.Bundle(t.Context(), releases[0].Bundle); err != nil || b.Files.Entries[0].Digest != o.file {
		t.Fatalf("bundle %+v, %v", b, err)
	}
}

// files are the contents below a data directory that a backup brings
// back as they are.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	check(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		check(t, err)
		name, err := filepath.Rel(dir, path)
		check(t, err)
		switch {
		case d.IsDir(), strings.HasPrefix(name, "ledger"), name == "gateway/table", name == "store/oci-layout", strings.HasPrefix(name, "store/referrers/"), strings.HasSuffix(name, ".lock"):
			return nil
		}
		raw, err := os.ReadFile(path)
		out[name] = string(raw)
		return err
	}))
	return out
}

func TestWhatIsRestoredIsForItsOwnerOnly(t *testing.T) {
	o := newOrigin(t)
	raw, _ := write(t, o.source(t, false, o.who.Recipient()))
	dir, err := restore(t, raw, Unpacking{Identities: []age.Identity{o.who}})
	check(t, err)
	check(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		check(t, err)
		if info, err := d.Info(); err != nil || path != dir && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
		return nil
	}))
}

func TestTheSameIsTheSameFile(t *testing.T) {
	s := newOrigin(t).source(t, false)
	first, _ := write(t, s)
	second, _ := write(t, s)
	if !bytes.Equal(first, second) {
		t.Error("two backups of the same differ")
	}
}

// entry is one of an archive that a test changes.
type entry struct {
	tar.Header
	content string
}

func unzip(t *testing.T, raw []byte) []entry {
	t.Helper()
	plain, err := zstd.NewReader(bytes.NewReader(raw))
	check(t, err)
	defer plain.Close()
	var out []entry
	for archive := tar.NewReader(plain); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		check(t, err)
		content, err := io.ReadAll(archive)
		check(t, err)
		out = append(out, entry{*h, string(content)})
	}
}

func zip(t testing.TB, entries []entry) []byte {
	t.Helper()
	var out bytes.Buffer
	compressed, err := zstd.NewWriter(&out)
	check(t, err)
	archive := tar.NewWriter(compressed)
	for _, e := range entries {
		if e.Typeflag == tar.TypeReg {
			e.Size = int64(len(e.content))
		}
		check(t, archive.WriteHeader(&e.Header))
		if e.Typeflag == tar.TypeReg {
			_, err := archive.Write([]byte(e.content))
			check(t, err)
		}
	}
	check(t, errors.Join(archive.Close(), compressed.Close()))
	return out.Bytes()
}

func TestEveryPartThatWasChangedIsRefused(t *testing.T) {
	o := newOrigin(t)
	raw, _ := write(t, o.source(t, false, o.who.Recipient()))
	whole := unzip(t, raw)
	if _, err := restore(t, zip(t, whole), Unpacking{}); err != nil {
		t.Fatalf("packed again: %v", err)
	}
	for i := range whole {
		for what, change := range map[string]func(e []entry) []entry{
			"a byte": func(e []entry) []entry {
				c := []byte(e[i].content)
				c[len(c)/2] ^= 1
				e[i].content = string(c)
				return e
			},
			"longer":   func(e []entry) []entry { e[i].content += "x"; return e },
			"shorter":  func(e []entry) []entry { e[i].content = e[i].content[1:]; return e },
			"away":     func(e []entry) []entry { return slices.Delete(e, i, i+1) },
			"twice":    func(e []entry) []entry { return slices.Insert(e, i, e[i]) },
			"renamed":  func(e []entry) []entry { e[i].Name = "store/sha256/" + strings.Repeat("0", 64); return e },
			"climbing": func(e []entry) []entry { e[i].Name = "../" + e[i].Name; return e },
			"a link": func(e []entry) []entry {
				e[i].Typeflag, e[i].Linkname = tar.TypeSymlink, "/etc/passwd"
				return e
			},
			"a device": func(e []entry) []entry { e[i].Typeflag = tar.TypeBlock; return e },
			"and another": func(e []entry) []entry {
				return append(e, entry{tar.Header{Name: "empty", Typeflag: tar.TypeReg}, ""})
			},
			"the last": func(e []entry) []entry { return append(slices.Delete(e, i, i+1), e[i]) },
		} {
			if what == "the last" && i == len(whole)-1 {
				continue
			}
			changed := zip(t, change(slices.Clone(whole)))
			dir, err := restore(t, changed, Unpacking{Identities: []age.Identity{o.who}})
			if err == nil {
				t.Errorf("%s %s is taken", whole[i].Name, what)
				continue
			}
			_ = wantRefused(t, dir, err)
			if _, err := Verify(t.Context(), bytes.NewReader(changed)); err == nil {
				t.Errorf("%s %s is no fault for Verify", whole[i].Name, what)
			}
		}
	}
}

func TestWhatEndsTooEarlyIsRefused(t *testing.T) {
	raw, _ := write(t, newOrigin(t).source(t, false))
	for _, n := range append([]int{0, 1, 4, len(raw) - 1, len(raw) - 4}, rand.New(rand.NewPCG(1, 2)).Perm(len(raw))[:100]...) {
		dir, err := restore(t, raw[:n], Unpacking{})
		if err == nil {
			t.Fatalf("%d bytes of %d are taken", n, len(raw))
		}
		_ = wantRefused(t, dir, err)
	}
	dir, err := restore(t, append(slices.Clone(raw), "more"...), Unpacking{})
	_ = wantRefused(t, dir, err)
	dir, err = restore(t, append(slices.Clone(raw), raw...), Unpacking{})
	_ = wantRefused(t, dir, err)
}

// TestAFlippedBitIsRefused or changes nothing of what is restored.
func TestAFlippedBitIsRefused(t *testing.T) {
	raw, m := write(t, newOrigin(t).source(t, false))
	refused := 0
	for _, at := range rand.New(rand.NewPCG(3, 4)).Perm(len(raw))[:300] {
		changed := slices.Clone(raw)
		changed[at] ^= 1 << (at % 8)
		got, err := Verify(t.Context(), bytes.NewReader(changed))
		switch {
		case err != nil:
			refused++
		case got.Digest() != m.Digest():
			t.Fatalf("byte %d of %d was changed unseen", at, len(raw))
		}
	}
	if refused < 290 {
		t.Errorf("only %d of 300 were refused", refused)
	}
}

// forged is a backup of a manifest that a stranger made, with contents that fit.
func forged(t testing.TB, m Manifest, contents ...string) []byte {
	t.Helper()
	entries := []entry{{tar.Header{Name: manifestName, Typeflag: tar.TypeReg}, string(manifestOf(t, m))}}
	for i, c := range contents {
		entries = append(entries, entry{tar.Header{Name: m.Entries[i].Name, Typeflag: tar.TypeReg}, c})
	}
	return zip(t, entries)
}

func manifestOf(t testing.TB, m Manifest) []byte {
	t.Helper()
	raw, err := json.Marshal(m)
	check(t, err)
	return raw
}

func entryOf(name, content string) Entry {
	return Entry{Name: name, Size: int64(len(content)), Digest: kiln.DigestOf([]byte(content))}
}

func TestAHostileBackupIsRefused(t *testing.T) {
	base := Manifest{Format: Format, Version: "1", Host: "h", Tip: "1:0", Entries: []Entry{entryOf(ledgerName, "l"), entryOf(indexName, "{}")}}
	if dir, err := restore(t, forged(t, base, "l", "{}"), Unpacking{}); err != nil {
		t.Fatalf("%s: %v", dir, err)
	}
	for name, e := range map[string]Entry{
		"climbs":        entryOf("../outside", "x"),
		"absolute":      entryOf("/etc/cron.d/x", "x"),
		"climbs inside": entryOf("store/sha256/../../../outside", "x"),
		"another place": entryOf("run/kiln.sock", "x"),
		"the stage":     entryOf(StageName, "x"),
		"manifest":      entryOf(manifestName, "x"),
		"twice":         entryOf(ledgerName, "x"),
		"of another":    {Name: blobPrefix + kiln.DigestOf([]byte("y")).Hex(), Size: 1, Digest: kiln.DigestOf([]byte("x"))},
		"no digest":     {Name: configName, Size: 1, Digest: "sha256:00"},
		"negative":      {Name: configName, Size: -1, Digest: kiln.DigestOf(nil)},
		"too large":     {Name: configName, Size: maxConfig + 1, Digest: kiln.DigestOf(nil)},
		"overflow":      {Name: blobPrefix + kiln.DigestOf(nil).Hex(), Size: 1 << 62, Digest: kiln.DigestOf(nil)},
		"no blob":       entryOf(blobPrefix+strings.Repeat("0", 63), "x"),
		"an empty one":  entryOf("../outside", ""),
	} {
		m := base
		m.Entries = append(slices.Clone(base.Entries), e)
		if _, err := parseManifest(manifestOf(t, m)); !errors.Is(err, kiln.ErrInvalid) {
			t.Errorf("%s: its manifest is taken: %v", name, err)
		}
		dir, err := restore(t, forged(t, m, "l", "{}", "x"), Unpacking{})
		if err == nil {
			t.Errorf("%s: taken", name)
			continue
		}
		_ = wantRefused(t, dir, err)
	}
}

// TestALinkIsNoEmptyFile: neither has content.
func TestALinkIsNoEmptyFile(t *testing.T) {
	m := Manifest{Format: Format, Entries: []Entry{entryOf(ledgerName, "l"), entryOf(indexName, "{}"), entryOf(configName, "")}}
	entries := unzip(t, forged(t, m, "l", "{}", ""))
	if _, err := restore(t, zip(t, entries), Unpacking{}); err != nil {
		t.Fatal(err)
	}
	entries[3].Typeflag, entries[3].Linkname = tar.TypeSymlink, "/etc/passwd"
	dir, err := restore(t, zip(t, entries), Unpacking{})
	_ = wantRefused(t, dir, err)
}

func TestAManifestOfStrangersIsRefused(t *testing.T) {
	base := Manifest{Format: Format, Entries: []Entry{entryOf(ledgerName, "l"), entryOf(indexName, "{}")}}
	canonical, err := json.Marshal(base)
	check(t, err)
	of := func(text string) []byte {
		entries := unzip(t, forged(t, base, "l", "{}"))
		entries[0].content = text
		return zip(t, entries)
	}
	if _, err := restore(t, of(string(canonical)), Unpacking{}); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		raw  []byte
		code kiln.Code
	}{
		"a newer format": {of(strings.Replace(string(canonical), `"format":1`, `"format":2`, 1)), kiln.CodeRefused},
		"unknown field":  {of(strings.Replace(string(canonical), `"format":1`, `"format":1,"more":2`, 1)), kiln.CodeInvalid},
		"spaces":         {of(string(canonical) + " "), kiln.CodeInvalid},
		"no JSON":        {of("hello"), kiln.CodeInvalid},
		"nothing":        {of(`{"format":1}`), kiln.CodeInvalid},
		"no ledger":      {forged(t, Manifest{Format: Format, Entries: base.Entries[1:]}, "{}"), kiln.CodeInvalid},
		"no index":       {forged(t, Manifest{Format: Format, Entries: base.Entries[:1]}, "l"), kiln.CodeInvalid},
		"no archive":     {[]byte("hello, this is no backup at all"), kiln.CodeInvalid},
		"empty":          {nil, kiln.CodeInvalid},
	} {
		dir, err := restore(t, c.raw, Unpacking{})
		if known := wantRefused(t, dir, err); known.Code != c.code {
			t.Errorf("%s: %s, want %s", name, known.Code, c.code)
		}
	}
	// It is not even read.
	if _, err := Verify(t.Context(), bytes.NewReader(of(strings.Repeat(" ", maxManifest+1)))); !strings.Contains(err.Error(), "does not begin with a manifest") {
		t.Errorf("a bomb: %v", err)
	}
	other := base
	other.Host = "another"
	dir, err := restore(t, forged(t, other, "l", "{}"), Unpacking{Want: base.Digest()})
	if known := wantRefused(t, dir, err); known.Code != kiln.CodeRefused {
		t.Errorf("another backup than the wanted one: %v", known)
	}
}

func TestABackupThatIsEndedEnds(t *testing.T) {
	s := newOrigin(t).source(t, false)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Write(ctx, io.Discard, s); !errors.Is(err, context.Canceled) {
		t.Errorf("write: %v", err)
	}
	raw, _ := write(t, s)
	if _, err := Verify(ctx, bytes.NewReader(raw)); !errors.Is(err, context.Canceled) {
		t.Errorf("read: %v", err)
	}
}

// TestADamagedBlobIsNotBackedUp: the file would be refused later.
func TestADamagedBlobIsNotBackedUp(t *testing.T) {
	o := newOrigin(t)
	path := filepath.Join(o.dir, "store", "blobs", "sha256", o.file.Hex())
	check(t, os.Chmod(path, 0o600))
	for _, text := range []string{strings.Repeat("x", 32_000), "short"} {
		s := o.source(t, false)
		check(t, os.WriteFile(path, []byte(text), 0o600))
		_, err := Write(t.Context(), io.Discard, s)
		var known *kiln.Error
		if !errors.As(err, &known) || known.Code != kiln.CodeFailed || !strings.Contains(known.Message, o.file.Hex()) {
			t.Errorf("%v", err)
		}
	}
}
