package backup

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"filippo.io/age"
	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
)

func TestOnlyAnEmptyDirectoryIsTaken(t *testing.T) {
	dir := t.TempDir()
	check(t, os.WriteFile(filepath.Join(dir, "kilnd.lock"), nil, 0o600))
	check(t, os.MkdirAll(filepath.Join(dir, StageName, "half"), 0o700))
	if err := Unfinished(dir); !errors.Is(err, &kiln.Error{Code: kiln.CodeConflict}) {
		t.Errorf("a control plane would start on half a restore: %v", err)
	}
	s, err := NewStage(dir, "kilnd.lock")
	check(t, err)
	if _, err := os.Stat(s.Path("half")); err == nil {
		t.Error("what an earlier restore left is still there")
	}
	check(t, s.Discard())
	check(t, Unfinished(dir))
	for _, name := range []string{"ledger", "kilnd.hcl", ".hidden"} {
		dir := t.TempDir()
		check(t, os.WriteFile(filepath.Join(dir, name), []byte("mine"), 0o600))
		if _, err := NewStage(dir, "kilnd.lock"); !errors.Is(err, &kiln.Error{Code: kiln.CodeConflict}) {
			t.Errorf("a directory with %s is taken: %v", name, err)
		}
		if raw, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(raw) != "mine" {
			t.Errorf("%s is %q, %v", name, raw, err)
		}
	}
}

func TestKeysAreForTheirRecipientsOnly(t *testing.T) {
	o := newOrigin(t)
	other, err := age.GenerateX25519Identity()
	check(t, err)
	raw, m := write(t, o.source(t, false, o.who.Recipient()))
	if !m.Keys() || bytes.Contains(raw, []byte("secret of")) {
		t.Error("keys are not in it, or to be read")
	}
	dir, err := restore(t, raw, Unpacking{Identities: []age.Identity{other}})
	if known := wantRefused(t, dir, err); known.Code != kiln.CodeRefused {
		t.Errorf("another identity: %v", known)
	}
	dir, err = restore(t, raw, Unpacking{})
	check(t, err)
	if _, err := os.Stat(filepath.Join(dir, "api")); err == nil {
		t.Error("keys were restored without an identity")
	}
	if _, m := write(t, o.source(t, false)); m.Keys() {
		t.Error("there are keys in a backup for nobody")
	}
}

func TestHostileKeysAreRefused(t *testing.T) {
	o := newOrigin(t)
	for _, h := range []tar.Header{
		{Name: "api/../../outside"},
		{Name: "../outside"},
		{Name: "/etc/passwd"},
		{Name: "ledger/ledger.db"},
		{Name: "api/"},
		{Name: "gateway/table"},
		{Name: "api/.hidden"},
		{Name: "api/link", Typeflag: tar.TypeSymlink, Linkname: "/etc"},
		{Name: "api/" + strings.Repeat("x", 600)},
		{Name: "api/x", Uid: -1},
	} {
		s := o.source(t, false)
		dir, err := restore(t, withKeys(t, s, o.who, h), Unpacking{Identities: []age.Identity{o.who}})
		if err == nil {
			t.Errorf("%q is taken", h.Name)
			continue
		}
		_ = wantRefused(t, dir, err)
	}
	// One whose content is no archive of age.
	s := o.source(t, false, o.who.Recipient())
	raw, m := write(t, s)
	entries := unzip(t, raw)
	for i := range m.Entries {
		if m.Entries[i].Name == keysName {
			entries[i+1].content = "no age"
			m.Entries[i] = entryOf(keysName, "no age")
		}
	}
	entries[0].content = string(manifestOf(t, m))
	dir, err := restore(t, zip(t, entries), Unpacking{Identities: []age.Identity{o.who}})
	_ = wantRefused(t, dir, err)
}

// withKeys is a backup whose keys are an archive with one header of a stranger.
func withKeys(t *testing.T, s Source, who *age.X25519Identity, h tar.Header) []byte {
	t.Helper()
	var sealed bytes.Buffer
	encrypted, err := age.Encrypt(&sealed, who.Recipient())
	check(t, err)
	archive := tar.NewWriter(encrypted)
	check(t, archive.WriteHeader(&h))
	check(t, errors.Join(archive.Close(), encrypted.Close()))
	raw, m := write(t, s)
	entries := unzip(t, raw)
	m.Entries = append(m.Entries, entryOf(keysName, sealed.String()))
	entries[0].content = string(manifestOf(t, m))
	return zip(t, append(entries, entry{tar.Header{Name: keysName, Typeflag: tar.TypeReg}, sealed.String()}))
}

