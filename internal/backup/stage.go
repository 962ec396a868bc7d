package backup

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"filippo.io/age"
	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
)

// StageName is the folder in a data directory in which a restore makes what the
// directory gets. While it is there, the directory is not whole.
const StageName = "restoring"

// Stage is what a data directory gets, beside it until Commit. It is for one
// goroutine.
type Stage struct {
	dir  string
	data *os.Root
	root *os.Root // of the stage
}

// roomSlack is left free on the disk.
const roomSlack = 64 << 20

// NewStage begins a restore into an empty data directory, which the caller has
// locked. Names in ignore may be there; what an earlier restore left, too.
func NewStage(dir string, ignore ...string) (*Stage, error) {
	data, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open the data directory: %w", err)
	}
	s := &Stage{dir: dir, data: data}
	if err := s.begin(ignore); err != nil {
		return nil, errors.Join(err, data.Close())
	}
	return s, nil
}

func (s *Stage) begin(ignore []string) error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != StageName && !slices.Contains(ignore, e.Name()) {
			return kiln.Errorf(kiln.CodeConflict, "name an empty directory with --data, or move what is in this one away",
				"the data directory %s is not empty: it has %s", s.dir, e.Name())
		}
	}
	if err := s.data.RemoveAll(StageName); err != nil {
		return fmt.Errorf("remove what an earlier restore left: %w", err)
	}
	if err := s.data.Mkdir(StageName, 0o700); err != nil {
		return written(s.dir, err)
	}
	s.root, err = s.data.OpenRoot(StageName)
	return err
}

// Path is where a file of the data directory is until Commit.
func (s *Stage) Path(elements ...string) string {
	return filepath.Join(append([]string{s.dir, StageName}, elements...)...)
}

// Discard removes what was not committed.
func (s *Stage) Discard() error {
	var err error
	if s.root != nil {
		err = errors.Join(s.root.Close(), s.data.RemoveAll(StageName))
	}
	return errors.Join(err, s.data.Close())
}

// Unpacking says what of a backup is unpacked.
type Unpacking struct {
	// Identities decrypt the keys; without any they are left out.
	Identities []age.Identity
	// Want is the digest that the backup must have; empty for any.
	Want kiln.Digest
}

// Unpack reads a backup into the stage. When it returns an error, the stage is
// good for nothing but Discard.
func (s *Stage) Unpack(ctx context.Context, r io.Reader, u Unpacking) (Manifest, error) {
	begin := func(m Manifest) error {
		if err := expect(m, u.Want); err != nil {
			return err
		}
		return s.room(m.Size())
	}
	return read(ctx, r, begin, func(e Entry, content io.Reader) error {
		if e.Name == keysName {
			return s.keys(content, u.Identities)
		}
		return s.write(placeOf(e.Name), modeOf(e.Name), content)
	})
}

// placeOf is where an entry is in a data directory. Its name was checked.
func placeOf(name string) string {
	if hex, ok := strings.CutPrefix(name, blobPrefix); ok {
		return path.Join("store/blobs/sha256", hex)
	}
	if name == ledgerName {
		return "ledger/ledger.db"
	}
	return name
}

// modeOf is the mode of an entry's file: blobs never change.
func modeOf(name string) os.FileMode {
	if strings.HasPrefix(name, blobPrefix) {
		return 0o400
	}
	return 0o600
}

// room refuses what the disk has no room for.
func (s *Stage) room(bytes int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		return fmt.Errorf("look how much room there is: %w", err)
	}
	if free := int64(st.Bavail) * st.Bsize; free < bytes+roomSlack {
		return kiln.Errorf(kiln.CodeNoRoom, "free some space, or name a directory on another disk with --data",
			"the disk of %s has %d MiB free, and the backup needs %d", s.dir, free>>20, (bytes+roomSlack)>>20)
	}
	return nil
}

// write writes one file, and the folders above it.
func (s *Stage) write(name string, mode os.FileMode, content io.Reader) error {
	if err := s.root.MkdirAll(path.Dir(name), 0o700); err != nil {
		return written(name, err)
	}
	f, err := s.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return written(name, err)
	}
	_, err = io.Copy(f, content)
	return written(name, errors.Join(err, f.Close()))
}

