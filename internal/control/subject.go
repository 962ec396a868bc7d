package control

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/kilnproject/kiln"
)

// namedImage is an image that somebody named.
type namedImage struct {
	Subject string // as it was named
	Name    string // of the image
	Image   kiln.Digest
}

// naming is how a subject is named, and by whom.
type naming struct {
	platform string
	reach    kiln.Reach
	whole    bool
}

// resolve finds the images that a subject names: ENVIRONMENT is its live
// release, ENVIRONMENT/NUMBER another one, and anything else an image of the
// store by its name, its digest, or the beginning of that.
func (c *Control) resolve(ctx context.Context, text string, by naming) ([]namedImage, error) {
	environment, number, numbered, err := splitRelease(text)
	if err != nil {
		return nil, err
	}
	if numbered {
		return c.ofRelease(ctx, text, environment, number, by)
	}
	known, err := c.ledger.Environments(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the environments: %w", err)
	}
	d, err := c.images.Find(ctx, text)
	switch {
	case err != nil && !errors.Is(err, kiln.ErrNotFound):
		return nil, err
	case slices.Contains(known, text) && err == nil && len(by.reach) == 0:
		return nil, kiln.Errorf(kiln.CodeConflict, text+":latest is the image, and kiln releases "+text+" lists what "+text+"/NUMBER can be",
			"%q is an image and an environment", text)
	case slices.Contains(known, text):
		return c.ofRelease(ctx, text, text, 0, by)
	}
	_, notDigest := kiln.ParseDigest(text)
	if len(by.reach) > 0 && (!by.whole || notDigest != nil) {
		return nil, kiln.Errorf(kiln.CodeRefused, "name an environment of the token, or use a token without environments",
			"%q is of no environment of this token", text)
	}
	if err != nil {
		hint := "kiln bake makes the images of a definition; a folder or an archive is named by its path, as ./image.tar"
		return nil, kiln.Errorf(kiln.CodeNotFound, hint, "there is no image and no environment %q", text)
	}
	image, err := c.images.Image(ctx, d, by.platform)
	name := text
	if notDigest == nil { // a whole digest is no name for people
		name = image.Short()
	}
	return []namedImage{{text, name, image}}, err
}

// splitRelease reads ENVIRONMENT/NUMBER.
func splitRelease(text string) (environment string, number int, ok bool, err error) {
	environment, digits, ok := strings.Cut(text, "/")
	if !ok || strings.Trim(digits, "0123456789") != "" {
		return text, 0, false, nil
	}
	if number, err = strconv.Atoi(digits); err != nil || number < 1 {
		return "", 0, false, kiln.Errorf(kiln.CodeInvalid, "ENVIRONMENT/NUMBER is a release, as production/3", "%q names no release", text)
	}
	return environment, number, true, nil
}

// ofRelease are the images that a release runs, by name; 0 is the live one.
func (c *Control) ofRelease(ctx context.Context, text, environment string, number int, by naming) ([]namedImage, error) {
	if err := within(by.reach, environment); err != nil {
		return nil, err
	}
	r, err := c.Release(ctx, environment, number)
	if err != nil {
		return nil, err
	}
	names := map[kiln.Digest]string{}
	bundle, err := c.images.Bundle(ctx, r.Bundle)
	if err != nil && !errors.Is(err, kiln.ErrNotFound) {
		return nil, err
	}
	for _, image := range bundle.Images {
		names[image.Manifest] = image.Name
	}
	var out []namedImage
	for d, service := range imagesOf(r) {
		name := names[d]
		if name == "" { // the bundle is gone
			name = "of service " + service
		}
		image, err := c.images.Image(ctx, d, by.platform)
		if errors.Is(err, kiln.ErrNotFound) {
			err = kiln.Errorf(kiln.CodeNotFound, "kiln up bakes it again", "image %s (%s) of release %d was collected", name, d.Short(), r.Number)
		}
		if err != nil {
			return nil, err
		}
		out = append(out, namedImage{text, name, image})
	}
	slices.SortFunc(out, func(a, b namedImage) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// imagesOf are the images that a release runs, each with a service that does.
func imagesOf(r kiln.Release) map[kiln.Digest]string {
	out := map[kiln.Digest]string{}
	for _, s := range slices.Backward(r.Services) {
		for _, d := range s.VerifyImages {
			out[d] = s.Template.Service
		}
		out[s.Template.Image] = s.Template.Service
	}
	return out
}

// orOwn is a platform, or the machine's where it is empty.
func orOwn(platform string) (string, error) {
	if platform == "" {
		return "linux/" + runtime.GOARCH, nil
	}
	if n := strings.Count(platform, "/"); n < 1 || n > 2 {
		return "", kiln.Errorf(kiln.CodeInvalid, "as linux/amd64", "%q is no platform", platform)
	}
	return platform, nil
}
