package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/kilnproject/kiln"
)

// originsOf is the setting that says what an environment's releases were baked
// from: digests of origins by the releases' identity. It is no part of a
// release, because the same release may be baked from other files that no image
// has.
func originsOf(name string) string { return "origins/" + name }

// origins are the origins of an environment's releases, by identity.
func (c *Control) origins(ctx context.Context, name string) (map[kiln.Digest]kiln.Digest, error) {
	out := map[kiln.Digest]kiln.Digest{}
	return out, c.setting(ctx, originsOf(name), &out)
}

// setting reads a setting, and leaves the value as it is where there is none.
func (c *Control) setting(ctx context.Context, name string, value any) error {
	raw, err := c.ledger.Setting(ctx, name)
	if errors.Is(err, kiln.ErrNotFound) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(raw, value)
	}
	if err != nil {
		return fmt.Errorf("read %s of the ledger: %w", name, err)
	}
	return nil
}

// keepOrigin notes what a release is baked from, before it is made. One that is
// too large is not kept: then a repave says what to do instead.
func (c *Control) keepOrigin(ctx context.Context, r kiln.Release, o kiln.Origin, releases []kiln.Release) error {
	origin, err := c.store.PutOrigin(ctx, o)
	if errors.Is(err, &kiln.Error{Code: kiln.CodeInvalid}) {
		c.complain(ctx, "what was baked is not kept to be baked again", r.Environment, err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("keep what was baked: %w", err)
	}
	before, err := c.origins(ctx, r.Environment)
	if err != nil {
		return err
	}
	identity := r.Identity()
	if before[identity] == origin {
		return nil
	}
	after := map[kiln.Digest]kiln.Digest{identity: origin}
	for _, one := range releases {
		id := one.Identity()
		if had, ok := before[id]; ok && id != identity && runs(one) {
			after[id] = had
		}
	}
	value, err := json.Marshal(after)
	if err != nil {
		return err
	}
	return c.ledger.Commit(ctx, kiln.Record{Settings: map[string][]byte{originsOf(r.Environment): value}})
}

// runs says whether a release may have instances.
func runs(r kiln.Release) bool {
	return r.State == kiln.ReleaseLive || r.State == kiln.ReleaseParked || r.State == kiln.ReleasePending
}

// originOf is what a release was baked from.
func (c *Control) originOf(ctx context.Context, r kiln.Release) (kiln.Origin, error) {
	all, err := c.origins(ctx, r.Environment)
	if err != nil {
		return kiln.Origin{}, err
	}
	digest, ok := all[r.Identity()]
	if !ok {
		return kiln.Origin{}, notKept(r, nil)
	}
	o, err := c.store.Origin(ctx, digest)
	if errors.Is(err, kiln.ErrNotFound) {
		return o, notKept(r, err)
	}
	return o, err
}

func notKept(r kiln.Release, why error) error {
	e := kiln.Errorf(kiln.CodeNotFound, fmt.Sprintf("run kiln up %s in the definition's folder: it sends the files again, and kiln repave can go on from there", r.Environment),
		"the files that release %d of %s was baked from are not here", r.Number, r.Environment)
	if why != nil {
		e.Evidence = []string{why.Error()}
	}
	return e
}
