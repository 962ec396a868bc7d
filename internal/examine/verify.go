package examine

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/kilnproject/kiln"
)

// bundleSubject is the subject of checks of the bundle itself.
const bundleSubject = "bundle"

// examination is one Verify.
type examination struct {
	*Examiner
	release kiln.Release
	proof   kiln.ReleaseProof
	inputs  map[string]kiln.Digest
}

// Verify checks all that was signed of a release. What does not hold is in the
// proof; the error is for what could not be looked at.
func (e *Examiner) Verify(ctx context.Context, r kiln.Release, rebuild bool, progress func(kiln.Progress)) (kiln.ReleaseProof, error) {
	if progress == nil {
		progress = func(kiln.Progress) {}
	}
	x := &examination{Examiner: e, release: r, inputs: map[string]kiln.Digest{}}
	x.proof = kiln.ReleaseProof{Environment: r.Environment, Release: r.Number, Bundle: r.Bundle, Checks: []kiln.Check{}}
	x.signature(ctx, bundleSubject, r.Bundle)
	bundle, err := e.opt.Store.Bundle(ctx, r.Bundle)
	if err != nil {
		x.add(bundleSubject, r.Bundle, kiln.CheckContent, kiln.OutcomeFail, fmt.Sprintf("it cannot be read: %v", err), "kiln up of the same definition makes it again; or restore the store from a backup")
	}
	for _, image := range bundle.Images {
		progress(kiln.Progress{Stage: "verify", Subject: image.Name, Step: "verify " + image.Name})
		x.image(ctx, image)
		if err := ctx.Err(); err != nil {
			return kiln.ReleaseProof{}, err
		}
		progress(kiln.Progress{Stage: "verify", Subject: image.Name, Step: "verify " + image.Name, Done: true})
	}
	if err == nil {
		x.released(bundle)
	}
	x.sealed(ctx)
	if rebuild && err == nil {
		if err := x.rebuild(ctx, bundle, progress); err != nil {
			return kiln.ReleaseProof{}, err
		}
	}
	x.proof.Holds = !slices.ContainsFunc(x.proof.Checks, func(c kiln.Check) bool { return c.Outcome == kiln.OutcomeFail })
	return x.proof, ctx.Err()
}

func (x *examination) add(subject string, d kiln.Digest, kind kiln.CheckKind, outcome kiln.Outcome, detail, hint string) {
	x.proof.Checks = append(x.proof.Checks, kiln.Check{Subject: subject, Digest: d, Kind: kind, Outcome: outcome, Detail: detail, Hint: hint})
}

// fail notes what does not hold. A hint of the error's own is the better one.
func (x *examination) fail(subject string, d kiln.Digest, kind kiln.CheckKind, err error, hint string) {
	var known *kiln.Error
	if errors.As(err, &known) {
		hint = cmp.Or(known.Hint, hint)
	}
	x.add(subject, d, kind, kiln.OutcomeFail, err.Error(), hint)
}

func (x *examination) signature(ctx context.Context, subject string, d kiln.Digest) {
	if err := x.opt.Signed.Verify(ctx, d); err != nil {
		x.fail(subject, d, kiln.CheckSignature, err, "kiln up makes a release that is signed")
		return
	}
	x.add(subject, d, kiln.CheckSignature, kiln.OutcomePass, "a trusted key signed it as it is", "")
}

// image checks what is said of an image.
func (x *examination) image(ctx context.Context, image kiln.BundleImage) {
	x.signature(ctx, image.Name, image.Manifest)
	x.content(ctx, image)
	x.provenance(ctx, image)
	x.verdict(ctx, image)
	x.inventory(ctx, image)
}

// content checks that all of an image is there, and is what its digests say: what
// is signed is the digest of its manifest.
func (x *examination) content(ctx context.Context, image kiln.BundleImage) {
	if err := x.opt.Store.Intact(ctx, image.Manifest); err != nil {
		x.add(image.Name, image.Manifest, kiln.CheckContent, kiln.OutcomeFail, err.Error(), "kiln up bakes it again; what is sealed is not touched by that")
		return
	}
	x.add(image.Name, image.Manifest, kiln.CheckContent, kiln.OutcomePass, "every blob is what its digest says", "")
}

// origin is what of a provenance is shown (slsa.dev/spec/v1.0/provenance).
type origin struct {
	Definition struct {
		Internal struct {
			Inputs kiln.Digest `json:"inputs"`
		} `json:"internalParameters"`
		Dependencies []struct {
			Name   string            `json:"name"`
			Digest map[string]string `json:"digest"`
		} `json:"resolvedDependencies"`
	} `json:"buildDefinition"`
}

func (x *examination) provenance(ctx context.Context, image kiln.BundleImage) {
	said, err := x.opt.Signed.Statements(ctx, image.Manifest, x.opt.Types.Provenance)
	var o origin
	if err == nil && len(said) > 0 {
		err = json.Unmarshal(said[0], &o)
	}
	switch {
	case err != nil:
		x.fail(image.Name, image.Manifest, kiln.CheckProvenance, err, "kiln bake says it again")
		return
	case len(said) == 0:
		x.fail(image.Name, image.Manifest, kiln.CheckProvenance, errors.New("no trusted key says where it came from"), "kiln bake says it again")
		return
	}
	x.inputs[image.Name] = o.Definition.Internal.Inputs
	commit, materials := "no commit", len(o.Definition.Dependencies)
	for _, d := range o.Definition.Dependencies {
		if c := d.Digest["gitCommit"]; d.Name == "source" && c != "" {
			commit, materials = "commit "+c[:min(12, len(c))], materials-1
		}
	}
	x.add(image.Name, image.Manifest, kiln.CheckProvenance, kiln.OutcomePass, fmt.Sprintf("%s, %d materials", commit, materials), "")
}

