package registry

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/durable"
)

// loose lists blobs that were pushed to a repository, so that they can be read
// there before a manifest refers to them: empty files, <hash of the
// repository>/<hex of the blob>, whose time is that of the push.
type loose struct{ dir string }

func (l loose) path(repository string, d kiln.Digest) string {
	sum := sha256.Sum256([]byte(repository))
	return filepath.Join(l.dir, hex.EncodeToString(sum[:]), d.Hex())
}

func (l loose) add(repository string, d kiln.Digest) error {
	path := l.path(repository, d)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	now := time.Now()
	return errors.Join(f.Close(), os.Chtimes(path, now, now), durable.SyncFolder(filepath.Dir(path)), durable.SyncFolder(l.dir))
}

func (l loose) has(repository string, d kiln.Digest, since time.Time) bool {
	info, err := os.Lstat(l.path(repository, d))
	return err == nil && info.ModTime().After(since)
}

// remove forgets a blob. One that is not listed is no error.
func (l loose) remove(repository string, d kiln.Digest) error {
	if err := os.Remove(l.path(repository, d)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// sweep forgets what was pushed before a time.
func (l loose) sweep(before time.Time) error {
	folders, err := os.ReadDir(l.dir)
	if err != nil {
		return err
	}
	for _, folder := range folders {
		dir := filepath.Join(l.dir, folder.Name())
		files, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, f := range files {
			if info, err := f.Info(); err == nil && info.ModTime().Before(before) {
				_ = os.Remove(filepath.Join(dir, f.Name())) // the next sweep tries again
			}
		}
		_ = os.Remove(dir) // one that is not empty stays
	}
	return nil
}

// blob opens a blob that the repository shows.
func (q *request) blob() (*os.File, kiln.Digest, error) {
	d, err := digestOf(q.reference)
	if err != nil {
		return nil, "", err
	}
	unknown := notFound("BLOB_UNKNOWN", "repository %s has no blob %s", q.repository, d)
	ok, err := q.g.showsBlob(q.Context(), q.repository, d)
	if err != nil {
		return nil, "", err
	}
	if !ok {
		return nil, "", unknown
	}
	f, err := q.g.Store.Open(d)
	if errors.Is(err, kiln.ErrNotFound) {
		return nil, "", unknown
	}
	return f, d, err
}

func (q *request) getBlob() error {
	f, d, err := q.blob()
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	h := q.w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Docker-Content-Digest", string(d))
	h.Set("ETag", `"`+string(d)+`"`)
	h.Set("Cache-Control", "private, max-age=31536000, immutable")
	http.ServeContent(q.w, q.Request, "", time.Time{}, f)
	return nil
}

// deleteBlob forgets that a blob was pushed to a repository. One that a manifest
// there refers to can be read until the manifest is deleted, too. The store
// gives its bytes up when it collects.
func (q *request) deleteBlob() error {
	f, d, err := q.blob()
	if err != nil {
		return err
	}
	_ = f.Close()
	own, err := q.g.Store.Manifests(q.Context(), q.repository)
	if err != nil {
		return err
	}
	for m := range own {
		if !q.g.has(q.Context(), m, d) {
			continue
		}
		if err := q.deletable(m); err != nil {
			return err
		}
	}
	if err := q.g.loose.remove(q.repository, d); err != nil {
		return err
	}
	return q.done(http.StatusAccepted)
}
