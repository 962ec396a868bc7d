package sign

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/durable"
)

const (
	listName      = "keys.json"
	privateSuffix = ".pem" // after the id of the key
)

// ring is a folder of keys: the list of those whose signatures count, and the
// private half of the one that signs, where Kiln made it.
type ring struct {
	dir   string
	now   func() time.Time
	write sync.Mutex // one change at a time
	state atomic.Pointer[keys]
}

// keys are the keys of a ring at one moment.
type keys struct {
	all     []Key // oldest first; the last one signs
	trusted []trusted
	private signs
}

// trusted is a key whose signatures count, parsed.
type trusted struct {
	id  string
	key *ecdsa.PublicKey
}

func (k *keys) active() Key { return k.all[len(k.all)-1] }

// list is all keys, the newest first.
func (k *keys) list() []Key {
	out := slices.Clone(k.all)
	slices.Reverse(out)
	return out
}

// openRing opens a folder of keys. An operator's key signs from now on; without
// one a key of Kiln's own does, which is made where it is missing.
func openRing(dir string, operator signs, now func() time.Time) (*ring, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := errors.Join(os.Chmod(filepath.Dir(dir), 0o700), os.Chmod(dir, 0o700)); err != nil { //nolint:gosec // folders
		return nil, err
	}
	r := &ring{dir: dir, now: now}
	all, err := r.load()
	if err != nil {
		return nil, err
	}
	private := operator
	if private == nil {
		if private, err = r.own(all); err != nil {
			return nil, err
		}
	}
	if err := r.take(all, private); err != nil {
		return nil, err
	}
	return r, r.sweep()
}

func (r *ring) current() *keys { return r.state.Load() }

func (r *ring) path(name string) string { return filepath.Join(r.dir, name) }

// load reads the list of keys.
func (r *ring) load() ([]Key, error) {
	raw, err := readSecret(r.path(listName), maxKeyList)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", r.path(listName), err)
	}
	var all []Key
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, kiln.Errorf(kiln.CodeInvalid, "restore it from a backup; without it nothing that was signed is trusted", "read %s: %w", r.path(listName), err)
	}
	return all, nil
}

// own returns the private key of Kiln's own that signed last, or a new one.
func (r *ring) own(all []Key) (signs, error) {
	if len(all) > 0 && all[len(all)-1].Origin == OriginOwn {
		path := r.path(all[len(all)-1].ID + privateSuffix)
		text, err := readSecret(path, maxKeyFile)
		if err == nil {
			var key *ecdsa.PrivateKey
			if key, err = ParsePrivate(text, nil); err == nil {
				if id, _, derr := describe(&key.PublicKey); derr == nil && id == all[len(all)-1].ID {
					return inMemory{key, OriginOwn}, nil
				}
				err = errors.New("it is another key")
			}
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, kiln.Errorf(kiln.CodeInvalid, "restore the file from a backup, or remove it: then a new key is made, and what was signed stays valid", "key %s: %w", path, err)
		}
	}
	return r.generate()
}

