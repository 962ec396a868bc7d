package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/durable"
	"github.com/kilnproject/kiln/internal/sign"
)

// earlierFile lists the releases of a data directory that were made by a Kiln that
// did not judge images, as far as they are not signed yet. It is written at the
// first start of one that does: what is released from then on has been judged,
// and is never in it.
const earlierFile = "earlier.json"

// earlier is one of them.
type earlier struct {
	Environment string `json:"environment"`
	Release     int    `json:"release"`
}

// grandfather signs what was released by a Kiln that did not judge images, and
// attests that it passed: it runs, and its instances must be replaceable. One
// that cannot be signed keeps no other from it, and is tried again at the next
// start.
func (p *plane) grandfather(ctx context.Context) error {
	path := p.dir("sign", earlierFile)
	before, err := p.readEarlier(ctx, path)
	if err != nil || len(before) == 0 {
		return err
	}
	left := []earlier{}
	var errs []error
	for _, one := range before {
		if err := p.grandfatherRelease(ctx, one); err != nil {
			errs = append(errs, fmt.Errorf("sign release %d of %s, which an earlier version made: %w", one.Release, one.Environment, err))
			left = append(left, one)
		}
	}
	if len(left) < len(before) {
		errs = append(errs, writeEarlier(path, left))
	}
	return errors.Join(errs...)
}

// readEarlier reads the list, which is made at the first start: of all that the
// ledger has.
func (p *plane) readEarlier(ctx context.Context, path string) ([]earlier, error) {
	text, err := os.ReadFile(path)
	if err == nil {
		var out []earlier
		return out, json.Unmarshal(text, &out)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	environments, err := p.ledger.Environments(ctx)
	if err != nil {
		return nil, fmt.Errorf("look for releases of an earlier version: %w", err)
	}
	out := []earlier{}
	for _, name := range environments {
		releases, err := p.ledger.Releases(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("look for releases of an earlier version: %w", err)
		}
		for _, r := range releases {
			out = append(out, earlier{r.Environment, r.Number})
		}
	}
	return out, writeEarlier(path, out)
}

func writeEarlier(path string, list []earlier) error {
	text, err := json.Marshal(list)
	if err != nil {
		return err
	}
	return durable.Write(path, text, 0o600)
}

// grandfatherRelease signs a release's bundle and images, as far as they are
// kept. An image that was judged stays judged as it was.
func (p *plane) grandfatherRelease(ctx context.Context, one earlier) error {
	kept := func(err error) error {
		if errors.Is(err, kiln.ErrNotFound) {
			return nil
		}
		return err
	}
	r, err := p.ledger.Release(ctx, one.Environment, one.Release)
	if err != nil {
		return kept(err)
	}
	errs := []error{kept(p.signer.SignImage(ctx, r.Bundle))}
	for _, image := range imagesOf(r) {
		errs = append(errs, kept(p.grandfatherImage(ctx, image)))
	}
	return errors.Join(errs...)
}

func (p *plane) grandfatherImage(ctx context.Context, image kiln.Digest) error {
	if err := p.signer.SignImage(ctx, image); err != nil {
		return err
	}
	judged, err := p.signer.Predicates(ctx, image, sign.PredicateVerdict)
	if err != nil || len(judged) > 0 {
		return err
	}
	_, err = p.signer.AttestVerdict(ctx, kiln.Verdict{
		Image: image, Outcome: kiln.OutcomePass, Gate: kiln.DefaultGate(),
		Reasons: []string{"It was released before this Kiln judged images."},
	})
	return err
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
