package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"mime"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/durable"
)

// Which manifests refer to which is in referrers/<hex of the subject>/<hex of
// the referrer>, empty files whose names say it all. The manifests are the
// truth and the files are found from them again where they are missing:
// referrersWhole is written once all of them are there.
const (
	referrersFolder = "referrers"
	referrersWhole  = "whole"
)

// maxManifest is the size in bytes of the largest manifest that others take
// (distribution-spec, pushing manifests).
const maxManifest = 4 << 20

// Referrer is what is said about a manifest, beside it: a signature, an
// inventory, a verdict.
type Referrer struct {
	ArtifactType string // a media type
	Annotations  map[string]string
	Layers       []ReferrerLayer // none is a statement without content
}

// ReferrerLayer is one content of a referrer.
type ReferrerLayer struct {
	MediaType   string
	Annotations map[string]string
	Content     []byte
}

// PutReferrer writes an artifact manifest that refers to a manifest of the
// store, and returns its digest, which follows from the arguments alone. It is
// durable, and found by Referrers, when PutReferrer returns; not before all of
// it is durable. It lives as long as its subject does. What of it was there
// already and is damaged is mended.
func (s *Store) PutReferrer(ctx context.Context, subject kiln.Digest, r Referrer) (kiln.Digest, error) {
	if err := r.check(); err != nil {
		return "", fmt.Errorf("put referrer of %s: %w", subject, err)
	}
	release, err := s.Hold(ctx)
	if err != nil {
		return "", err
	}
	defer release()
	of, err := s.describe(subject)
	if err != nil {
		return "", fmt.Errorf("put referrer: %w", err)
	}
	manifest, err := json.Marshal(r.manifest(of))
	if err != nil {
		return "", fmt.Errorf("put referrer of %s: %w", subject, err)
	}
	contents := [][]byte{ocispec.DescriptorEmptyJSON.Data}
	for _, l := range r.Layers {
		contents = append(contents, l.Content)
	}
	if err := s.putMissing(ctx, contents); err != nil {
		return "", fmt.Errorf("put referrer of %s: %w", subject, err)
	}
	return s.PutManifest(ctx, manifest)
}

func (r Referrer) check() error {
	for _, t := range r.types() {
		if _, _, err := mime.ParseMediaType(t); err != nil || !strings.Contains(t, "/") {
			return kiln.Errorf(kiln.CodeInvalid, "", "%q is no media type", t)
		}
	}
	return nil
}

func (r Referrer) types() []string {
	types := []string{r.ArtifactType}
	for _, l := range r.Layers {
		types = append(types, l.MediaType)
	}
	return types
}

// manifest is the referrer as OCI has it (manifest.md, guidelines for artifact
// usage).
func (r Referrer) manifest(subject ocispec.Descriptor) ocispec.Manifest {
	empty := ocispec.DescriptorEmptyJSON
	empty.Data = nil
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: r.ArtifactType,
		Config: empty, Subject: &subject, Annotations: r.Annotations,
	}
	for _, l := range r.Layers {
		d := describe(l.MediaType, l.Content)
		d.Annotations = l.Annotations
		m.Layers = append(m.Layers, d)
	}
	if len(m.Layers) == 0 {
		m.Layers = []ocispec.Descriptor{empty}
	}
	return m
}

// putMissing stores contents, those alone that are not there whole.
func (s *Store) putMissing(ctx context.Context, contents [][]byte) error {
	batch := s.NewBatch()
	defer batch.Discard()
	for _, c := range contents {
		d := kiln.DigestOf(c)
		if s.Verify(ctx, d) == nil {
			continue
		}
		if _, _, err := batch.Put(ctx, bytes.NewReader(c), d); err != nil {
			return err
		}
	}
	return batch.Commit(ctx)
}

// PutManifest stores a manifest or an index and, where it has a subject, lists
// it among the subject's referrers. The subject need not be in the store. Both
// are durable when PutManifest returns. Whether the rest of what it names is
// there is for the caller to know.
func (s *Store) PutManifest(ctx context.Context, raw []byte) (kiln.Digest, error) {
	d := kiln.DigestOf(raw)
	if len(raw) > maxManifest {
		return "", kiln.Errorf(kiln.CodeInvalid, "keep what is large in a layer", "manifest %s has %d bytes, at most %d", d, len(raw), maxManifest)
	}
	release, err := s.Hold(ctx)
	if err != nil {
		return "", err
	}
	defer release()
	if err := s.putMissing(ctx, [][]byte{raw}); err != nil {
		return "", err
	}
	return d, s.link(d)
}

