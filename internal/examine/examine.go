// Package examine looks at releases that were made: whether all that was signed
// of one still holds and it can be baked again, and what two of them differ in.
//
// It asks through small interfaces, changes nothing but that damaged blobs are
// dropped, and decides nothing about what may run.
package examine

import (
	"context"
	"encoding/json"
	"io/fs"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnproject/kiln"
)

// Store has bundles, their files and images.
type Store interface {
	Bundle(ctx context.Context, d kiln.Digest) (kiln.Bundle, error)
	Manifest(ctx context.Context, d kiln.Digest) (ocispec.Manifest, error)
	TreeFS(tree kiln.Tree) fs.FS
	// Intact says which blobs of an image are damaged or gone. A damaged one is
	// gone from then on.
	Intact(ctx context.Context, image kiln.Digest) error
}

// Signed says what trusted keys signed.
type Signed interface {
	// Verify says why a manifest is not signed by a trusted key; nil when it is.
	Verify(ctx context.Context, manifest kiln.Digest) error
	// Statements returns what was attested of a manifest with a type.
	Statements(ctx context.Context, manifest kiln.Digest, predicateType string) ([]json.RawMessage, error)
}

// Proved says what was found out about images.
type Proved interface {
	// Verdicts are what gates said, the newest last.
	Verdicts(ctx context.Context, image kiln.Digest) ([]kiln.Verdict, error)
	// Inventory is kiln.ErrNotFound for an image that has none.
	Inventory(ctx context.Context, image kiln.Digest) (kiln.Inventory, error)
}

// Types are the types of what is attested of an image.
type Types struct{ Provenance, SBOM string }

// Options are what an Examiner works with. All must be set.
type Options struct {
	Store  Store
	Signed Signed
	Proved Proved
	Types  Types
	// Match looks packages up among today's advisories. Why says why there is
	// nothing to be told.
	Match func(ctx context.Context, packages []kiln.Package) (found []kiln.Finding, why string, err error)
	// Change says which findings are new and which are gone.
	Change func(before, after []kiln.Finding) (introduced, fixed []kiln.Finding)
	// Layers lists what an image's layers have, but for those to skip.
	Layers func(ctx context.Context, image kiln.Digest, skip []kiln.Digest) ([]kiln.Layer, error)
	// Sealed verifies the sealed file that instances of a template run from; false
	// where there is none.
	Sealed func(ctx context.Context, t kiln.Template) (seal kiln.Digest, sealed bool, err error)
	// Rebuild bakes the images of a release again from nothing.
	Rebuild func(ctx context.Context, r Rebuild) (map[string]kiln.Digest, error)
}

// Rebuild asks for the images of a release to be baked again.
type Rebuild struct {
	Release kiln.Release
	Bundle  kiln.Bundle
	// Inputs are the digests of all that each image was made from, as its
	// provenance has them.
	Inputs   map[string]kiln.Digest
	Progress func(kiln.Progress)
}

// Examiner examines releases. Its methods may be called at once and again.
type Examiner struct{ opt Options }

// New makes an Examiner.
func New(o Options) *Examiner { return &Examiner{o} }
