package control

import (
	"context"
	"errors"
	"fmt"

	"github.com/kilnproject/kiln"
)

// foresee adds to a plan what Up finds out besides its steps: a rule that is
// in the way, and a release that replaces nothing. The second can be told once
// every image is baked.
func (c *Control) foresee(ctx context.Context, r UpRequest, def Definition, live *kiln.Release, desired kiln.Release, known map[string]kiln.Baked, baked bool, out *PlanResult) error {
	err := c.rules(r, def, live)
	if err == nil {
		err = refusal(out.Verdicts)
	}
	if err == nil && baked {
		desired.Bundle, err = c.store.BundleDigest(bundleOf(r.Tree, def.Spec, kiln.BakeResult{Images: known}))
		if err != nil {
			return fmt.Errorf("compare the bundle: %w", err)
		}
		desired.Values, desired.TTL = def.Values, def.Environment.TTL
		out.Release = sameButNew(live, desired, *out)
		releases, listed := c.ledger.Releases(ctx, desired.Environment)
		if listed != nil {
			return fmt.Errorf("list the releases of %s: %w", desired.Environment, listed)
		}
		if live == nil || live.Identity() != desired.Identity() {
			err = condemned(releases, desired.Identity(), r.Again)
		}
	}
	if err != nil && !errors.As(err, &out.Refused) {
		return err
	}
	return nil
}

// rules are those that Up asks before it bakes.
func (c *Control) rules(r UpRequest, def Definition, live *kiln.Release) error {
	if err := releasable(def, r.Source); err != nil {
		return err
	}
	if err := c.claim(def.Environment.Name, def.Spec.Routes); err != nil {
		return err
	}
	return stranger(live, def.Spec)
}

// sameButNew says why Up would make a release of which nothing else is to be
// told.
func sameButNew(live *kiln.Release, desired kiln.Release, out PlanResult) string {
	switch {
	case live == nil || len(out.Steps)+len(out.Bakes)+len(out.Routes) > 0 || live.Identity() == desired.Identity():
		return ""
	case live.Bundle != desired.Bundle:
		return "the definition's files changed, and no service with them"
	default:
		return "a value or the way of a rollout changed, and no service with it"
	}
}