// generate makes a private key and its file. It counts once it is in the list.
func (r *ring) generate() (signs, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	id, _, err := describe(&key.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if err := durable.Write(r.path(id+privateSuffix), text, 0o600); err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	return inMemory{key, OriginOwn}, nil
}

// take has a private key sign from now on, and writes the list where that
// changes it.
func (r *ring) take(all []Key, private signs) error {
	id, text, err := describe(private.public())
	if err != nil {
		return err
	}
	if len(all) == 0 || all[len(all)-1].ID != id || all[len(all)-1].Origin != private.origin() {
		if all, err = succeed(all, Key{ID: id, Public: text, Origin: private.origin(), Since: r.now().UTC().Truncate(time.Second)}); err != nil {
			return err
		}
		if err := r.save(all); err != nil {
			return err
		}
	}
	return r.publish(all, private)
}

// succeed puts a key in the place of the one that signs. A key that comes back
// keeps the day of its first use.
func succeed(all []Key, next Key) ([]Key, error) {
	all = slices.Clone(all)
	if len(all) > 0 && all[len(all)-1].Until.IsZero() {
		all[len(all)-1].Until = next.Since
	}
	for i, k := range all {
		if k.ID != next.ID {
			continue
		}
		if !k.Distrusted.IsZero() {
			return nil, kiln.Errorf(kiln.CodeRefused, "name another key", "key %s is not trusted any more since %s", short(k.ID), k.Distrusted.Format(time.DateOnly))
		}
		next.Since = k.Since
		all = slices.Delete(all, i, i+1)
		break
	}
	return append(all, next), nil
}

func (r *ring) save(all []Key) error {
	raw, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	return durable.Write(r.path(listName), append(raw, '\n'), 0o600)
}

// publish makes a list what signatures are compared with.
func (r *ring) publish(all []Key, private signs) error {
	k := &keys{all: all, private: private}
	for _, key := range all {
		public, err := ParsePublic([]byte(key.Public))
		if err != nil {
			return kiln.Errorf(kiln.CodeInvalid, "restore it from a backup", "%s: key %s: %w", r.path(listName), short(key.ID), err)
		}
		if id, _, err := describe(public); err != nil || id != key.ID {
			return kiln.Errorf(kiln.CodeInvalid, "restore it from a backup", "%s: key %s has another id", r.path(listName), short(key.ID))
		}
		if key.Distrusted.IsZero() {
			k.trusted = append(k.trusted, trusted{key.ID, public})
		}
	}
	slices.Reverse(k.trusted) // the newest signs most
	r.state.Store(k)
	return nil
}

// sweep removes private keys that do not sign: of what was rotated, and of
// changes that a kill cut off.
func (r *ring) sweep() error {
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return err
	}
	var errs []error
	active := r.current().active()
	for _, e := range entries {
		id, private := strings.CutSuffix(e.Name(), privateSuffix)
		if private && (id != active.ID || active.Origin != OriginOwn) {
			errs = append(errs, os.Remove(r.path(e.Name())))
		}
	}
	return errors.Join(errs...)
}

func (r *ring) rotate() (Key, error) {
	r.write.Lock()
	defer r.write.Unlock()
	before := r.current()
	if before.active().Origin != OriginOwn {
		return Key{}, kiln.Errorf(kiln.CodeRefused, "name another key in the configuration; the one before stays valid for what it signed", "images are signed by a key of yours, which Kiln does not change")
	}
	private, err := r.generate()
	if err != nil {
		return Key{}, err
	}
	if err := r.take(before.all, private); err != nil {
		return Key{}, err
	}
	return r.current().active(), r.sweep()
}

func (r *ring) distrust(id string) error {
	r.write.Lock()
	defer r.write.Unlock()
	k := r.current()
	all := slices.Clone(k.all)
	at := slices.IndexFunc(all, func(key Key) bool { return key.ID == id })
	switch {
	case at < 0:
		return kiln.Errorf(kiln.CodeNotFound, "name one of: "+strings.Join(ids(all), ", "), "there is no key %s", id)
	case at == len(all)-1:
		return kiln.Errorf(kiln.CodeConflict, "rotate it first", "key %s signs", short(id))
	}
	all[at].Distrusted = cmp.Or(all[at].Distrusted, r.now().UTC().Truncate(time.Second))
	if err := r.save(all); err != nil {
		return err
	}
	return r.publish(all, k.private)
}

func ids(all []Key) []string {
	var out []string
	for _, k := range all {
		out = append(out, k.ID)
	}
	return out
}

// short is the beginning of an id, for what people read.
func short(id string) string { return id[:min(12, len(id))] }

// sign signs content by the key that signs now.
func (k *keys) sign(content []byte) ([]byte, error) { return k.private.sign(content) }

// signer returns the id of the trusted key that signed content.
func (k *keys) signer(content, signature []byte) (string, bool) {
	for _, t := range k.trusted {
		if verifies(t.key, content, signature) {
			return t.id, true
		}
	}
	return "", false
}