// link lists a manifest of the store among the referrers of its subject, if it
// has one. The caller holds the store.
func (s *Store) link(d kiln.Digest) error {
	subject, err := s.subject(d)
	if err != nil || subject == "" {
		return err
	}
	if err := s.listed(reference{subject, d}); err != nil {
		return fmt.Errorf("list referrer %s: %w", d, err)
	}
	root := filepath.Join(s.dir, referrersFolder)
	if err := errors.Join(durable.SyncFolder(filepath.Join(root, subject.Hex())), durable.SyncFolder(root)); err != nil {
		return fmt.Errorf("list referrer %s: %w", d, err)
	}
	return nil
}

// listed makes the file of a reference, which a power cut may take.
func (s *Store) listed(r reference) error {
	dir := filepath.Join(s.dir, referrersFolder, r.subject.Hex())
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, r.referrer.Hex()), os.O_CREATE|os.O_RDONLY, 0o400)
	if err != nil {
		return err
	}
	return f.Close()
}

// subject is what a manifest of the store refers to; empty for nothing.
func (s *Store) subject(d kiln.Digest) (kiln.Digest, error) {
	doc, err := s.parse(d)
	if err != nil || !doc.refers() {
		return "", err
	}
	subject, err := kiln.ParseDigest(string(doc.Subject.Digest))
	if err != nil {
		return "", kiln.Errorf(kiln.CodeInvalid, "", "the subject of manifest %s: %w", d, err)
	}
	return subject, nil
}

// Unlink takes a manifest from the referrers of its subject. The manifest stays
// in the store until it is collected.
func (s *Store) Unlink(ctx context.Context, d kiln.Digest) error {
	release, err := s.Hold(ctx)
	if err != nil {
		return err
	}
	defer release()
	subject, err := s.subject(d)
	if err != nil || subject == "" {
		return err
	}
	return s.unlink(subject, d)
}

func (s *Store) unlink(subject, referrer kiln.Digest) error {
	dir := filepath.Join(s.dir, referrersFolder, subject.Hex())
	if err := os.Remove(filepath.Join(dir, referrer.Hex())); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("take referrer %s away: %w", referrer, err)
	}
	return nil
}

// kind is the media type of a manifest or an index, which its content need not
// say; empty for what is neither.
func (d document) kind() string {
	switch {
	case d.Config != nil && (d.MediaType == "" || d.MediaType == ocispec.MediaTypeImageManifest):
		return ocispec.MediaTypeImageManifest
	case d.Manifests != nil && (d.MediaType == "" || d.MediaType == ocispec.MediaTypeImageIndex):
		return ocispec.MediaTypeImageIndex
	case d.Config != nil || d.Manifests != nil:
		return d.MediaType // Docker's
	}
	return ""
}

// refers says whether a document is a manifest with a subject. Docker's have
// none.
func (d document) refers() bool {
	kind := d.kind()
	return d.Subject != nil && (kind == ocispec.MediaTypeImageManifest || kind == ocispec.MediaTypeImageIndex)
}

// Referrers lists the manifests that refer to a subject, by digest, with their
// artifact type and annotations. An artifact type leaves out those of others;
// empty leaves out none. Its cost is that of the subject's referrers, however
// many the store has. A subject that is not in the store may have some. One
// that is damaged is listed whatever was asked for, by its digest alone: what it
// says may be what matters, and what the others say still counts.
func (s *Store) Referrers(ctx context.Context, subject kiln.Digest, artifactType string) ([]ocispec.Descriptor, error) {
	if _, err := s.blobPath(subject); err != nil {
		return nil, err
	}
	if err := s.findReferrers(ctx); err != nil {
		return nil, err
	}
	all, err := s.referrersOf(subject)
	if err != nil {
		return nil, fmt.Errorf("list referrers of %s: %w", subject, err)
	}
	out := make([]ocispec.Descriptor, 0, len(all))
	for _, d := range all {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		desc, err := s.described.of(s, subject, d)
		switch {
		case errors.Is(err, kiln.ErrNotFound): // collected this moment, or by one that was killed
		case errors.Is(err, errDamaged):
			out = append(out, ocispec.Descriptor{Digest: digest.Digest(d)})
		case err != nil:
			return nil, fmt.Errorf("list referrers of %s: %w", subject, err)
		case artifactType == "" || desc.ArtifactType == artifactType:
			out = append(out, desc)
		}
	}
	return out, nil
}

// referrersOf lists the names in a subject's folder.
func (s *Store) referrersOf(subject kiln.Digest) ([]kiln.Digest, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, referrersFolder, subject.Hex()))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []kiln.Digest
	for _, e := range entries { // sorted by name
		if d, err := kiln.ParseDigest("sha256:" + e.Name()); err == nil {
			all = append(all, d)
		}
	}
	return all, nil
}

// descriptions remembers how referrers are described, as long as their
// manifests' files are those that were read. The zero value remembers nothing.
type descriptions struct {
	mu  sync.Mutex
	all map[[2]kiln.Digest]description // by subject and referrer
}