func TestOfTheGatewaysFolderOnlyKeysAreRead(t *testing.T) {
	o := newOrigin(t)
	acme := filepath.Join(o.dir, "gateway", "acme")
	check(t, os.WriteFile(filepath.Join(o.dir, "outside"), []byte("of others"), 0o600))
	check(t, os.Symlink(filepath.Join(o.dir, "outside"), filepath.Join(acme, "link")))
	check(t, os.Symlink("/", filepath.Join(acme, "root")))
	check(t, syscall.Mkfifo(filepath.Join(acme, "pipe"), 0o600))
	check(t, os.WriteFile(filepath.Join(acme, ".part"), nil, 0o600))
	check(t, os.WriteFile(filepath.Join(o.dir, "sign", "image", ".new-keys.json"), nil, 0o600))
	keys, err := ReadKeys(o.dir)
	check(t, err)
	var names []string
	for _, k := range keys {
		names = append(names, k.Path)
	}
	if got := strings.Join(names, " "); got != "api/authority.key api/authority.pem gateway/acme/certificates/ca/a.test/a.test.key sign/image/0123.pem sign/image/keys.json" {
		t.Errorf("keys %s", got)
	}
	check(t, os.WriteFile(filepath.Join(acme, "large"), make([]byte, maxKeyFile+1), 0o600))
	if _, err := ReadKeys(o.dir); !errors.Is(err, kiln.ErrNoRoom) {
		t.Errorf("a large key: %v", err)
	}
}

func TestAStoreByReferenceNeedsAStore(t *testing.T) {
	o := newOrigin(t)
	raw, m := write(t, o.source(t, true))
	if len(m.References) != 1 || m.References[0].Digest != o.file || m.Missing() != 32_000 || bytes.Contains(raw, []byte("service")) {
		t.Fatalf("references %+v", m.References)
	}
	stage := func() *Stage {
		s, err := NewStage(t.TempDir())
		check(t, err)
		t.Cleanup(func() { _ = s.Discard() })
		_, err = s.Unpack(t.Context(), bytes.NewReader(raw), Unpacking{})
		check(t, err)
		return s
	}
	for from, missing := range map[string]int{"": 1, filepath.Join(o.dir, "store"): 0} {
		left, err := stage().Fetch(t.Context(), m.References, from)
		if err != nil || len(left) != missing {
			t.Errorf("from %q: %v, %v", from, left, err)
		}
	}
	if _, err := stage().Fetch(t.Context(), m.References, o.dir); !errors.Is(err, kiln.ErrInvalid) {
		t.Errorf("from what is no store: %v", err)
	}
	path := filepath.Join(o.dir, "store", "blobs", "sha256", o.file.Hex())
	check(t, os.Remove(path))
	if left, err := stage().Fetch(t.Context(), m.References, filepath.Join(o.dir, "store")); err != nil || len(left) != 1 {
		t.Errorf("from a store without it: %v, %v", left, err)
	}
	check(t, os.WriteFile(path, []byte("damaged"), 0o600))
	if _, err := stage().Fetch(t.Context(), m.References, filepath.Join(o.dir, "store")); !errors.Is(err, kiln.ErrInvalid) {
		t.Errorf("from a damaged store: %v", err)
	}
}

func TestAFullDiskGetsNothing(t *testing.T) {
	if os.Getenv("KILN_TEST_ROOT") == "" {
		t.Skip("mounts a small file system; set KILN_TEST_ROOT=1 as root")
	}
	raw, _ := write(t, newOrigin(t).source(t, false))
	for what, options := range map[string]string{"no room": "size=1m", "no inodes": "size=256m,nr_inodes=6"} {
		dir := t.TempDir()
		check(t, unix.Mount("tmpfs", dir, "tmpfs", 0, options))
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
		s, err := NewStage(dir)
		check(t, err)
		_, err = s.Unpack(t.Context(), bytes.NewReader(raw), Unpacking{})
		check(t, s.Discard())
		if known := wantRefused(t, dir, err); known.Code != kiln.CodeNoRoom {
			t.Errorf("%s: %v", what, known)
		}
	}
}

// FuzzVerify reads what strangers made.
func FuzzVerify(f *testing.F) {
	base := Manifest{Format: Format, Version: "1", Host: "h", Tip: "1:0", Entries: []Entry{entryOf(ledgerName, "l"), entryOf(indexName, "{}")}}
	f.Add(forged(f, base, "l", "{}"))
	f.Add(forged(f, base, "l"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := Verify(t.Context(), bytes.NewReader(raw))
		if err != nil {
			return
		}
		for _, e := range m.Entries {
			if err := e.check(); err != nil || !filepath.IsLocal(placeOf(e.Name)) {
				t.Errorf("%q is taken", e.Name)
			}
		}
	})
}
