package prove

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kilnproject/kiln"
)

// Prove inventories, judges and signs the images of a request. An image that
// does not pass has a verdict that says so, and is not admitted.
func (p *Prover) Prove(ctx context.Context, r kiln.ProveRequest) (map[string]kiln.Verdict, error) {
	return p.each(ctx, r, p.prove)
}

// Foresee judges the images that were inventoried before. It writes nothing.
func (p *Prover) Foresee(ctx context.Context, r kiln.ProveRequest) (map[string]kiln.Verdict, error) {
	return p.each(ctx, r, func(ctx context.Context, image kiln.Image, baked kiln.Baked, r kiln.ProveRequest) (*kiln.Verdict, error) {
		_, seen, err := p.known(ctx, baked)
		if err != nil || seen == nil {
			return nil, err
		}
		v, err := p.judge(ctx, WhyPlan, image, baked, *seen, r)
		return &v, err
	})
}

// each calls do for the baked images, several at once.
func (p *Prover) each(ctx context.Context, r kiln.ProveRequest, do func(context.Context, kiln.Image, kiln.Baked, kiln.ProveRequest) (*kiln.Verdict, error)) (map[string]kiln.Verdict, error) {
	var mu sync.Mutex
	var work sync.WaitGroup
	out, failed := map[string]kiln.Verdict{}, map[string]error{}
	for _, image := range r.Images {
		baked, ok := r.Baked[image.Name]
		if !ok {
			continue
		}
		work.Go(func() {
			v, err := do(ctx, image, baked, r)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil:
				failed[image.Name] = fmt.Errorf("prove image %q: %w", image.Name, err)
			case v != nil:
				out[image.Name] = *v
			}
		})
	}
	work.Wait()
	if len(failed) == 0 {
		return out, nil
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(failed)) {
		errs = append(errs, failed[name])
	}
	return out, errors.Join(errs...)
}

func (p *Prover) prove(ctx context.Context, image kiln.Image, baked kiln.Baked, r kiln.ProveRequest) (*kiln.Verdict, error) {
	began := p.opt.Now()
	base, seen, err := p.known(ctx, baked)
	if err != nil {
		return nil, err
	}
	found := seen != nil
	if !found {
		tell(r, kiln.Progress{Stage: "prove", Subject: image.Name})
		if seen, err = p.inspect(ctx, baked.Manifest, base); err != nil {
			return nil, err
		}
	}
	v, err := p.judge(ctx, WhyRelease, image, baked, *seen, r)
	if err != nil {
		return nil, err
	}
	if !found {
		if err := p.opt.Signer.Attest(ctx, baked.Manifest, TypeInspection, seen); err != nil {
			return nil, err
		}
	}
	if err := p.attest(ctx, image, baked, *seen, v, r); err != nil {
		return nil, err
	}
	if !found {
		tell(r, kiln.Progress{Stage: "prove", Subject: image.Name, Done: true, Message: string(v.Outcome), Took: p.opt.Now().Sub(began)})
	}
	return &v, nil
}

func tell(r kiln.ProveRequest, n kiln.Progress) {
	if r.Progress != nil {
		r.Progress(n)
	}
}

// known is what an image stands on, and the inspection that was made of it
// before; nil for none.
func (p *Prover) known(ctx context.Context, baked kiln.Baked) (Base, *Inspection, error) {
	base, err := p.base(ctx, baked)
	if err != nil {
		return base, nil, err
	}
	all, err := p.inspections(ctx, baked.Manifest)
	if err != nil {
		return base, nil, err
	}
	for i := range slices.Backward(all) {
		if all[i].Base == base {
			return base, &all[i], nil
		}
	}
	return base, nil, nil
}

func (p *Prover) inspect(ctx context.Context, image kiln.Digest, base Base) (*Inspection, error) {
	release, err := take(ctx, p.slots)
	if err != nil {
		return nil, err
	}
	defer release()
	seen, err := p.watched(ctx, image, base)
	seen.Base = base
	return &seen, err
}

// watched inspects an image, and tells how long that took.
func (p *Prover) watched(ctx context.Context, image kiln.Digest, base Base) (Inspection, error) {
	began := p.opt.Now()
	seen, err := p.opt.Inspector.Inspect(ctx, image, base)
	p.opt.Observer.Inspected(p.opt.Now().Sub(began), err)
	return seen, err
}

