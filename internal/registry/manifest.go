package registry

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
)

// The media types of Docker, which clients still push.
const (
	typeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	typeDockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
	typeDockerForeign  = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
	typesForeign       = "application/vnd.oci.image.layer.nondistributable." // the first part of some
)

// find is the manifest that a request names, which the repository shows.
func (q *request) find() (kiln.Digest, error) {
	unknown := notFound("MANIFEST_UNKNOWN", "repository %s has no manifest %s", q.repository, q.reference)
	if tagName.MatchString(q.reference) {
		tags, err := q.g.Store.Tags(q.Context(), q.repository)
		if errors.Is(err, kiln.ErrNotFound) {
			return "", unknown
		}
		if err != nil {
			return "", err
		}
		if desc, ok := tags[q.reference]; ok {
			return kiln.Digest(desc.Digest), nil
		}
		return "", unknown
	}
	if !strings.Contains(q.reference, ":") {
		return "", unknown // neither a tag nor a digest
	}
	d, err := digestOf(q.reference)
	if err != nil {
		return "", err
	}
	ok, err := q.g.shows(q.Context(), q.repository, d)
	if err == nil && !ok {
		err = unknown
	}
	return d, err
}

// signature is the manifest that a tag sha256-HEX.sig names, by which older
// clients look for the signature of a manifest that the repository shows.
func (q *request) signature() (kiln.Digest, bool, error) {
	hex, ok := strings.CutPrefix(strings.TrimSuffix(q.reference, ".sig"), "sha256-")
	subject, err := kiln.ParseDigest("sha256:" + hex)
	if !ok || err != nil || !strings.HasSuffix(q.reference, ".sig") || q.g.Signature == nil {
		return "", false, nil
	}
	if ok, err := q.g.shows(q.Context(), q.repository, subject); err != nil || !ok {
		return "", false, err
	}
	d, err := q.g.Signature(q.Context(), subject)
	if errors.Is(err, kiln.ErrNotFound) {
		return "", false, nil
	}
	if err != nil {
		return "", false, err
	}
	ok, err = q.g.shows(q.Context(), q.repository, d)
	return d, ok, err
}

func (q *request) getManifest() error {
	d, err := q.find()
	if f := (*failure)(nil); errors.As(err, &f) && f.code == "MANIFEST_UNKNOWN" {
		if signed, ok, failed := q.signature(); failed != nil {
			return failed
		} else if ok {
			d, err = signed, nil
		}
	}
	if err != nil {
		return err
	}
	raw, err := q.g.Store.Document(q.Context(), d)
	if errors.Is(err, kiln.ErrNotFound) {
		return notFound("MANIFEST_UNKNOWN", "manifest %s is not there any more", d)
	}
	if err != nil {
		return err
	}
	doc, err := q.g.document(q.Context(), d)
	if err != nil {
		return err
	}
	h := q.w.Header()
	h.Set("Content-Type", doc.kind())
	h.Set("Content-Length", strconv.Itoa(len(raw)))
	h.Set("Docker-Content-Digest", string(d))
	h.Set("ETag", `"`+string(d)+`"`)
	q.w.WriteHeader(http.StatusOK)
	if q.Method != http.MethodHead {
		_, _ = q.w.Write(raw) // a client that is gone gets nothing
	}
	return nil
}

// kind is the media type, which the content need not say.
func (d *document) kind() string {
	switch {
	case d.MediaType != "":
		return d.MediaType
	case d.Manifests != nil:
		return ocispec.MediaTypeImageIndex
	}
	return ocispec.MediaTypeImageManifest
}

// putManifest takes a manifest once all that it refers to is there, and then
// its tags. A tag that is refused stays what it was; the manifest is there by
// its digest.
func (q *request) putManifest() error {
	raw, err := io.ReadAll(io.LimitReader(q.Body, maxManifest+1))
	switch {
	case err != nil:
		return badRequest("MANIFEST_INVALID", "the manifest broke off after %d bytes", len(raw))
	case len(raw) > maxManifest:
		return &failure{http.StatusRequestEntityTooLarge, "SIZE_INVALID", "a manifest has at most 4 MiB"}
	}
	d := kiln.DigestOf(raw)
	tags, err := q.tagsFor(d)
	if err != nil {
		return err
	}
	doc, err := parseManifest(raw, q.Header.Get("Content-Type"))
	if err != nil {
		return err
	}
	release, err := q.g.Store.Hold(q.Context())
	if err != nil {
		return err
	}
	defer release()
	if err := q.complete(doc); err != nil {
		return err
	}
	if _, err := q.g.Store.PutManifest(q.Context(), raw); err != nil {
		return err
	}
	if err := q.g.Store.Shelve(q.Context(), q.repository, d); err != nil {
		return err
	}
	if err := q.tag(tags, d); err != nil {
		return err
	}
	if doc.Subject != nil {
		q.w.Header().Set("OCI-Subject", string(doc.Subject.Digest))
	}
	return q.created("manifests", d)
}