func (x *examination) verdict(ctx context.Context, image kiln.BundleImage) {
	all, err := x.opt.Proved.Verdicts(ctx, image.Manifest)
	switch {
	case err != nil:
		x.fail(image.Name, image.Manifest, kiln.CheckVerdict, err, "kiln up judges it")
	case len(all) == 0:
		x.fail(image.Name, image.Manifest, kiln.CheckVerdict, errors.New("no gate has judged it"), "kiln up judges it")
	default:
		v := all[len(all)-1]
		detail := fmt.Sprintf("%s on %s, gate %s", v.Outcome, v.At.UTC().Format("2006-01-02 15:04 UTC"), kiln.DigestJSON(v.Gate).Short())
		switch {
		case v.Database == "":
			detail += ", no database"
		case v.Dated.IsZero(): // there was nothing to ask it
			detail += ", database " + v.Database.Short()
		default:
			detail += fmt.Sprintf(", database %s of %s", v.Database.Short(), v.Dated.UTC().Format("2006-01-02"))
		}
		outcome, hint := kiln.OutcomePass, ""
		if v.Outcome != kiln.OutcomePass {
			outcome, hint = kiln.OutcomeFail, cmp.Or(v.Hint, "kiln scan "+string(image.Manifest)+" shows why")
		}
		x.add(image.Name, image.Manifest, kiln.CheckVerdict, outcome, detail, hint)
	}
}

func (x *examination) inventory(ctx context.Context, image kiln.BundleImage) {
	said, err := x.opt.Signed.Statements(ctx, image.Manifest, x.opt.Types.SBOM)
	if err == nil && len(said) == 0 {
		err = errors.New("no trusted key says what it has")
	}
	if err != nil {
		x.fail(image.Name, image.Manifest, kiln.CheckInventory, err, "kiln bake says it again")
		return
	}
	x.add(image.Name, image.Manifest, kiln.CheckInventory, kiln.OutcomePass, "there", "")
}

// released checks that what instances run from is what the bundle has.
func (x *examination) released(bundle kiln.Bundle) {
	for _, s := range x.release.Services {
		if !slices.ContainsFunc(bundle.Images, func(i kiln.BundleImage) bool { return i.Manifest == s.Template.Image }) {
			x.fail(bundleSubject, x.release.Bundle, kiln.CheckContent,
				fmt.Errorf("service %s runs image %s, which it has not", s.Template.Service, s.Template.Image.Short()), "make another release: kiln up")
		}
	}
}

// sealed checks the sealed files that instances run from, where there are any.
func (x *examination) sealed(ctx context.Context) {
	for _, s := range x.release.Services {
		name := "service " + s.Template.Service
		seal, sealed, err := x.opt.Sealed(ctx, s.Template)
		switch {
		case err != nil:
			x.fail(name, s.Template.Image, kiln.CheckSealed, err, "nothing starts from it: at the next start it is sealed again from layers that are verified; what runs may be of it: kiln down, then kiln up")
		case !sealed:
			x.add(name, s.Template.Image, kiln.CheckSealed, kiln.OutcomeUnknown, "not sealed at present", "")
		default:
			x.add(name, s.Template.Image, kiln.CheckSealed, kiln.OutcomePass, "the file is "+seal.Short()+", as its signed record says", "")
		}
	}
}

// rebuild bakes the release again and compares. What is needed and gone is no
// failure of the release's: it is said.
func (x *examination) rebuild(ctx context.Context, bundle kiln.Bundle, progress func(kiln.Progress)) error {
	again, err := x.opt.Rebuild(ctx, Rebuild{Release: x.release, Bundle: bundle, Inputs: x.inputs, Progress: progress})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		x.fail(bundleSubject, x.release.Bundle, kiln.CheckRebuild, err, "look into kilnd.log")
		return nil
	}
	for _, image := range bundle.Images {
		d := again[image.Name]
		if d == image.Manifest {
			x.add(image.Name, image.Manifest, kiln.CheckRebuild, kiln.OutcomePass, "baked again from nothing, it has the same digest", "")
			continue
		}
		entries := x.entries(ctx, image.Name, image.Manifest, d)
		detail := "baked again from nothing, it is " + d.Short()
		if len(entries.Entries) > 0 {
			first := entries.Entries[0]
			detail += fmt.Sprintf(": %d entries differ, first %s in layer %d (%s)", entries.Total, first.Path, first.Layer, first.Change)
		}
		x.add(image.Name, image.Manifest, kiln.CheckRebuild, kiln.OutcomeFail, detail, "find out which command of the Dockerfile writes what is another each time, or who changed the image")
		x.proof.Rebuilt = append(x.proof.Rebuilt, entries)
	}
	return nil
}
