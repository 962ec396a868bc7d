package sign

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/secure-systems-lab/go-securesystemslib/encrypted"

	"github.com/kilnproject/kiln"
)

func newKey(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	check(t, err)
	return key
}

func write(t testing.TB, name string, text []byte, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	check(t, os.WriteFile(path, text, mode))
	check(t, os.Chmod(path, mode))
	return path
}

func sec1(t testing.TB, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.MarshalECPrivateKey(key)
	check(t, err)
	return append(pem.EncodeToMemory(&pem.Block{Type: "EC PARAMETERS", Bytes: []byte{6, 0}}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})...)
}

func pkcs8(t testing.TB, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	check(t, err)
	return der
}

func TestKeysAreSecretAndStay(t *testing.T) {
	dir, store := filepath.Join(t.TempDir(), "sign"), newShelf()
	one := open(t, Options{Dir: dir, Store: store})
	for path, want := range map[string]os.FileMode{
		dir: 0o700, dir + "/image": 0o700, dir + "/image/keys.json": 0o600,
		dir + "/image/" + one.Keys()[0].ID + ".pem": 0o600, dir + "/record/keys.json": 0o600,
	} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
	two := open(t, Options{Dir: dir, Store: store})
	if one.PublicKey() != two.PublicKey() || one.records.current().active().ID != two.records.current().active().ID {
		t.Error("another start has other keys")
	}
	if one.Keys()[0].ID == one.records.current().active().ID {
		t.Error("images and records have the same key")
	}
}