// tagsFor are the tags that a manifest is pushed under: the reference where it
// is one, else those that the query names.
func (q *request) tagsFor(d kiln.Digest) ([]string, error) {
	tags := q.URL.Query()["tag"]
	if tagName.MatchString(q.reference) {
		tags = []string{q.reference}
	} else {
		want, err := digestOf(q.reference)
		if err != nil {
			return nil, err
		}
		if want != d {
			return nil, badRequest("DIGEST_INVALID", "the manifest has the digest %s", d)
		}
	}
	for _, tag := range tags {
		if !tagName.MatchString(tag) {
			return nil, badRequest("NAME_INVALID", "a tag has letters, digits and ._- and at most 128 of them")
		}
	}
	return tags, nil
}

// tag asks whether the image may have the tags, and then gives it them.
func (q *request) tag(tags []string, d kiln.Digest) error {
	for _, tag := range tags {
		if q.g.Pushed != nil {
			if err := q.g.Pushed(q.Context(), q.repository, tag, d); err != nil {
				return err
			}
		}
		if err := q.g.Store.TagPushed(q.Context(), q.repository, tag, d); err != nil {
			return err
		}
		q.w.Header().Add("OCI-Tag", tag)
	}
	return nil
}

// parseManifest reads what is said to be a manifest of a media type.
func parseManifest(raw []byte, contentType string) (*document, error) {
	doc := &document{}
	if err := json.Unmarshal(raw, doc); err != nil {
		return nil, badRequest("MANIFEST_INVALID", "the manifest is not valid JSON: %v", err)
	}
	said, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return nil, badRequest("MANIFEST_INVALID", "Content-Type: %v", err)
	}
	if doc.MediaType != "" && doc.MediaType != said {
		return nil, badRequest("MANIFEST_INVALID", "Content-Type is %s, and the manifest says %s", said, doc.MediaType)
	}
	return doc, doc.check(said)
}

// check refuses what is no manifest of a kind.
func (d *document) check(kind string) error {
	index := kind == ocispec.MediaTypeImageIndex || kind == typeDockerIndex
	switch {
	case !index && kind != ocispec.MediaTypeImageManifest && kind != typeDockerManifest:
		return badRequest("MANIFEST_INVALID", "manifests of type %s are not taken", kind)
	case d.SchemaVersion != 2:
		return badRequest("MANIFEST_INVALID", "schemaVersion is %d, and must be 2", d.SchemaVersion)
	case d.MediaType == "" && kind != ocispec.MediaTypeImageIndex && kind != ocispec.MediaTypeImageManifest:
		return badRequest("MANIFEST_INVALID", "a manifest of type %s says so", kind)
	case index && (d.Config != nil || d.Layers != nil || d.Manifests == nil):
		return badRequest("MANIFEST_INVALID", "an index has manifests, and neither config nor layers")
	case !index && (d.Config == nil || d.Manifests != nil):
		return badRequest("MANIFEST_INVALID", "a manifest has a config, and no manifests")
	case len(d.Layers) > maxEntries || len(d.Manifests) > maxEntries:
		return badRequest("MANIFEST_INVALID", "it refers to more than %d others", maxEntries)
	}
	all := slices.Concat(d.blobs(), d.Manifests)
	if d.Subject != nil {
		all = append(all, *d.Subject)
	}
	for _, one := range all {
		if _, err := kiln.ParseDigest(string(one.Digest)); err != nil || one.Size < 0 {
			return badRequest("MANIFEST_INVALID", "it refers to %q of %d bytes: a digest is sha256: and 64 lower-case hex digits", one.Digest, one.Size)
		}
	}
	return nil
}

