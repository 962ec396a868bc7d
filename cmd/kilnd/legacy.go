package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/durable"
)

// provedSince is written once nothing of the ledger is without a proof: what is
// released from then on has been judged.
const provedSince = "since"

// grandfather signs what was released by a Kiln that did not judge images, and
// attests that it passed: it runs, and its instances must be replaceable. It is
// done once in a data directory's life, before anything is converged to.
func (p *plane) grandfather(ctx context.Context) error {
	mark := p.dir("sign", provedSince)
	if _, err := os.Lstat(mark); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	environments, err := p.ledger.Environments(ctx)
	if err != nil {
		return fmt.Errorf("look for releases of an earlier version: %w", err)
	}
	for _, name := range environments {
		releases, err := p.ledger.Releases(ctx, name)
		if err != nil {
			return fmt.Errorf("look for releases of an earlier version: %w", err)
		}
		for _, r := range releases {
			if err := p.grandfatherRelease(ctx, r); err != nil {
				return fmt.Errorf("sign release %d of %s, which an earlier version made: %w", r.Number, r.Environment, err)
			}
		}
	}
	return durable.Write(mark, []byte(version+"\n"), 0o600)
}

// grandfatherRelease signs a release's bundle and images, as far as they are
// kept.
func (p *plane) grandfatherRelease(ctx context.Context, r kiln.Release) error {
	kept := func(err error) error {
		if errors.Is(err, kiln.ErrNotFound) {
			return nil
		}
		return err
	}
	if err := kept(p.signer.SignImage(ctx, r.Bundle)); err != nil {
		return err
	}
	for _, image := range imagesOf(r) {
		err := p.signer.SignImage(ctx, image)
		if err == nil {
			_, err = p.signer.AttestVerdict(ctx, kiln.Verdict{
				Image: image, Outcome: kiln.OutcomePass, Gate: kiln.DefaultGate(),
				Reasons: []string{"It was released before this Kiln judged images."},
			})
		}
		if err := kept(err); err != nil {
			return err
		}
	}
	return nil
}

// imagesOf are the images that a release's instances and checks are made from.
func imagesOf(r kiln.Release) []kiln.Digest {
	var out []kiln.Digest
	for _, s := range r.Services {
		out = append(out, s.Template.Image)
		for _, image := range s.VerifyImages {
			out = append(out, image)
		}
	}
	return out
}