func TestRotation(t *testing.T) {
	now := &clock{time.Date(2031, 1, 1, 0, 0, 0, 0, time.UTC)}
	dir, store := filepath.Join(t.TempDir(), "sign"), newShelf()
	s := open(t, Options{Dir: dir, Store: store, Now: now.now})
	image, later := store.image(t, "a"), store.image(t, "b")
	check(t, s.SignImage(t.Context(), image))
	record, err := s.SignRecord("seal", []byte("x"))
	check(t, err)
	old := s.Keys()[0]

	now.at = now.at.Add(24 * time.Hour)
	key, err := s.Rotate()
	check(t, err)
	check(t, s.SignImage(t.Context(), later))
	for name, s := range map[string]*Signer{"same": s, "opened again": open(t, Options{Dir: dir, Store: store, Now: now.now})} {
		all := s.Keys()
		if len(all) != 2 || all[0] != key || all[1].ID != old.ID || !all[1].Until.Equal(now.at) || !all[0].Until.IsZero() {
			t.Errorf("%s: %+v", name, all)
		}
		for _, d := range []kiln.Digest{image, later} {
			if _, err := s.Verify(t.Context(), d); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := s.CheckRecord("seal", []byte("x"), record); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "image", old.ID+".pem")); !os.IsNotExist(err) {
		t.Errorf("the old private key is left: %v", err)
	}

	refused(t, s.Distrust(key.ID), kiln.CodeConflict, "signs")
	refused(t, s.Distrust("no such"), kiln.CodeNotFound, "no such")
	check(t, s.Distrust(old.ID))
	for name, s := range map[string]*Signer{"same": s, "opened again": open(t, Options{Dir: dir, Store: store, Now: now.now})} {
		_, err := s.Verify(t.Context(), image)
		refused(t, err, kiln.CodeRefused, "another key")
		if _, err := s.Verify(t.Context(), later); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestARotationThatWasCutOff leaves a private key that is in no list.
func TestARotationThatWasCutOff(t *testing.T) {
	dir, store := filepath.Join(t.TempDir(), "sign"), newShelf()
	s := open(t, Options{Dir: dir, Store: store})
	_, err := s.images.generate()
	check(t, err)
	again := open(t, Options{Dir: dir, Store: store})
	if again.PublicKey() != s.PublicKey() {
		t.Error("a key that was never in the list signs")
	}
	if files, err := os.ReadDir(filepath.Join(dir, "image")); err != nil || len(files) != 2 {
		t.Errorf("%v, %v", files, err)
	}
}

func TestKeysOfTheOperator(t *testing.T) {
	key := newKey(t, elliptic.P256())
	want, _, err := describe(&key.PublicKey)
	check(t, err)
	sealed, err := encrypted.Encrypt(pkcs8(t, key), []byte("open sesame"))
	check(t, err)
	for name, opt := range map[string]Options{
		"SEC 1":   {KeyFile: write(t, "key", sec1(t, key), 0o600)},
		"PKCS #8": {KeyFile: write(t, "key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8(t, key)}), 0o400)},
		"sigstore": {
			KeyFile:  write(t, "key", pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED SIGSTORE PRIVATE KEY", Bytes: sealed}), 0o600),
			Password: []byte("open sesame"),
		},
	} {
		store := newShelf()
		opt.Store, opt.Dir = store, filepath.Join(t.TempDir(), "sign")
		own := open(t, Options{Dir: opt.Dir, Store: store})
		before := store.image(t, "before")
		check(t, own.SignImage(t.Context(), before))
		s := open(t, opt)
		image := store.image(t, "a")
		check(t, s.SignImage(t.Context(), image))
		p, err := s.Verify(t.Context(), image)
		if err != nil || p.Attestations[0].Key != want || s.Keys()[0].Origin != OriginFile {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
		if _, err := s.Verify(t.Context(), before); err != nil {
			t.Errorf("%s: what Kiln's own key signed before: %v", name, err)
		}
		_, err = s.Rotate()
		refused(t, err, kiln.CodeRefused, "key of yours")
		back := open(t, Options{Dir: opt.Dir, Store: store})
		if back.Keys()[0].Origin != OriginOwn || back.Keys()[0].ID == own.Keys()[0].ID {
			t.Errorf("%s: without the operator's: %+v", name, back.Keys()[0])
		}
		if _, err := back.Verify(t.Context(), image); err != nil {
			t.Errorf("%s: what the operator's key signed: %v", name, err)
		}
	}
}

func TestKeysThatAreNone(t *testing.T) {
	key := newKey(t, elliptic.P256())
	sealed, err := encrypted.Encrypt(pkcs8(t, key), []byte("open sesame"))
	check(t, err)
	box := pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED COSIGN PRIVATE KEY", Bytes: sealed})
	for name, c := range map[string]struct {
		opt  Options
		want string
	}{
		"missing":     {Options{KeyFile: "/nowhere/key"}, "no such file"},
		"open to all": {Options{KeyFile: write(t, "key", sec1(t, key), 0o644)}, "others than its owner"},
		"wrong curve": {Options{KeyFile: write(t, "key", sec1(t, newKey(t, elliptic.P384())), 0o600)}, "not a key of ECDSA over P-256"},
		"no PEM":      {Options{KeyFile: write(t, "key", []byte("secret"), 0o600)}, "no private key in PEM"},
		"a folder":    {Options{KeyFile: t.TempDir()}, "not a file"},
		"no password": {Options{KeyFile: write(t, "key", box, 0o600)}, "no password"},
		"bad word":    {Options{KeyFile: write(t, "key", box, 0o600), Password: []byte("x")}, "cannot be decrypted"},
		"both":        {Options{KeyFile: "/x", Command: Command{Args: []string{"x"}}}, "both"},
		"large":       {Options{KeyFile: write(t, "key", make([]byte, maxKeyFile+1), 0o600)}, "more than 65536 bytes"},
		"no public":   {Options{Command: Command{Args: []string{"x"}, PublicKey: write(t, "key", sec1(t, key), 0o600)}}, "no PUBLIC KEY"},
	} {
		t.Run(name, func(t *testing.T) {
			c.opt.Store, c.opt.Dir = newShelf(), t.TempDir()
			_, err := New(c.opt)
			refused(t, err, kiln.CodeInvalid, c.want)
		})
	}
}

func TestALostOrSwappedPrivateKey(t *testing.T) {
	dir, store := filepath.Join(t.TempDir(), "sign"), newShelf()
	s := open(t, Options{Dir: dir, Store: store})
	image := store.image(t, "a")
	check(t, s.SignImage(t.Context(), image))
	path := filepath.Join(dir, "image", s.Keys()[0].ID+".pem")
	check(t, os.WriteFile(path, sec1(t, newKey(t, elliptic.P256())), 0o600))
	if _, err := New(Options{Dir: dir, Store: store}); err == nil {
		t.Error("another private key was taken")
	}
	check(t, os.Remove(path))
	again := open(t, Options{Dir: dir, Store: store})
	if _, err := again.Verify(t.Context(), image); err != nil || len(again.Keys()) != 2 {
		t.Errorf("%v, %+v", err, again.Keys())
	}
}

func TestSigningCommand(t *testing.T) {
	key := newKey(t, elliptic.P256())
	file := write(t, "key", sec1(t, key), 0o600)
	_, text, err := describe(&key.PublicKey)
	check(t, err)
	public := write(t, "pub", []byte(text), 0o644)
	self, err := os.Executable()
	check(t, err)
	command := func(how string) Command {
		return Command{Args: []string{self, "sign-for-a-test", how, file}, PublicKey: public, Digest: how == "digest"}
	}
	for _, how := range []string{"content", "digest"} {
		store := newShelf()
		s := open(t, Options{Store: store, Command: command(how)})
		image := store.image(t, "a")
		check(t, s.SignImage(t.Context(), image))
		n := len(store.blobs)
		check(t, s.SignImage(t.Context(), image))
		if p, err := s.Verify(t.Context(), image); err != nil || len(p.Attestations) != 1 || len(store.blobs) != n {
			t.Errorf("%s: %+v, %v; %d blobs, then %d", how, p, err, n, len(store.blobs))
		}
		if record, err := s.SignRecord("seal", nil); err != nil || s.CheckRecord("seal", nil, record) != nil {
			t.Errorf("%s: records need no command: %v", how, err)
		}
	}
	other := newKey(t, elliptic.P256())
	_, text, err = describe(&other.PublicKey)
	check(t, err)
	foreign := command("content")
	foreign.PublicKey = write(t, "pub", []byte(text), 0o644)
	hang := command("hang")
	hang.Timeout = 100 * time.Millisecond
	for want, c := range map[string]Command{
		"the token has gone": command("fail"), "more than 4096 bytes": command("flood"), "not base64": command("garbage"),
		"does not verify": foreign, "longer than": hang, "executable file not found": {Args: []string{"kiln-no-such-program"}, PublicKey: public},
	} {
		store := newShelf()
		s := open(t, Options{Store: store, Command: c})
		image := store.image(t, "a")
		n := len(store.blobs)
		err := s.SignImage(t.Context(), image)
		var k *kiln.Error
		if !errors.As(err, &k) || k.Code != kiln.CodeFailed || k.Hint == "" || len(store.blobs) != n {
			t.Errorf("%s: %v", want, err)
			continue
		}
		refused(t, k, kiln.CodeFailed, want)
	}
}
