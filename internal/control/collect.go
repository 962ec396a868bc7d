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

// collect frees storage on a schedule, unless something is being baked or
// released.
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
	if c.max.Swap(bytes) == bytes {
		return
	}
	select {
	case c.bounds <- struct{}{}:
	default:
	}
}

func (c *Control) collectOnce(ctx context.Context) error {
	keep, err := c.keep(ctx)
	if err != nil {
		return err
	}
	bound := c.max.Load()
	var used, freed int64
	for _, s := range c.storage {
		n, err := s.Usage(ctx)
		if err != nil {
			return fmt.Errorf("measure storage: %w", err)
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
			return fmt.Errorf("collect storage: %w", err)
		}
		freed += n
	}
	if freed > 0 {
		c.log.InfoContext(ctx, "storage was freed", "bytes", freed, "used", used-freed)
	}
	if bound > 0 && used-freed > bound {
		c.log.WarnContext(ctx, "kept releases need more storage than allowed", "used", used-freed, "max", bound)
	}
	return nil
}

// keep is what the live, parked and pending releases and the newest ten of
// every environment need.
func (c *Control) keep(ctx context.Context) (Keep, error) {
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
		for i, r := range releases {
			running := r.State == kiln.ReleaseLive || r.State == kiln.ReleaseParked || r.State == kiln.ReleasePending
			if running || i >= len(releases)-keptReleases {
				k = k.with(r, running)
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
