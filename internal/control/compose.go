package control

import (
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/kilnproject/kiln"
)

// services maps a spec's services to fleets of baked images. One whose image
// was not baked has a template without an image.
func services(s kiln.Spec, baked map[string]kiln.Baked) []kiln.ReleaseService {
	var out []kiln.ReleaseService
	for _, one := range s.Services {
		image := baked[one.Image]
		r := kiln.ReleaseService{
			Template: kiln.Template{
				Service: one.Name, Image: image.Manifest, Platform: image.Platform, Ports: one.Ports, Config: one.Config,
			},
			Count: one.Count, Rollout: one.Rollout,
		}
		for _, v := range one.Rollout.Verify {
			if v.Image == "" {
				continue
			}
			if r.VerifyImages == nil {
				r.VerifyImages = map[string]kiln.Digest{}
			}
			r.VerifyImages[v.Image] = baked[v.Image].Manifest
		}
		out = append(out, r)
	}
	return out
}

// missingServices maps the services whose image must be baked to its name.
func missingServices(s kiln.Spec, missing map[string]string) map[string]string {
	out := map[string]string{}
	for _, one := range s.Services {
		if _, ok := missing[one.Image]; ok {
			out[one.Name] = one.Image
		}
	}
	return out
}

// bundleOf is the bundle of a tree's definition and what was baked from it.
func bundleOf(tree kiln.Tree, s kiln.Spec, baked kiln.BakeResult) kiln.Bundle {
	want := map[string]bool{}
	for _, f := range s.Files {
		for p := path.Clean(f); p != "." && p != "/" && !want[p]; p = path.Dir(p) {
			want[p] = true
		}
	}
	var b kiln.Bundle
	for _, e := range tree.Entries {
		if want[e.Path] {
			b.Files.Entries = append(b.Files.Entries, e)
		}
	}
	for _, image := range s.Images {
		one := baked.Images[image.Name]
		b.Images = append(b.Images, kiln.BundleImage{
			Name: image.Name, Platform: one.Platform, Manifest: one.Manifest, Debs: one.Debs,
		})
	}
	slices.SortFunc(b.Images, func(x, y kiln.BundleImage) int { return strings.Compare(x.Name, y.Name) })
	return b
}

// quoteList writes names for a sentence.
func quoteList(names []string) string {
	quoted := make([]string, len(names))
	for i, n := range names {
		quoted[i] = strconv.Quote(n)
	}
	return strings.Join(quoted, " or ")
}
