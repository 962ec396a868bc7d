package advisory

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"time"

	"github.com/kilnproject/kiln"
)

// A bundle is a zip with the zips of ecosystems, stored and not packed again,
// bundle.json, which says what they must be, and bundle.json.sig: an ECDSA
// signature over its bytes (P-256 with SHA-256, ASN.1).
const (
	bundleManifest  = "bundle.json"
	bundleSignature = "bundle.json.sig"
	maxManifest     = 1 << 20 // bytes
	fromBundle      = "bundle"
)

// bundle is bundle.json.
type bundle struct {
	Format     int       `json:"format"`
	Dated      time.Time `json:"dated"`
	Ecosystems []bundled `json:"ecosystems"`
}

type bundled struct {
	Name    string      `json:"name"`
	File    string      `json:"file"`
	Digest  kiln.Digest `json:"digest"` // of the file
	Size    int64       `json:"size"`
	Records int         `json:"records"`
}

// WriteBundle writes the sources, which are looked through but not read record
// by record, as a bundle of that date.
func WriteBundle(ctx context.Context, w io.Writer, sources []Source, dated time.Time, key crypto.Signer) error {
	b := bundle{Format: formatVersion, Dated: dated.UTC()}
	z := zip.NewWriter(w)
	for i, s := range sources {
		if err := checkEcosystem(s.Ecosystem); err != nil {
			return err
		}
		if slices.ContainsFunc(sources[:i], func(other Source) bool { return other.Ecosystem == s.Ecosystem }) {
			return twice(s.Ecosystem)
		}
		entries, err := entriesOf(s)
		if err != nil {
			return err
		}
		one := bundled{Name: s.Ecosystem, File: fmt.Sprintf("%d.zip", i+1), Size: s.Size, Records: len(entries)}
		if one.Digest, err = store(ctx, z, one.File, s); err != nil {
			return fmt.Errorf("write the bundle: %w", err)
		}
		b.Ecosystems = append(b.Ecosystems, one)
	}
	text, err := json.MarshalIndent(b, "", "  ")
	if err != nil {
		return fmt.Errorf("write the bundle: %w", err)
	}
	sum := sha256.Sum256(text)
	signature, err := key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		return fmt.Errorf("sign the bundle: %w", err)
	}
	err = errors.Join(add(z, bundleManifest, bytes.NewReader(text)), add(z, bundleSignature, bytes.NewReader(signature)), z.Close())
	if err != nil {
		return fmt.Errorf("write the bundle: %w", err)
	}
	return nil
}

func store(ctx context.Context, z *zip.Writer, name string, s Source) (kiln.Digest, error) {
	hash := sha256.New()
	if err := add(z, name, io.TeeReader(io.NewSectionReader(s.Zip, 0, s.Size), hash)); err != nil {
		return "", err
	}
	return kiln.Digest("sha256:" + hex.EncodeToString(hash.Sum(nil))), ctx.Err()
}

func add(z *zip.Writer, name string, r io.Reader) error {
	w, err := z.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Store})
	if err == nil {
		_, err = io.Copy(w, r)
	}
	return err
}

// ImportBundle imports a bundle that was signed with the key's other half. With
// an error nothing of it is.
func (db *DB) ImportBundle(ctx context.Context, r io.ReaderAt, size int64, key *ecdsa.PublicKey) error {
	files, err := bundleFiles(r, size)
	if err != nil {
		return err
	}
	b, err := verified(files, key)
	if err != nil {
		return err
	}
	var sources []Source
	for _, one := range b.Ecosystems {
		s, err := open(ctx, r, files, one)
		if err != nil {
			return err
		}
		s.Dated = b.Dated
		sources = append(sources, s)
		delete(files, one.File)
	}
	for name := range files {
		if name != bundleManifest && name != bundleSignature {
			return badBundle("it has the file %q, which its manifest does not name", clip(name))
		}
	}
	db.writing.Lock()
	defer db.writing.Unlock()
	for _, s := range sources {
		if known, ok := db.manifest().Ecosystems[s.Ecosystem]; ok && s.Dated.Before(known.Dated) {
			return kiln.Errorf(kiln.CodeConflict, "make a newer bundle; kiln db status says what is there",
				"the bundle is of %s, and the advisories for %s are of %s already", s.Dated.Format(time.RFC3339), s.Ecosystem, known.Dated.Format(time.RFC3339))
		}
	}
	return db.importLocked(ctx, sources, nil)
}

