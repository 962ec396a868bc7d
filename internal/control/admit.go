package control

import (
	"context"
	"errors"
	"fmt"

	"github.com/kilnproject/kiln"
)

// admit says whether instances of a release may start: its bundle is what was
// signed. Whoever asked before the rollout is told at once, and so is the
// history.
func (c *Control) admit(ctx context.Context, r kiln.Release, actor string) error {
	err := c.vouched(ctx, r)
	if err == nil || ctx.Err() != nil {
		return err
	}
	return errors.Join(err, c.tellRefused(ctx, r, actor, err))
}

// vouched asks whether a release's bundle is what was signed. Which it is not is
// a refusal; whether it could not be told is another error.
func (c *Control) vouched(ctx context.Context, r kiln.Release) error {
	if c.prover == nil || r.Bundle == "" {
		return nil
	}
	if err := c.prover.AdmitBundle(ctx, r.Bundle); err != nil {
		e := kiln.Errorf(kiln.CodeRefused, "kiln verify "+releaseName(r)+" says what is wrong; kiln up makes another release",
			"nothing of %s starts: %w", releaseName(r), err)
		e.Evidence = evidenceOf(err)
		return e
	}
	return nil
}

// releaseName is a release as the command line takes it.
func releaseName(r kiln.Release) string {
	if r.Number == 0 {
		return r.Environment
	}
	return fmt.Sprintf("%s/%d", r.Environment, r.Number)
}

func evidenceOf(err error) []string {
	var known *kiln.Error
	if errors.As(err, &known) {
		return known.Evidence
	}
	return nil
}

// tellRefused records that a release starts nothing.
func (c *Control) tellRefused(ctx context.Context, r kiln.Release, actor string, why error) error {
	return c.ledger.Commit(ctx, kiln.Record{Events: []kiln.Event{{
		At: c.now().UTC(), Environment: r.Environment, Kind: "release.refused", Subject: releaseName(r), Actor: actor,
		Message: why.Error(), Data: map[string]string{"bundle": string(r.Bundle)},
	}}})
}

// lookAgain asks whether the releases that an environment stands for may still
// start instances. What runs goes on in any case: that nothing of such a release
// starts is the engine's door's to see to. Here it is said, once.
func (c *Control) lookAgain(ctx context.Context, name string) {
	c.mu.Lock()
	view := c.environment(name).view
	c.mu.Unlock()
	var refused []kiln.Release
	if view.Live != nil {
		refused = append(refused, *view.Live)
	}
	refused = append(refused, view.Others...)
	first := ""
	for _, r := range refused {
		err := c.vouched(ctx, r)
		if ctx.Err() != nil {
			return
		}
		if err != nil && first == "" {
			first = err.Error()
			if c.refusedBefore(name, first) {
				continue
			}
			c.log.WarnContext(ctx, "release starts nothing any more", "environment", name, "release", r.Number, "error", err)
			c.complain(ctx, "a refused release is not recorded", name, c.tellRefused(ctx, r, "", err))
		}
	}
	c.mu.Lock()
	c.environment(name).refused = first
	c.mu.Unlock()
}

// refusedBefore says whether that was said of an environment already.
func (c *Control) refusedBefore(name, why string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.environment(name).refused == why
}
