package bake

import (
	"cmp"
	"maps"
	"path"
	"slices"

	"github.com/distribution/reference"

	"github.com/kilnproject/kiln"
)

// materials are what an image is made from. They follow from its inputs, so that
// an image that was baked before has them as well. Where something came from is
// said beside its digest and decides nothing.
func (in inputs) materials(image kiln.Image) []kiln.Material {
	var out []kiln.Material
	for _, name := range slices.Sorted(maps.Keys(in.Bases)) {
		m := kiln.Material{Kind: kiln.MaterialImage, Name: name, Digest: in.Bases[name]}
		if image.Dockerfile == nil || image.Dockerfile.Contexts[name] == "" {
			m.URI = referenceURI(name)
		}
		out = append(out, m)
	}
	for _, p := range in.Packages {
		out = append(out, kiln.Material{
			Kind: kiln.MaterialPackage, Name: p.Name + ":" + p.Architecture + "=" + p.Version, // as apt takes it
			URI: in.urls[p.Digest], Digest: p.Digest,
		})
	}
	if d := image.Dockerfile; d != nil {
		out = append(out,
			kiln.Material{Kind: kiln.MaterialContext, Name: path.Clean(d.Context), Digest: kiln.DigestJSON(kiln.Tree{Entries: in.Context})},
			kiln.Material{Kind: kiln.MaterialDockerfile, Name: path.Join(d.Context, d.File), Digest: in.Dockerfile})
	}
	slices.SortStableFunc(out, func(a, b kiln.Material) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Digest, b.Digest))
	})
	return out
}

// referenceURI is a reference with its registry and tag written out.
func referenceURI(ref string) string {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ""
	}
	return "oci://" + reference.TagNameOnly(named).String()
}

// urlsOf is where packages came from, by digest.
func urlsOf(packages []kiln.LockedPackage) map[kiln.Digest]string {
	out := make(map[kiln.Digest]string, len(packages))
	for _, p := range packages {
		out[p.Digest] = p.URL
	}
	return out
}
