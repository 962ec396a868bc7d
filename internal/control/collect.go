package control

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/kilnproject/kiln"
)

const (
	collectEvery = 10 * time.Minute
	// keptReleases are the newest of each environment that can be rolled back
	// to without baking.
	keptReleases = 10
)

// underPressure are how many releases of each environment are kept while the
// bound of storage is exceeded, besides those that run: fewer in each attempt.
func underPressure() []int { return []int{keptReleases, 3, 1} }

// collect frees storage on a schedule and after what may have exceeded the
// bound, unless something is being baked or released.
func (c *Control) collect(ctx context.Context) {
	next := collectEvery
	for await(ctx, c.bounds, next) == nil {
		if !c.gate.TryLock() {
			next = time.Second
			continue
		}
		next = collectEvery
		err := c.collectOnce(ctx)
		c.gate.Unlock()
		if err != nil && ctx.Err() == nil {
			c.log.ErrorContext(ctx, "storage could not be collected", "error", err)
		}
	}
}

// SetStorageMax changes the bound of storage, in bytes; 0 is no bound. What is
// above it is collected soon.
func (c *Control) SetStorageMax(bytes int64) {
	if c.max.Swap(bytes) != bytes {
		c.collectSoon()
	}
}

// grew asks for a collection soon, where storage has a bound.
func (c *Control) grew() {
	if c.max.Load() > 0 {
		c.collectSoon()
	}
}

func (c *Control) collectSoon() {
	select {
	case c.bounds <- struct{}{}:
	default:
	}
}

// collectOnce frees what nothing needs. Above the bound it goes on with caches
// and then with what older releases need, but never with what runs.
func (c *Control) collectOnce(ctx context.Context) error {
	bound := c.max.Load()
	var used int64
	for _, kept := range underPressure() {
		keep, err := c.keep(ctx, kept)
		if err != nil {
			return err
		}
		if used, err = c.free(ctx, keep, bound); err != nil {
			return err
		}
		if bound == 0 || used <= bound {
			return nil
		}
	}
	c.log.WarnContext(ctx, "what runs and what was just baked need more storage than allowed", "used", used, "max", bound)
	return nil
}

// free collects once and returns what is used then.
func (c *Control) free(ctx context.Context, keep Keep, bound int64) (int64, error) {
	var used, freed int64
	for _, s := range c.storage {
		n, err := s.Usage(ctx)
		if err != nil {
			return 0, fmt.Errorf("measure storage: %w", err)
		}
		used += n
	}
	for _, s := range c.storage {
		want := int64(0)
		if bound > 0 {
			want = max(0, used-freed-bound)
		}
		n, err := s.Collect(ctx, keep, want)
		if err != nil {
			return 0, fmt.Errorf("collect storage: %w", err)
		}
		freed += n
	}
	if freed > 0 {
		c.log.InfoContext(ctx, "storage was freed", "bytes", freed, "used", used-freed)
	}
	return used - freed, nil
}

// keep is what the live, parked and pending releases and the newest of every
// environment need.
func (c *Control) keep(ctx context.Context, newest int) (Keep, error) {
	var k Keep
	names, err := c.ledger.Environments(ctx)
	if err != nil {
		return k, fmt.Errorf("list the environments: %w", err)
	}
	for _, name := range names {
		releases, err := c.ledger.Releases(ctx, name)
		if err != nil {
			return k, fmt.Errorf("list the releases of %s: %w", name, err)
		}
		origins, err := c.origins(ctx, name)
		if err != nil {
			return k, err
		}
		for i, r := range releases {
			running := r.State == kiln.ReleaseLive || r.State == kiln.ReleaseParked || r.State == kiln.ReleasePending
			if running || i >= len(releases)-newest {
				k = k.with(r, running)
			}
			if origin, ok := origins[r.Identity()]; ok && running {
				k.Origins = append(k.Origins, origin)
			}
		}
	}
	slices.Sort(k.Bundles)
	slices.Sort(k.Images)
	k.Bundles, k.Images = slices.Compact(k.Bundles), slices.Compact(k.Images)
	return k, nil
}

// with adds what a release needs.
func (k Keep) with(r kiln.Release, running bool) Keep {
	k.Bundles = append(k.Bundles, r.Bundle)
	for _, s := range r.Services {
		k.Images = append(k.Images, s.Template.Image)
		for _, d := range s.VerifyImages {
			k.Images = append(k.Images, d)
		}
		if running {
			k.Templates = append(k.Templates, s.Template)
		}
	}
	return k
}

// Needs says whether a release that is kept needs a bundle or an image.
func (c *Control) Needs(ctx context.Context, d kiln.Digest) (bool, error) {
	k, err := c.keep(ctx, keptReleases)
	if err != nil {
		return false, err
	}
	return slices.Contains(k.Bundles, d) || slices.Contains(k.Images, d), nil
}
