package main

import (
	"context"
	"os"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/bake"
	"github.com/kilnproject/kiln/internal/control"
	"github.com/kilnproject/kiln/internal/examine"
	"github.com/kilnproject/kiln/internal/gate"
	"github.com/kilnproject/kiln/internal/local/oci"
	"github.com/kilnproject/kiln/internal/prove"
	"github.com/kilnproject/kiln/internal/sign"
)

// againFolder is below the data directory: where releases are baked again. It is
// empty but for while that is done.
const againFolder = "again"

// openExaminer makes what looks at releases, of the parts that know how. What a
// killed one left is removed.
func (p *plane) openExaminer(ctx context.Context) (*examine.Examiner, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if err := p.baker.Clear(ctx, p.dir(againFolder)); err != nil {
		p.log.Warn("what was baked again is not removed", "error", err)
	}
	listers := workers(program)
	return examine.New(examine.Options{
		Store: p.store, Signed: signer{p.signer}, Proved: p.prover,
		Types: examine.Types{Provenance: string(sign.PredicateProvenance), SBOM: prove.TypeSBOM},
		Match: func(ctx context.Context, packages []kiln.Package) ([]kiln.Finding, string, error) {
			asked, err := advisories{p.advisories}.Match(ctx, packages)
			return asked.Findings, asked.Why, err
		},
		Change: gate.Change,
		Layers: func(ctx context.Context, image kiln.Digest, skip []kiln.Digest) ([]kiln.Layer, error) {
			return p.sealer.Entries(ctx, image, listers, skip)
		},
		Sealed: func(ctx context.Context, t kiln.Template) (kiln.Digest, bool, error) {
			return p.sealer.Check(ctx, t.Image, oci.MountPoints(t))
		},
		Rebuild: p.bakeAgain,
	}), nil
}

// bakeAgain bakes the images of a release from nothing. The definition is read
// from its bundle, with the values that the release has.
func (p *plane) bakeAgain(ctx context.Context, r examine.Rebuild) (map[string]kiln.Digest, error) {
	def, err := loader{}.Load(p.store.TreeFS(r.Bundle.Files), control.LoadOptions{
		Environment: r.Release.Environment, Branch: r.Release.Source.Branch, Values: r.Release.Values,
	})
	if err != nil {
		return nil, err
	}
	request := bake.AgainRequest{
		Dir: p.dir(againFolder), Images: def.Spec.Images, Files: r.Bundle.Files, Baked: map[string]kiln.Baked{}, Progress: r.Progress,
	}
	for _, image := range r.Bundle.Images {
		request.Baked[image.Name] = kiln.Baked{Name: image.Name, Manifest: image.Manifest, Inputs: r.Inputs[image.Name]}
	}
	result, err := p.baker.Again(ctx, request)
	if err != nil {
		return nil, err
	}
	out := map[string]kiln.Digest{}
	for name, image := range result.Images {
		out[name] = image.Manifest
	}
	return out, nil
}