// written explains an error of writing.
func written(name string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return kiln.Errorf(kiln.CodeNoRoom, "free some space or inodes, or name a directory on another disk with --data; nothing was put in place", "restore %s: the disk is full: %w", name, err)
	default:
		return fmt.Errorf("restore %s: %w", name, err)
	}
}

// keys writes the keys, where there is an identity for them. Those of the
// gateway belong to its user.
func (s *Stage) keys(sealed io.Reader, identities []age.Identity) error {
	if len(identities) == 0 {
		_, err := io.Copy(io.Discard, sealed)
		return err
	}
	keys, err := unseal(sealed, identities)
	if err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, sealed); err != nil {
		return err
	}
	for _, k := range keys {
		if err := s.write(k.Path, 0o600, strings.NewReader(string(k.Content))); err != nil {
			return err
		}
		if err := s.own(k); err != nil {
			return err
		}
	}
	return nil
}

// own gives a key of the gateway, and the folders above it, to its user.
func (s *Stage) own(k Key) error {
	if os.Geteuid() != 0 || !strings.HasPrefix(k.Path, "gateway/") {
		return nil
	}
	for name := k.Path; name != "."; name = path.Dir(name) {
		if err := s.root.Lchown(name, k.UID, k.GID); err != nil {
			return written(name, err)
		}
	}
	return nil
}

// Fetch copies blobs that the backup only refers to from the folder of another
// store, and returns those that are not there.
func (s *Stage) Fetch(ctx context.Context, blobs []Blob, store string) ([]Blob, error) {
	if store == "" || len(blobs) == 0 {
		return blobs, nil
	}
	root, err := os.OpenRoot(filepath.Join(store, "blobs", "sha256"))
	if err != nil {
		return nil, kiln.Errorf(kiln.CodeInvalid, "it is the folder store of a data directory, or another OCI image layout", "%s is no store: %w", store, err)
	}
	defer func() { _ = root.Close() }()
	var missing []Blob
	for _, b := range blobs {
		err := s.fetch(ctx, b, root)
		if errors.Is(err, os.ErrNotExist) {
			missing = append(missing, b)
			continue
		}
		if err != nil {
			return nil, err
		}
	}
	return missing, nil
}

func (s *Stage) fetch(ctx context.Context, b Blob, from *os.Root) error {
	f, err := from.Open(b.Digest.Hex())
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	name, sum := blobPrefix+b.Digest.Hex(), sha256.New()
	if err := s.write(placeOf(name), modeOf(name), io.TeeReader(within(ctx, io.LimitReader(f, b.Size+1)), sum)); err != nil {
		return err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != b.Digest.Hex() {
		return kiln.Errorf(kiln.CodeInvalid, "copy it again", "blob %s of that store is damaged: its digest is sha256:%s", b.Digest, got)
	}
	return nil
}

// Commit makes the stage durable and puts it in place, the ledger last: without
// it a data directory is one of which history tells nothing.
func (s *Stage) Commit() error {
	f, err := s.data.Open(".")
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return written(s.dir, err)
	}
	entries, err := os.ReadDir(s.Path())
	if err != nil {
		return err
	}
	slices.SortFunc(entries, func(a, b os.DirEntry) int { return rank(a.Name()) - rank(b.Name()) })
	for _, e := range entries {
		if err := s.data.Rename(path.Join(StageName, e.Name()), e.Name()); err != nil {
			return written(e.Name(), err)
		}
	}
	return errors.Join(s.root.Close(), s.data.Remove(StageName), f.Sync(), s.data.Close())
}

// rank orders what is put in place.
func rank(name string) int {
	if name == "ledger" {
		return 1
	}
	return 0
}

// Unfinished refuses a data directory in which a restore was ended.
func Unfinished(dir string) error {
	if _, err := os.Lstat(filepath.Join(dir, StageName)); err != nil {
		return gone(err)
	}
	return kiln.Errorf(kiln.CodeConflict, "empty the directory and restore again",
		"a restore into the data directory %s did not come to its end", dir)
}
