package control

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kilnproject/kiln"
)

// maxSubjects bounds what one request asks of.
const maxSubjects = 100

// Scan says what gates say of images as they are now. Each image that was not
// proved is inspected. Nothing is changed or kept, and what passes may run no
// more than before.
func (c *Control) Scan(ctx context.Context, r ScanRequest, progress func(kiln.Progress)) (ScanResult, error) {
	out := ScanResult{Images: []Scanned{}}
	switch {
	case len(r.Subjects) == 0 || len(r.Subjects) > maxSubjects:
		return out, kiln.Errorf(kiln.CodeInvalid, "name an image, an environment, or a path", "%d images were asked for: 1 to %d can be", len(r.Subjects), maxSubjects)
	case r.FailOn != "" && r.FailOn.Rank() < 1:
		return out, kiln.Errorf(kiln.CodeInvalid, "low, medium, high or critical", "%q is no severity", r.FailOn)
	}
	found, release, err := c.subjects(ctx, r.Subjects, r.Platform, r.Reach, r.Whole)
	if err != nil {
		return out, err
	}
	defer release()
	change := func(g *kiln.Gate) {
		if r.FailOn != "" {
			g.FailOn = r.FailOn
		}
		if r.NoDatabase {
			g.NoDatabase = kiln.PolicyWarn
		}
	}
	for _, s := range found {
		step := kiln.Progress{Stage: "scan", Subject: s.Name}
		c.offer(progress, step)
		began := c.now()
		v, err := c.looker.Look(ctx, s.Image, change)
		if err != nil {
			return out, fmt.Errorf("scan %s: %w", s.Name, err)
		}
		step.Done, step.Message, step.Took = true, string(v.Outcome), c.now().Sub(began)
		c.offer(progress, step)
		out.Images = append(out.Images, Scanned{s.Subject, s.Name, v})
	}
	return out, nil
}

// Inventory says what is in one image.
func (c *Control) Inventory(ctx context.Context, r InventoryRequest) (Described, error) {
	found, release, err := c.subjects(ctx, []string{r.Subject}, r.Platform, r.Reach, r.Whole)
	if err != nil {
		return Described{}, err
	}
	defer release()
	if len(found) > 1 {
		var names []string
		for _, s := range found {
			names = append(names, s.Image.Short()+" is "+s.Name)
		}
		return Described{}, kiln.Errorf(kiln.CodeInvalid, "name one by its digest: "+strings.Join(names, ", "), "%s has %d images, and an SBOM is of one", r.Subject, len(found))
	}
	i, err := c.looker.Describe(ctx, found[0].Image)
	if err != nil {
		return Described{}, fmt.Errorf("inspect %s: %w", found[0].Name, err)
	}
	return Described{found[0].Name, i}, nil
}

// subjects are the images that are named, each once. They stay in the store
// until release.
func (c *Control) subjects(ctx context.Context, all []string, platform string, reach kiln.Reach, whole bool) (found []namedImage, release func(), err error) {
	if c.images == nil || c.looker == nil {
		return nil, nil, kiln.Errorf(kiln.CodeNotFound, "", "this control plane looks into no images")
	}
	by := naming{reach: reach, whole: whole}
	if by.platform, err = orOwn(platform); err != nil {
		return nil, nil, err
	}
	if err := c.ready(ctx); err != nil {
		return nil, nil, err
	}
	if release, err = c.images.Hold(ctx); err != nil {
		return nil, nil, err
	}
	for _, text := range all {
		some, err := c.resolve(ctx, text, by)
		if err != nil {
			release()
			return nil, nil, err
		}
		for _, s := range some {
			if !slices.ContainsFunc(found, func(o namedImage) bool { return o.Image == s.Image }) {
				found = append(found, s)
			}
		}
	}
	if len(found) == 0 {
		release()
		return nil, nil, kiln.Errorf(kiln.CodeNotFound, "name an image", "%s runs no image", strings.Join(all, ", "))
	}
	return found, release, nil
}

func (c *Control) offer(progress func(kiln.Progress), p kiln.Progress) {
	if progress != nil {
		progress(p)
	}
}

const mendAdvisories = "kiln db update, or kiln db import FILE where there is no internet"

// unadvised says what is wrong with the database of vulnerabilities: of itself,
// and of each environment for the gates of what it runs.
func (c *Control) unadvised(ctx context.Context, all []EnvironmentStatus) (problems []string) {
	if c.advise == nil || c.looker == nil {
		return nil
	}
	a := c.advise()
	if a.Failed != "" {
		problems = append(problems, fmt.Sprintf("the database of vulnerabilities was not updated at %s: %s; %s", a.FailedAt.UTC().Format(time.DateTime+" UTC"), strings.TrimSuffix(a.Failed, "."), mendAdvisories))
	}
	live, needed := 0, false
	for i := range all {
		if all[i].Live == nil {
			continue
		}
		live++
		problem, needs := c.unadvisedRelease(ctx, *all[i].Live, a)
		needed = needed || needs
		if problem != "" {
			all[i].Problems = append(all[i].Problems, problem)
		}
	}
	if a.Digest == "" && (needed || live == 0) {
		problems = append(problems, "there is no database of vulnerabilities, and images with packages do not pass their gates: "+mendAdvisories)
	}
	return problems
}

// unadvisedRelease says why the gates of a release would not let its images pass
// again, as far as the database's age goes, and whether one needs a database.
func (c *Control) unadvisedRelease(ctx context.Context, r kiln.Release, a Advisories) (problem string, needs bool) {
	for d, service := range imagesOf(r) {
		v, judged, err := c.looker.Newest(ctx, d)
		if err != nil || !judged || v.Packages == 0 || v.Gate.NoDatabase == kiln.PolicyWarn {
			continue // whoever starts it says so
		}
		needs = true
		if age := c.now().Sub(a.Dated); a.Digest != "" && v.Gate.MaxDBAge > 0 && age > v.Gate.MaxDBAge {
			one := fmt.Sprintf("the database of vulnerabilities is %s old, and the gate of service %s allows %s: %s", hours(age), service, hours(v.Gate.MaxDBAge), mendAdvisories)
			if problem == "" || one < problem {
				problem = one
			}
		}
	}
	return problem, needs
}

// hours writes an age for people.
func hours(d time.Duration) string {
	if d >= 48*time.Hour {
		return fmt.Sprintf("%d days", int(d.Hours()/24))
	}
	return fmt.Sprintf("%dh", int(d.Hours()))
}