type description struct {
	file unix.Stat_t
	desc ocispec.Descriptor
}

// maxDescriptions bounds what is remembered: some hundred bytes each.
const maxDescriptions = 10_000

func (c *descriptions) of(s *Store, subject, d kiln.Digest) (ocispec.Descriptor, error) {
	path, err := s.blobPath(d)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	var file unix.Stat_t
	at := [2]kiln.Digest{subject, d}
	if unix.Lstat(path, &file) == nil {
		c.mu.Lock()
		known, ok := c.all[at]
		c.mu.Unlock()
		if ok && known.file.Ino == file.Ino && known.file.Ctim == file.Ctim && known.file.Size == file.Size {
			return known.desc, nil
		}
	}
	desc, err := s.describeReferrer(subject, d)
	if err != nil {
		return desc, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all == nil || len(c.all) >= maxDescriptions {
		c.all = map[[2]kiln.Digest]description{}
	}
	c.all[at] = description{file, desc}
	return desc, nil
}

// describeReferrer describes a referrer as a registry lists it
// (distribution-spec, listing referrers).
func (s *Store) describeReferrer(subject, d kiln.Digest) (ocispec.Descriptor, error) {
	raw, err := s.document(d)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	var m struct {
		document
		ArtifactType string            `json:"artifactType"`
		Annotations  map[string]string `json:"annotations"`
	}
	if err := json.Unmarshal(raw, &m); err != nil || !m.refers() || kiln.Digest(m.Subject.Digest) != subject {
		return ocispec.Descriptor{}, kiln.Errorf(kiln.CodeNotFound, "", "%s does not refer to %s", d, subject)
	}
	desc := ocispec.Descriptor{MediaType: m.kind(), Digest: digest.Digest(d), Size: int64(len(raw)), ArtifactType: m.ArtifactType, Annotations: m.Annotations}
	if desc.ArtifactType == "" && m.Config != nil {
		desc.ArtifactType = m.Config.MediaType
	}
	return desc, nil
}

// describe describes a manifest or an index of the store.
func (s *Store) describe(d kiln.Digest) (ocispec.Descriptor, error) {
	raw, err := s.document(d)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	var doc document
	if err := json.Unmarshal(raw, &doc); err != nil || doc.kind() == "" {
		return ocispec.Descriptor{}, kiln.Errorf(kiln.CodeInvalid, "name the manifest of an image or a bundle", "%s is no manifest", d)
	}
	return describe(doc.kind(), raw), nil
}

// reference says that a referrer refers to a subject.
type reference struct{ subject, referrer kiln.Digest }

// references lists all of them, sorted.
func (s *Store) references(ctx context.Context) ([]reference, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, referrersFolder))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var all []reference
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		subject, err := kiln.ParseDigest("sha256:" + e.Name())
		if err != nil {
			continue
		}
		of, err := s.referrersOf(subject)
		if err != nil {
			return nil, err
		}
		for _, d := range of {
			all = append(all, reference{subject, d})
		}
	}
	return all, nil
}

// sweepReferences forgets the references of what is not in the store.
func (s *Store) sweepReferences(all []reference) error {
	var errs []error
	for _, r := range all {
		path, err := s.blobPath(r.referrer)
		if err != nil {
			return err
		}
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, s.unlink(r.subject, r.referrer))
		}
	}
	for _, r := range slices.CompactFunc(all, func(a, b reference) bool { return a.subject == b.subject }) {
		// One that is not empty stays.
		_ = os.Remove(filepath.Join(s.dir, referrersFolder, r.subject.Hex()))
	}
	return errors.Join(errs...)
}

// findReferrers lists all referrers of the store from their manifests, unless
// that was done and what came of it is there. A store of an earlier version and
// one out of a backup have none listed.
func (s *Store) findReferrers(ctx context.Context) error {
	if _, err := os.Lstat(filepath.Join(s.dir, referrersFolder, referrersWhole)); err == nil {
		return nil
	}
	release, err := s.Hold(ctx)
	if err != nil {
		return err
	}
	defer release()
	if err := s.listReferrers(ctx); err != nil {
		return fmt.Errorf("find the referrers of the store: %w", err)
	}
	return nil
}

func (s *Store) listReferrers(ctx context.Context) error {
	root := filepath.Join(s.dir, referrersFolder)
	if err := os.MkdirAll(root, 0o700); err != nil {
		return err
	}
	all, err := s.blobs(ctx)
	if err != nil {
		return err
	}
	for d := range all {
		subject, err := s.subject(d)
		if err != nil || subject == "" {
			continue // what is damaged says nothing
		}
		if err := s.listed(reference{subject, d}); err != nil {
			return err
		}
	}
	if len(all) > 0 {
		if err := s.Sync(); err != nil {
			return err
		}
	}
	return s.writeFile(filepath.Join(root, referrersWhole), nil)
}