// complete refuses a manifest that refers to what the repository does not show.
// Its subject need not be there.
func (q *request) complete(doc *document) error {
	for _, b := range doc.blobs() {
		foreign := b.MediaType == typeDockerForeign || strings.HasPrefix(b.MediaType, typesForeign)
		if err := q.hasBlob(b); err != nil && (!foreign || !isUnknown(err)) {
			return err
		}
	}
	for _, m := range doc.Manifests {
		d := kiln.Digest(m.Digest)
		ok, err := q.g.shows(q.Context(), q.repository, d)
		if err != nil {
			return err
		}
		if !ok {
			return missing(d)
		}
		if err := q.sized(d, m.Size); err != nil {
			return err
		}
	}
	depth, err := q.g.depth(q.Context(), doc, map[kiln.Digest]int{}, 0)
	if err == nil && depth > maxNesting {
		err = badRequest("MANIFEST_INVALID", "indexes are nested more than %d deep", maxNesting)
	}
	return err
}

func missing(d kiln.Digest) *failure {
	return notFound("MANIFEST_BLOB_UNKNOWN", "it refers to %s, which the repository does not have: push that first", d)
}

func isUnknown(err error) bool {
	var f *failure
	return errors.As(err, &f) && f.code == "MANIFEST_BLOB_UNKNOWN"
}

func (q *request) hasBlob(b ocispec.Descriptor) error {
	d := kiln.Digest(b.Digest)
	ok, err := q.g.showsBlob(q.Context(), q.repository, d)
	if err != nil {
		return err
	}
	if !ok {
		return missing(d)
	}
	return q.sized(d, b.Size)
}

// sized compares what a descriptor says with what is there.
func (q *request) sized(d kiln.Digest, size int64) error {
	f, err := q.g.Store.Open(d)
	if errors.Is(err, kiln.ErrNotFound) {
		return missing(d)
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err == nil && info.Size() != size {
		err = badRequest("MANIFEST_INVALID", "it says that %s has %d bytes, and it has %d", d, size, info.Size())
	}
	return err
}

// depth is how many indexes are within one another, each looked at once; 0 for
// a manifest. More than maxNesting is not counted.
func (g *Registry) depth(ctx context.Context, doc *document, known map[kiln.Digest]int, above int) (int, error) {
	if doc.Manifests == nil || above > maxNesting {
		return 0, nil
	}
	deepest := 0
	for _, m := range doc.Manifests {
		d := kiln.Digest(m.Digest)
		n, ok := known[d]
		if !ok {
			child, err := g.document(ctx, d)
			if err != nil {
				return 0, err
			}
			if n, err = g.depth(ctx, child, known, above+1); err != nil {
				return 0, err
			}
			known[d] = n
		}
		deepest = max(deepest, n)
	}
	return deepest + 1, nil
}

// deleteManifest takes a tag, or a manifest and all its tags, out of a
// repository. The store gives the bytes up when it collects.
func (q *request) deleteManifest() error {
	d, err := q.find()
	if err != nil {
		return err
	}
	ctx := q.Context()
	if tagName.MatchString(q.reference) {
		if err := q.g.Store.UntagPushed(ctx, q.repository, q.reference); err != nil {
			return err
		}
		return q.done(http.StatusAccepted)
	}
	own, err := q.g.Store.Manifests(ctx, q.repository)
	if err != nil {
		return err
	}
	if _, ok := own[d]; !ok {
		return &failure{http.StatusForbidden, "DENIED", "what Kiln says of an image goes with the image"}
	}
	if err := q.deletable(d); err != nil {
		return err
	}
	if err := q.g.Store.Unshelve(ctx, q.repository, d); err != nil {
		return err
	}
	if err := q.g.unlink(ctx, d); err != nil && !errors.Is(err, kiln.ErrNotFound) {
		return err
	}
	return q.done(http.StatusAccepted)
}

// unlink takes what is in no repository any more from what refers to its
// subject, unless Kiln says it itself.
func (g *Registry) unlink(ctx context.Context, d kiln.Digest) error {
	homes, err := g.Store.Homes(ctx, d)
	if err != nil || homes > 0 {
		return err
	}
	subject, err := g.subject(ctx, d)
	if err != nil {
		return err
	}
	if said, err := g.said(ctx, subject, d); said || err != nil {
		return err
	}
	return g.Store.Unlink(ctx, d)
}

// deletable refuses to delete what a release needs, and what is said of that.
func (q *request) deletable(d kiln.Digest) error {
	if q.g.Needed == nil {
		return nil
	}
	for range maxNesting {
		needed, err := q.g.Needed(q.Context(), d)
		if err != nil {
			return err
		}
		if needed {
			return &failure{http.StatusForbidden, "DENIED", "a release needs " + string(d)}
		}
		if d, err = q.g.subject(q.Context(), d); err != nil || d == "" {
			return err
		}
	}
	return nil
}