func badBundle(format string, args ...any) error {
	return kiln.Errorf(kiln.CodeInvalid, "get the bundle again; what was there before still counts", "the bundle is refused: %w", fmt.Errorf(format, args...))
}

// bundleFiles are the files of a bundle by name.
func bundleFiles(r io.ReaderAt, size int64) (map[string]*zip.File, error) {
	z, err := zip.NewReader(r, size)
	if err != nil {
		return nil, badBundle("it cannot be read: %w", err)
	}
	if !slices.ContainsFunc(z.File, func(f *zip.File) bool { return f.Name == bundleManifest }) {
		return nil, badBundle("it has no %s: it was cut off, or is no bundle", bundleManifest) // of one that is cut off a zip in it is read
	}
	files := map[string]*zip.File{}
	for _, f := range z.File {
		if f.Name != path.Base(f.Name) || !f.Mode().IsRegular() || files[f.Name] != nil || f.Method != zip.Store {
			return nil, badBundle("it has the file %q, which is in a folder, there twice, or packed", clip(f.Name))
		}
		files[f.Name] = f
	}
	return files, nil
}

// verified reads the manifest once its signature is known to be good.
func verified(files map[string]*zip.File, key *ecdsa.PublicKey) (bundle, error) {
	var b bundle
	if key == nil || key.Curve != elliptic.P256() {
		return b, kiln.Errorf(kiln.CodeInvalid, "give the public key of who makes the bundles", "the key is not an ECDSA key on the curve P-256")
	}
	text, err := small(files, bundleManifest)
	if err != nil {
		return b, err
	}
	signature, err := small(files, bundleSignature)
	if err != nil {
		return b, err
	}
	sum := sha256.Sum256(text)
	if !ecdsa.VerifyASN1(key, sum[:], signature) {
		return b, kiln.Errorf(kiln.CodeRefused, "get the bundle again, or the key of who made it; what was there before still counts", "the bundle is refused: its signature is not by that key")
	}
	switch err := json.Unmarshal(text, &b); {
	case err != nil:
		return b, badBundle("its manifest cannot be read: %w", err)
	case b.Format != formatVersion:
		return b, badBundle("it has the format %d, and %d can be read", b.Format, formatVersion)
	case len(b.Ecosystems) == 0 || b.Dated.IsZero():
		return b, badBundle("its manifest names no ecosystem or no date")
	}
	return b, nil
}

func small(files map[string]*zip.File, name string) ([]byte, error) {
	f := files[name]
	if f == nil {
		return nil, badBundle("it has no %s", name)
	}
	r, err := f.Open()
	if err != nil {
		return nil, badBundle("%s: %w", name, err)
	}
	b, err := io.ReadAll(io.LimitReader(r, maxManifest+1))
	if err = errors.Join(err, r.Close()); err != nil || len(b) > maxManifest {
		return nil, badBundle("%s cannot be read, or has more than %d bytes: %w", name, maxManifest, err)
	}
	return b, nil
}

// open is an ecosystem's zip where it is in the bundle, once its digest is
// known to be right.
func open(ctx context.Context, r io.ReaderAt, files map[string]*zip.File, one bundled) (Source, error) {
	f := files[one.File]
	if f == nil || slices.Contains([]string{bundleManifest, bundleSignature}, one.File) {
		return Source{}, badBundle("the file %q of its manifest is not there", clip(one.File))
	}
	at, err := f.DataOffset()
	if err != nil || one.Size <= 0 || one.Records <= 0 || int64(f.CompressedSize64) != one.Size {
		return Source{}, badBundle("the file %q has not the size of the manifest", clip(one.File))
	}
	content := io.NewSectionReader(r, at, one.Size)
	hash := sha256.New()
	if n, err := io.Copy(hash, content); err != nil || n != one.Size {
		return Source{}, badBundle("the file %q cannot be read whole", clip(one.File))
	}
	if d := kiln.Digest("sha256:" + hex.EncodeToString(hash.Sum(nil))); d != one.Digest {
		return Source{}, badBundle("the file %q has the digest %s, and the manifest says %s", clip(one.File), d, one.Digest)
	}
	return Source{Ecosystem: one.Name, Zip: content, Size: one.Size, From: fromBundle, records: one.Records}, ctx.Err()
}
