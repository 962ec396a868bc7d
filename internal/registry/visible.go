package registry

import (
	"context"
	"encoding/json"
	"errors"
	"slices"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
)

// document is what the registry follows of a manifest or an index.
type document struct {
	SchemaVersion int                  `json:"schemaVersion"`
	MediaType     string               `json:"mediaType"`
	Config        *ocispec.Descriptor  `json:"config"`
	Layers        []ocispec.Descriptor `json:"layers"`
	Manifests     []ocispec.Descriptor `json:"manifests"`
	Subject       *ocispec.Descriptor  `json:"subject"`
}

// blobs are what a manifest refers to and that is no manifest.
func (d *document) blobs() []ocispec.Descriptor {
	if d.Config == nil {
		return d.Layers
	}
	return append([]ocispec.Descriptor{*d.Config}, d.Layers...)
}

// document reads a manifest of the store.
func (g *Registry) document(ctx context.Context, d kiln.Digest) (*document, error) {
	if known, ok := g.documents.Get(d); ok {
		return known, nil
	}
	raw, err := g.Store.Document(ctx, d)
	if err != nil {
		return nil, err
	}
	doc := &document{}
	if err := json.Unmarshal(raw, doc); err != nil {
		return nil, kiln.Errorf(kiln.CodeInvalid, "", "manifest %s cannot be read: %w", d, err)
	}
	g.documents.Add(d, doc)
	return doc, nil
}

// shows says whether a repository shows a manifest: it has it, or it shows what
// the manifest refers to, and that is for everywhere.
func (g *Registry) shows(ctx context.Context, repository string, d kiln.Digest) (bool, error) {
	own, err := g.Store.Manifests(ctx, repository)
	if err != nil {
		return false, err
	}
	for range maxNesting {
		if _, ok := own[d]; ok {
			return true, nil
		}
		subject, err := g.subject(ctx, d)
		if err != nil || subject == "" {
			return false, err
		}
		if ok, err := g.everywhere(ctx, subject, d); !ok || err != nil {
			return false, err
		}
		d = subject
	}
	return false, nil
}

// everywhere says whether every repository that shows a subject shows what
// refers to it: no repository has that for its own, or Kiln says it itself,
// whoever pushed a copy of it to another repository.
func (g *Registry) everywhere(ctx context.Context, subject, d kiln.Digest) (bool, error) {
	homes, err := g.Store.Homes(ctx, d)
	if err != nil || homes == 0 {
		return err == nil, err
	}
	return g.said(ctx, subject, d)
}

func (g *Registry) said(ctx context.Context, subject, d kiln.Digest) (bool, error) {
	if g.Said == nil || subject == "" {
		return false, nil
	}
	return g.Said(ctx, subject, d)
}

// subject is what a blob of the store refers to, where the store lists it as a
// referrer of that; empty for nothing.
func (g *Registry) subject(ctx context.Context, d kiln.Digest) (kiln.Digest, error) {
	doc, err := g.document(ctx, d)
	var known *kiln.Error
	if errors.As(err, &known) {
		return "", nil // not there, or no manifest
	}
	if err != nil || doc.Subject == nil {
		return "", err
	}
	subject := kiln.Digest(doc.Subject.Digest)
	all, err := g.Store.Referrers(ctx, subject, "")
	if errors.As(err, &known) {
		return "", nil
	}
	if err != nil || !slices.ContainsFunc(all, func(r ocispec.Descriptor) bool { return kiln.Digest(r.Digest) == d }) {
		return "", err
	}
	return subject, nil
}

// showsBlob says whether a repository shows a blob: it was pushed there of
// late, or a manifest that the repository shows refers to it.
func (g *Registry) showsBlob(ctx context.Context, repository string, d kiln.Digest) (bool, error) {
	if g.loose.has(repository, d, g.now().Add(-looseLife)) {
		return true, nil
	}
	return g.refersTo(ctx, repository, d)
}

// refersTo says whether a manifest that a repository shows refers to a blob.
func (g *Registry) refersTo(ctx context.Context, repository string, d kiln.Digest) (bool, error) {
	own, err := g.Store.Manifests(ctx, repository)
	if err != nil {
		return false, err
	}
	for m := range own {
		if g.has(ctx, m, d) {
			return true, nil
		}
	}
	for m := range own {
		if ok, err := g.saidOf(ctx, m, d, maxNesting); ok || err != nil {
			return ok, err
		}
	}
	return false, nil
}

// saidOf says whether what refers to a manifest, and is for everywhere, has a
// blob.
func (g *Registry) saidOf(ctx context.Context, subject, d kiln.Digest, depth int) (bool, error) {
	if depth == 0 {
		return false, nil
	}
	all, err := g.Store.Referrers(ctx, subject, "")
	var known *kiln.Error
	if errors.As(err, &known) {
		return false, nil // a damaged one hides no other manifest's
	}
	if err != nil {
		return false, err
	}
	for _, r := range all {
		m := kiln.Digest(r.Digest)
		ok, err := g.everywhere(ctx, subject, m)
		if err != nil {
			return false, err
		}
		if !ok {
			continue
		}
		if g.has(ctx, m, d) {
			return true, nil
		}
		if ok, err := g.saidOf(ctx, m, d, depth-1); ok || err != nil {
			return ok, err
		}
	}
	return false, nil
}

// has says whether a manifest refers to a blob. One that cannot be read refers
// to nothing.
func (g *Registry) has(ctx context.Context, manifest, d kiln.Digest) bool {
	doc, err := g.document(ctx, manifest)
	return err == nil && slices.ContainsFunc(doc.blobs(), func(b ocispec.Descriptor) bool { return kiln.Digest(b.Digest) == d })
}
