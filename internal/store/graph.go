package store

import (
	"encoding/json"
	"errors"
	"fmt"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
)

// document is what Kiln follows of a manifest or an index.
type document struct {
	MediaType string               `json:"mediaType"`
	Config    *ocispec.Descriptor  `json:"config"`
	Layers    []ocispec.Descriptor `json:"layers"`
	Manifests []ocispec.Descriptor `json:"manifests"`
	Subject   *ocispec.Descriptor  `json:"subject"`
	Tree      kiln.Tree            `json:"tree"` // of an origin
}

// marks is a set of digests that are needed, grown from roots.
type marks struct {
	store   *Store
	set     map[kiln.Digest]bool
	missing []kiln.Digest // named directly and not there
}

func (s *Store) newMarks() *marks { return &marks{store: s, set: map[kiln.Digest]bool{}} }

// blob marks content that refers to nothing.
func (m *marks) blob(d kiln.Digest) { m.set[d] = true }

// root marks a manifest, an index or a plain blob and all that it refers to.
// What it is follows from its content. A root that is not there is recorded;
// one that cannot be read is an error, since what it needs is then unknown.
func (m *marks) root(d kiln.Digest) error {
	if m.set[d] {
		return nil
	}
	m.set[d] = true
	doc, err := m.store.parse(d)
	if errors.Is(err, kiln.ErrNotFound) {
		m.missing = append(m.missing, d)
		return nil
	}
	if err != nil {
		return err
	}
	return m.follow(doc)
}

func (m *marks) follow(doc document) error {
	if doc.MediaType == MediaTypeOrigin {
		m.files(doc.Tree)
		return nil
	}
	for _, l := range doc.Layers {
		m.blob(kiln.Digest(l.Digest))
	}
	// An index may name platforms that were never fetched.
	for _, child := range doc.Manifests {
		if err := m.optional(kiln.Digest(child.Digest)); err != nil {
			return err
		}
	}
	if doc.Config == nil {
		return nil
	}
	m.blob(kiln.Digest(doc.Config.Digest))
	if doc.Config.MediaType != MediaTypeBundleConfig {
		return nil
	}
	return m.bundleConfig(kiln.Digest(doc.Config.Digest))
}

// optional is root for what need not be there.
func (m *marks) optional(d kiln.Digest) error {
	n := len(m.missing)
	err := m.root(d)
	m.missing = m.missing[:n:n]
	return err
}

// bundleConfig marks what the bundle with that config names.
func (m *marks) bundleConfig(config kiln.Digest) error {
	f, err := m.store.openQuietly(config)
	if errors.Is(err, kiln.ErrNotFound) {
		m.missing = append(m.missing, config)
		return nil
	}
	if err != nil {
		return fmt.Errorf("mark bundle: %w", err)
	}
	raw, err := readDocument(f, config)
	if err != nil {
		return fmt.Errorf("mark bundle: %w", err)
	}
	b, err := decodeBundle(config, raw)
	if err != nil {
		return fmt.Errorf("mark bundle: %w", err)
	}
	return m.bundle(b)
}

// bundle marks the files, the .deb files and the images of a bundle.
func (m *marks) bundle(b kiln.Bundle) error {
	m.files(b.Files)
	for _, image := range b.Images {
		for _, deb := range image.Debs {
			m.blob(deb)
		}
		if err := m.root(image.Manifest); err != nil {
			return err
		}
	}
	return nil
}

// files marks the contents of a tree.
func (m *marks) files(t kiln.Tree) {
	for _, e := range t.Entries {
		if e.Digest != "" {
			m.blob(e.Digest)
		}
	}
}

// referrers marks those whose subject is marked, until there are no more
// (signatures, inventories, signatures of inventories).
func (m *marks) referrers(all map[kiln.Digest][]kiln.Digest) error {
	for before := -1; before != len(m.set); {
		before = len(m.set)
		for subject, referrers := range all {
			if !m.set[subject] {
				continue
			}
			for _, d := range referrers {
				if err := m.optional(d); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// parse reads a manifest or an index. Anything else that is whole is an empty
// document: a blob that refers to nothing.
func (s *Store) parse(d kiln.Digest) (document, error) {
	var doc document
	f, err := s.openQuietly(d)
	if err != nil {
		return doc, err
	}
	info, err := f.Stat()
	first := [1]byte{}
	n, _ := f.ReadAt(first[:], 0)
	if err != nil || n == 0 || first[0] != '{' || info.Size() > maxDocument {
		return doc, errors.Join(err, f.Close())
	}
	b, err := readDocument(f, d)
	if err != nil {
		return doc, err
	}
	if json.Unmarshal(b, &doc) != nil {
		return document{}, nil
	}
	return doc, nil
}
