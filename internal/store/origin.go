package store

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"

	"github.com/kilnproject/kiln"
)

// MediaTypeOrigin is in the document of an origin.
const MediaTypeOrigin = "application/vnd.kiln.origin.v1+json"

// originDocument is an origin as it is stored: one blob, which as a root of a
// collection keeps the files of its tree.
type originDocument struct {
	MediaType string `json:"mediaType"`
	kiln.Origin
}

// PutOrigin writes what a bundle was baked from and returns its digest. The
// tree's files must be in the store. One whose description has more than 16 MiB,
// which is about 100,000 files, is refused with kiln.CodeInvalid.
func (s *Store) PutOrigin(ctx context.Context, o kiln.Origin) (kiln.Digest, error) {
	if err := CheckTree(o.Tree); err != nil {
		return "", err
	}
	raw, err := json.Marshal(originDocument{MediaTypeOrigin, o})
	if err != nil {
		return "", fmt.Errorf("put origin: %w", err)
	}
	if len(raw) > maxDocument {
		return "", kiln.Errorf(kiln.CodeInvalid, "leave out what is not needed with .dockerignore",
			"what was baked has %d files: too many to keep their names", len(o.Tree.Entries))
	}
	d, _, err := s.Put(ctx, bytes.NewReader(raw), "")
	if err != nil {
		return "", fmt.Errorf("put origin: %w", err)
	}
	return d, nil
}

// Origin reads one back, with all files of its tree there. The error matches
// kiln.ErrNotFound where something of it was collected.
func (s *Store) Origin(_ context.Context, d kiln.Digest) (kiln.Origin, error) {
	raw, err := s.document(d)
	if err != nil {
		return kiln.Origin{}, fmt.Errorf("read origin: %w", err)
	}
	var doc originDocument
	if err := json.Unmarshal(raw, &doc); err != nil || doc.MediaType != MediaTypeOrigin {
		return kiln.Origin{}, kiln.Errorf(kiln.CodeInvalid, "", "%s is not the origin of a bundle", d)
	}
	if err := CheckTree(doc.Tree); err != nil {
		return kiln.Origin{}, fmt.Errorf("read origin %s: %w", d, err)
	}
	var files []kiln.Digest
	for _, e := range doc.Tree.Entries {
		if e.Digest != "" {
			files = append(files, e.Digest)
		}
	}
	if missing := s.Missing(files); len(missing) > 0 {
		return kiln.Origin{}, kiln.Errorf(kiln.CodeNotFound, "", "%d of the %d files of origin %s are not in the store", len(missing), len(files), d)
	}
	return doc.Origin, nil
}
