package seal

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kilnproject/kiln"
)

// notary is a Signer with a key of its own.
type notary struct {
	key    ed25519.PrivateKey
	signed int
	broken error
}

func newNotary(t testing.TB) *notary {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &notary{key: key}
}

func (n *notary) Sign(_ context.Context, payload []byte) ([]byte, error) {
	n.signed++
	return ed25519.Sign(n.key, payload), n.broken
}

func (n *notary) Check(_ context.Context, payload, signature []byte) error {
	if public, ok := n.key.Public().(ed25519.PublicKey); !ok || !ed25519.Verify(public, payload, signature) {
		return errors.New("somebody else's")
	}
	return nil
}

// signing is a Sealer whose log and seals are looked at.
type signing struct {
	*Sealer
	log    bytes.Buffer
	sealed int
}

func newSigning(t testing.TB, dir string, store Store, signer Signer) *signing {
	t.Helper()
	s := &signing{Sealer: newSealer(t, dir, store)}
	s.opt.Signer = signer
	s.opt.Log = slog.New(slog.NewTextHandler(&s.log, nil))
	s.opt.Sealed = func(time.Duration, error) { s.sealed++ }
	return s
}

func change(t testing.TB, path string, change func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, change(b), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func flip(at int) func([]byte) []byte {
	return func(b []byte) []byte {
		if at < 0 {
			at += len(b)
		}
		b[at] ^= 1
		return b
	}
}

func TestARecordIsBelievedAsItWasSigned(t *testing.T) {
	ours := newNotary(t)
	s := newSigning(t, t.TempDir(), folder(t.TempDir()), ours)
	image := kiln.DigestOf([]byte("image"))
	key := keyOf(image, nil)
	r := record{Format: formatVersion, Image: image, Seal: kiln.DigestOf([]byte("seal")), Size: 7}
	if err := s.save(t.Context(), key, r); err != nil {
		t.Fatal(err)
	}
	got, err := s.load(t.Context(), key)
	if err != nil || got.Seal != r.Seal {
		t.Fatal(got, err)
	}
	path := s.recordPath(key)
	sound, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range sound {
		change(t, path, func([]byte) []byte { return flip(i)(bytes.Clone(sound)) })
		if got, err := s.load(t.Context(), key); err == nil {
			t.Errorf("byte %d: %+v is believed", i, got)
		}
	}
	for name, b := range map[string][]byte{
		"of an earlier version": sound[:bytes.IndexByte(sound, '\n')], "empty": {}, "cut": sound[:len(sound)-4],
		"a bomb": append(bytes.Clone(sound), make([]byte, maxRecord)...),
	} {
		change(t, path, func([]byte) []byte { return b })
		if _, err := s.load(t.Context(), key); err == nil {
			t.Errorf("%s is believed", name)
		}
	}
	change(t, path, func([]byte) []byte { return sound })
	if _, err := s.load(t.Context(), keyOf(image, []string{"/data"})); err == nil {
		t.Error("there is a record of something else")
	}
	if err := os.Rename(path, s.recordPath(keyOf(image, []string{"/data"}))); err != nil {
		t.Fatal(err)
	}
	if _, err := s.load(t.Context(), keyOf(image, []string{"/data"})); err == nil {
		t.Error("a signed record of something else is believed")
	}
}

// TestWithoutASignerNothingIsSigned: as before there were signatures, also on
// records that have one.
func TestWithoutASignerNothingIsSigned(t *testing.T) {
	s := newSealer(t, t.TempDir(), folder(t.TempDir()))
	image := kiln.DigestOf([]byte("image"))
	key := keyOf(image, nil)
	r := record{Format: formatVersion, Image: image, Seal: kiln.DigestOf([]byte("seal"))}
	for _, signer := range []Signer{nil, newNotary(t)} {
		s.opt.Signer = signer
		err := s.save(t.Context(), key, r)
		s.opt.Signer = nil
		if _, lerr := s.load(t.Context(), key); errors.Join(err, lerr) != nil {
			t.Error(err, lerr)
		}
	}
}

// TestAMountWithoutARecordIsDoubted: that nothing is sealed would be no answer.
func TestAMountWithoutARecordIsDoubted(t *testing.T) {
	needRoot(t)
	store := folder(t.TempDir())
	manifest := store.image(t, layer(t, file("a", "a")))
	s := newSigning(t, t.TempDir(), store, newNotary(t))
	if _, mounted := s.Mounted(manifest, nil); mounted {
		t.Error("what was never asked for is mounted")
	}
	root, err := s.Root(t.Context(), manifest, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, mounted := s.Mounted(manifest, nil); !mounted || got.Dir != root.Dir {
		t.Errorf("%+v %t", got, mounted)
	}
	if err := os.Remove(s.recordPath(root.Key)); err != nil {
		t.Fatal(err)
	}
	if _, sealed, err := s.Check(t.Context(), manifest, nil); !sealed || err == nil {
		t.Errorf("%t, %v", sealed, err)
	}
	setImmutable(t, s.imagePath(root.Key), false) // changes the inode's time
	if _, mounted := s.Mounted(manifest, nil); mounted {
		t.Error("a file that was touched is what was verified")
	}
}

// TestWhatWasTamperedWithIsSealedAgain flips bytes between two runs.
func TestWhatWasTamperedWithIsSealedAgain(t *testing.T) {
	needRoot(t)
	const content = "content that is looked for"
	store := folder(t.TempDir())
	manifest := store.image(t, layer(t, file("a", content)))
	other := store.image(t, layer(t, file("a", "content of another image...")))
	sealFile := func(t *testing.T, s *signing, k Key, to func([]byte) []byte) {
		path := s.imagePath(k)
		setImmutable(t, path, false)
		if err := os.Chmod(path, 0o600); err != nil {
			t.Fatal(err)
		}
		change(t, path, to)
	}
	for name, c := range map[string]struct {
		tamper func(t *testing.T, s *signing, mine, others Key)
		warned string // nothing: it is believed
	}{
		"nothing":     {func(*testing.T, *signing, Key, Key) {}, ""},
		"the seal":    {func(t *testing.T, s *signing, k, _ Key) { sealFile(t, s, k, flip(-1)) }, "damaged and is made again"},
		"the record":  {func(t *testing.T, s *signing, k, _ Key) { change(t, s.recordPath(k), flip(40)) }, "not believed"},
		"a signature": {func(t *testing.T, s *signing, k, _ Key) { change(t, s.recordPath(k), flip(-10)) }, "not believed"},
		"no signature": {func(t *testing.T, s *signing, k, _ Key) {
			change(t, s.recordPath(k), func(b []byte) []byte { return b[:bytes.IndexByte(b, '\n')] })
		}, "not signed by this machine"},
		"another's signature": {func(t *testing.T, s *signing, k, _ Key) {
			r, _, _, err := s.read(k)
			if err != nil {
				t.Fatal(err)
			}
			stranger := newSigning(t, filepath.Dir(s.opt.Dir), store, newNotary(t))
			if err := stranger.save(t.Context(), k, r); err != nil {
				t.Fatal(err)
			}
		}, "not signed by this machine"},
		// The seal of another image with a record that fits it: the digest
		// agrees, and only the signature tells.
		"seal and record": {func(t *testing.T, s *signing, k, others Key) {
			evil, err := os.ReadFile(s.imagePath(others))
			if err != nil {
				t.Fatal(err)
			}
			sealFile(t, s, k, func([]byte) []byte { return evil })
			r, _, _, err := s.read(k)
			if err != nil {
				t.Fatal(err)
			}
			r.Seal, r.Size = kiln.DigestOf(evil), int64(len(evil))
			honest := s.opt.Signer
			s.opt.Signer = newNotary(t)
			err = s.save(t.Context(), k, r)
			s.opt.Signer = honest
			if err != nil {
				t.Fatal(err)
			}
		}, "not signed by this machine"},
		"another's seal": {func(t *testing.T, s *signing, k, others Key) {
			evil, err := os.ReadFile(s.imagePath(others))
			if err != nil {
				t.Fatal(err)
			}
			sealFile(t, s, k, func([]byte) []byte { return evil })
		}, "damaged and is made again"},
	} {
		for _, mounted := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				dir, ours := t.TempDir(), newNotary(t)
				s := newSigning(t, dir, store, ours)
				one, err := s.Root(t.Context(), manifest, nil)
				if err != nil {
					t.Fatal(err)
				}
				two, err := s.Root(t.Context(), other, nil)
				if err != nil {
					t.Fatal(err)
				}
				if !mounted {
					if err := s.UnmountAll(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				c.tamper(t, s, one.Key, two.Key)
				after := newSigning(t, dir, store, ours)
				again, err := after.Root(t.Context(), manifest, nil)
				if err != nil || again.Seal != one.Seal {
					t.Fatalf("%+v, %v", again, err)
				}
				if b, err := os.ReadFile(filepath.Join(again.Dir, "a")); err != nil || string(b) != content {
					t.Errorf("%q, %v", b, err)
				}
				if want := c.warned != ""; (after.sealed == 1) != want || want && !strings.Contains(after.log.String(), c.warned) {
					t.Errorf("sealed %d times, and said:\n%s", after.sealed, after.log.String())
				}
				if got, err := after.load(t.Context(), one.Key); err != nil || got.Seal != one.Seal {
					t.Errorf("the new record: %+v, %v", got, err)
				}
			})
		}
	}
}

func TestNothingIsMountedThatCannotBeSigned(t *testing.T) {
	needRoot(t)
	store := folder(t.TempDir())
	manifest := store.image(t, layer(t, file("a", "a")))
	ours := newNotary(t)
	ours.broken = errors.New("the key is out of reach")
	s := newSigning(t, t.TempDir(), store, ours)
	if _, err := s.Root(t.Context(), manifest, nil); !errors.Is(err, ours.broken) {
		t.Errorf("%v", err)
	}
	if entries, err := os.ReadDir(s.opt.MountDir); err != nil || len(entries) > 0 {
		t.Errorf("%v, %v", entries, err)
	}
	ours.broken = nil
	if _, err := s.Root(t.Context(), manifest, nil); err != nil || s.sealed != 2 || ours.signed != 2 {
		t.Errorf("%v, sealed %d times, signed %d", err, s.sealed, ours.signed)
	}
}