// judge has an image judged by its gate.
func (p *Prover) judge(ctx context.Context, why Why, image kiln.Image, baked kiln.Baked, seen Inspection, r kiln.ProveRequest) (v kiln.Verdict, err error) {
	defer func() { p.opt.Observer.Judged(why, v.Outcome, err) }()
	asked, err := p.opt.Advisories.Match(ctx, seen.Inventory.Packages)
	if err != nil {
		return kiln.Verdict{}, fmt.Errorf("ask the advisories: %w", err)
	}
	ruled, err := p.opt.Rules(ctx, image, r)
	if err != nil {
		return kiln.Verdict{}, err
	}
	e := Evidence{
		Inventory: seen.Inventory, Asked: asked, Others: slices.Concat(seen.Marks, ruled), Scanners: map[string]string{}, VEX: map[string][]byte{},
	}
	for _, path := range image.Gate.VEX {
		e.VEX[path] = r.VEX[path]
	}
	if err := p.scan(ctx, baked.Manifest, image.Gate, &e); err != nil {
		return kiln.Verdict{}, err
	}
	if e.Signed, err = p.signed(ctx, baked.Manifest, image.Gate); err != nil {
		return kiln.Verdict{}, err
	}
	if len(image.Gate.SignedBy) > 0 && !overlap(e.Signed.By, image.Gate.SignedBy) {
		if err := p.ask(ctx, image, baked.Manifest, r.Resolved, why == WhyRelease, &e.Signed); err != nil {
			return kiln.Verdict{}, err
		}
	}
	return p.opt.Judge(image.Gate, e, p.opt.Now())
}

// signed is who signed an image, as far as that is known here. Where the gate
// does not ask, nobody is.
func (p *Prover) signed(ctx context.Context, image kiln.Digest, gate kiln.Gate) (out Signed, err error) {
	if len(gate.SignedBy) == 0 {
		return out, nil
	}
	out.Trusted = p.opt.Others.Names()
	out.By, err = p.opt.Others.Known(ctx, image)
	return out, err
}

// ask asks an image's registry who signed it. That it does not answer is
// evidence, too.
func (p *Prover) ask(ctx context.Context, image kiln.Image, manifest kiln.Digest, resolved kiln.Lock, keep bool, s *Signed) error {
	index := manifest
	for _, r := range resolved.References {
		if r.Reference == image.Reference && r.Platforms[image.Platform] == manifest {
			index = r.Index
		}
	}
	by, err := p.opt.Others.Ask(ctx, image.Reference, index, manifest, keep)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	s.By, s.Unasked = append(s.By, by...), failure(err)
	return nil
}

func overlap(a, b []string) bool {
	return slices.ContainsFunc(a, func(s string) bool { return slices.Contains(b, s) })
}

// scan asks the other scanners of a gate. One that fails is evidence, too.
func (p *Prover) scan(ctx context.Context, image kiln.Digest, gate kiln.Gate, e *Evidence) error {
	for _, scanner := range gate.Scanners {
		found, err := p.opt.Scan(ctx, scanner, image)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		e.Scanners[scanner.Name] = failure(err)
		e.Others = append(e.Others, found...)
	}
	return nil
}

// failure is why a scanner did not judge, with the end of what it said: who reads
// the verdict is often not where the scanner ran.
func failure(err error) string {
	if err == nil {
		return ""
	}
	text := err.Error()
	if known := (*kiln.Error)(nil); errors.As(err, &known) && len(known.Evidence) > 0 {
		said := known.Evidence[max(0, len(known.Evidence)-mostSaid):]
		text += "; it said: " + strings.Join(said, " ")
	}
	return text
}

// mostSaid is how many lines of a scanner a verdict has.
const mostSaid = 3

// attest signs an image, and keeps beside it what was found.
func (p *Prover) attest(ctx context.Context, image kiln.Image, baked kiln.Baked, seen Inspection, v kiln.Verdict, r kiln.ProveRequest) error {
	if err := p.opt.Signer.Sign(ctx, baked.Manifest); err != nil {
		return err
	}
	if err := p.opt.Signer.AttestOrigin(ctx, image, baked, r); err != nil {
		return err
	}
	sbom := func() (any, error) { return p.opt.Inspector.SBOM(seen.Inventory) }
	if err := p.attestOnce(ctx, baked.Manifest, TypeSBOM, sbom); err != nil {
		return err
	}
	return p.record(ctx, v)
}

// attestOnce attests what is said of an image when it is first seen. An image
// that is found again, for another commit, came from where it came from.
func (p *Prover) attestOnce(ctx context.Context, image kiln.Digest, predicateType string, predicate func() (any, error)) error {
	if has, err := p.opt.Signer.Has(ctx, image, predicateType); has || err != nil {
		return err
	}
	said, err := predicate()
	if err != nil {
		return fmt.Errorf("describe image %s: %w", image.Short(), err)
	}
	return p.opt.Signer.Attest(ctx, image, predicateType, said)
}

// record attests a verdict, unless the newest by the same gate says the same.
func (p *Prover) record(ctx context.Context, v kiln.Verdict) error {
	before, err := p.Verdicts(ctx, v.Image)
	if err != nil {
		return err
	}
	for _, one := range slices.Backward(before) {
		if kiln.DigestJSON(one.Gate) == kiln.DigestJSON(v.Gate) {
			if timeless(one) == timeless(v) {
				return nil
			}
			break
		}
	}
	return p.opt.Signer.Attest(ctx, v.Image, TypeVerdict, v)
}

// timeless is a verdict's digest without its time.
func timeless(v kiln.Verdict) kiln.Digest {
	v.At = time.Time{}
	return kiln.DigestJSON(v)
}

// SignBundle signs a bundle, whose images were proved.
func (p *Prover) SignBundle(ctx context.Context, bundle kiln.Digest, _ kiln.ProveRequest) error {
	return p.opt.Signer.Sign(ctx, bundle)
}
