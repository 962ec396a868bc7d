package bake

import (
	"slices"
	"strings"

	"github.com/kilnproject/kiln"
)

// needs returns the images that an image is made from, sorted.
func needs(image kiln.Image) []string {
	if image.Dockerfile == nil {
		return nil
	}
	var out []string
	for _, name := range image.Dockerfile.Contexts {
		out = append(out, name)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// checkGraph refuses images that cannot be put in an order: unknown names,
// repeats and cycles, and images that are not exactly one kind.
func checkGraph(images []kiln.Image) error {
	byName := make(map[string]kiln.Image, len(images))
	for _, i := range images {
		if _, ok := byName[i.Name]; ok {
			return kiln.Errorf(kiln.CodeInvalid, "Rename one of them.", "image %q is defined twice", i.Name)
		}
		kinds := 0
		for _, is := range []bool{i.Dockerfile != nil, i.Debian != nil, i.Reference != ""} {
			if is {
				kinds++
			}
		}
		if kinds != 1 {
			return kiln.Errorf(kiln.CodeInvalid, "Give it exactly one.",
				"image %q has %d of dockerfile, debian and reference", i.Name, kinds)
		}
		byName[i.Name] = i
	}
	done := map[string]bool{}
	for _, i := range images {
		if err := visit(byName, done, nil, i.Name); err != nil {
			return err
		}
	}
	return nil
}

func visit(byName map[string]kiln.Image, done map[string]bool, path []string, name string) error {
	if done[name] {
		return nil
	}
	if at := slices.Index(path, name); at >= 0 {
		circle := append(slices.Clone(path[at:]), name)
		return kiln.Errorf(kiln.CodeInvalid, "Remove one of these contexts.",
			"images are made from each other in a circle: %s", strings.Join(circle, " from "))
	}
	image, ok := byName[name]
	if !ok {
		return kiln.Errorf(kiln.CodeInvalid, "Define it, or correct the name.",
			"image %q is made from %q, which is not defined", path[len(path)-1], name)
	}
	path = append(path, name)
	for _, n := range needs(image) {
		if err := visit(byName, done, path, n); err != nil {
			return err
		}
		if from := byName[n]; from.Platform != image.Platform {
			return kiln.Errorf(kiln.CodeInvalid, "Give both the same platform.",
				"image %q is for %s and made from %q, which is for %s", name, image.Platform, n, from.Platform)
		}
	}
	done[name] = true
	return nil
}
