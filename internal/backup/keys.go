package backup

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"

	"filippo.io/age"

	"github.com/kilnproject/kiln"
)

// Key is a file of a data directory that is secret.
type Key struct {
	Path     string // below the data directory, with slashes
	Content  []byte
	UID, GID int // whose it is
}

// keyFolders are where a data directory has keys: of the API's authority, of the
// gateway's certificates and its account, and of signatures.
func keyFolders() []string { return []string{"api", "gateway/acme", "sign"} }

const (
	maxKeyFiles = 4096
	maxKeyFile  = 1 << 20
	maxKeyPath  = 512
)

var keyPath = regexp.MustCompile(`\A(api|gateway/acme|sign)(/[A-Za-z0-9_@+*-][A-Za-z0-9._@+*-]*)+\z`)

// isKey says whether a path is one that keys may have.
func isKey(p string) bool { return len(p) <= maxKeyPath && keyPath.MatchString(p) }

// ReadKeys reads the keys of a data directory. The gateway's folder belongs to
// its user: nothing is followed out of it, and nothing but files is read.
func ReadKeys(dir string) ([]Key, error) {
	var keys []Key
	for _, folder := range keyFolders() {
		root, err := os.OpenRoot(filepath.Join(dir, folder))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read the keys: %w", err)
		}
		found, err := keysBelow(root, folder, len(keys))
		_ = root.Close()
		if err != nil {
			return nil, fmt.Errorf("read the keys in %s: %w", folder, err)
		}
		keys = append(keys, found...)
	}
	return keys, nil
}

func keysBelow(root *os.Root, folder string, before int) ([]Key, error) {
	var keys []Key
	err := walk(root, ".", func(name string) error {
		key := Key{Path: path.Join(folder, name)}
		if !isKey(key.Path) {
			return nil // a lock, or something that is being written
		}
		if before+len(keys) == maxKeyFiles {
			return kiln.Errorf(kiln.CodeNoRoom, "", "there are more than %d files", maxKeyFiles)
		}
		ok, err := key.read(root, name)
		if ok {
			keys = append(keys, key)
		}
		return err
	})
	return keys, err
}

// walk calls each for every file, in the order of names. What vanishes
// meanwhile is not there.
func walk(root *os.Root, dir string, each func(name string) error) error {
	f, err := root.Open(dir)
	if err != nil {
		return gone(err)
	}
	entries, err := f.ReadDir(maxKeyFiles + 1)
	_ = f.Close()
	if err != nil && !errors.Is(err, io.EOF) {
		return gone(err)
	}
	for _, e := range entries {
		name := path.Join(dir, e.Name())
		switch {
		case e.IsDir() && strings.Count(name, "/") < 8:
			err = walk(root, name, each)
		case e.Type().IsRegular():
			err = each(name)
		default:
			err = nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// gone is err, unless it says that something is not there.
func gone(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// read reads the key's file; false when it is none.
func (k *Key) read(root *os.Root, name string) (bool, error) {
	// Not blocking: a pipe in its place must not hold anything up.
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return false, gone(err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return false, err
	}
	if owner, ok := info.Sys().(*syscall.Stat_t); ok {
		k.UID, k.GID = int(owner.Uid), int(owner.Gid)
	}
	k.Content, err = io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if len(k.Content) > maxKeyFile {
		return false, kiln.Errorf(kiln.CodeNoRoom, "", "%s has more than %d bytes", k.Path, maxKeyFile)
	}
	return err == nil, err
}

// ParseRecipients reads recipients: age1... each, or the lines of files of
// those.
func ParseRecipients(list []string) ([]age.Recipient, error) {
	var out []age.Recipient
	for _, text := range list {
		found, err := age.ParseRecipients(strings.NewReader(text))
		if err != nil {
			return nil, kiln.Errorf(kiln.CodeInvalid, "age-keygen makes a key and prints its recipient, age1...", "a recipient of the backup cannot be read: %w", err)
		}
		out = append(out, found...)
	}
	return out, nil
}

// ParseIdentities reads the file of an age identity.
func ParseIdentities(r io.Reader) ([]age.Identity, error) {
	found, err := age.ParseIdentities(r)
	if err != nil {
		return nil, kiln.Errorf(kiln.CodeInvalid, "it is the file that age-keygen wrote", "the identity cannot be read: %w", err)
	}
	return found, nil
}

// seal encrypts an archive of keys.
func seal(keys []Key, to []age.Recipient) ([]byte, error) {
	var out bytes.Buffer
	encrypted, err := age.Encrypt(&out, to...)
	if err != nil {
		return nil, err
	}
	archive := tar.NewWriter(encrypted)
	for _, k := range keys {
		err := archive.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: k.Path, Size: int64(len(k.Content)), Mode: 0o600, Uid: k.UID, Gid: k.GID})
		if err == nil {
			_, err = archive.Write(k.Content)
		}
		if err != nil {
			return nil, err
		}
	}
	if err := errors.Join(archive.Close(), encrypted.Close()); err != nil {
		return nil, err
	}
	if out.Len() > maxKeys {
		return nil, kiln.Errorf(kiln.CodeNoRoom, "", "they have more than %d bytes together", maxKeys)
	}
	return out.Bytes(), nil
}

// unseal decrypts keys. Anybody can encrypt something to a recipient, so that
// what is in there is believed as little as all else.
func unseal(sealed io.Reader, identities []age.Identity) ([]Key, error) {
	plain, err := age.Decrypt(sealed, identities...)
	if none := (*age.NoIdentityMatchError)(nil); errors.As(err, &none) {
		return nil, kiln.Errorf(kiln.CodeRefused, "name the identity of a recipient that the backup was made for, or leave --identity out: then the keys are not restored",
			"the keys of the backup are not encrypted to this identity")
	}
	if err != nil {
		return nil, broken("%s: %w", keysName, err)
	}
	archive := tar.NewReader(plain)
	var keys []Key
	for seen := map[string]bool{}; ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return keys, nil
		}
		if err != nil {
			return nil, broken("%s: %w", keysName, err)
		}
		if h.Typeflag != tar.TypeReg || !isKey(h.Name) || h.Size > maxKeyFile || seen[h.Name] || len(keys) == maxKeyFiles || h.Uid < 0 || h.Gid < 0 {
			return nil, broken("%s has %q, which is no key", keysName, h.Name)
		}
		seen[h.Name] = true
		content, err := io.ReadAll(archive)
		if err != nil {
			return nil, broken("%s: %w", keysName, err)
		}
		keys = append(keys, Key{Path: h.Name, Content: content, UID: h.Uid, GID: h.Gid})
	}
}
