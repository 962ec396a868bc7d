package control

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/kilnproject/kiln"
)

// Releases lists an environment's releases by number.
func (c *Control) Releases(ctx context.Context, name string) ([]kiln.Release, error) {
	releases, err := c.ledger.Releases(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("list the releases of %s: %w", name, err)
	}
	if len(releases) == 0 {
		return nil, c.unknown(ctx, name)
	}
	return releases, nil
}

// Release returns one release; number 0 means the live one.
func (c *Control) Release(ctx context.Context, name string, number int) (kiln.Release, error) {
	releases, err := c.Releases(ctx, name)
	if err != nil {
		return kiln.Release{}, err
	}
	for _, r := range releases {
		if r.Number == number || (number == 0 && r.State == kiln.ReleaseLive) {
			return r, nil
		}
	}
	if number == 0 {
		return kiln.Release{}, kiln.Errorf(kiln.CodeNotFound, "kiln up "+name, "environment %s has no live release", name)
	}
	return kiln.Release{}, kiln.Errorf(kiln.CodeNotFound, "kiln releases "+name+" lists them", "environment %s has no release %d", name, number)
}

// unknown is the error for an environment without releases.
func (c *Control) unknown(ctx context.Context, name string) error {
	names, err := c.ledger.Environments(ctx)
	if err != nil {
		return fmt.Errorf("list the environments: %w", err)
	}
	hint := "kiln up makes one"
	if len(names) > 0 {
		hint = "there are: " + strings.Join(names, ", ")
	}
	return kiln.Errorf(kiln.CodeNotFound, hint, "there is no environment %q", name)
}

// Instances lists what the engine runs for an environment, by service and age,
// and the deaths of late.
func (c *Control) Instances(ctx context.Context, name string) ([]kiln.Instance, error) {
	if _, err := c.Releases(ctx, name); err != nil {
		return nil, err
	}
	seen, err := c.engine.Observe(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("observe %s: %w", name, err)
	}
	var out []kiln.Instance
	for _, f := range seen.Fleets {
		out = append(out, f.Deaths...)
		out = append(out, f.Instances...)
	}
	slices.SortStableFunc(out, func(a, b kiln.Instance) int {
		if a.Service != b.Service {
			return strings.Compare(a.Service, b.Service)
		}
		return a.CreatedAt.Compare(b.CreatedAt)
	})
	return out, nil
}

// Events calls emit with the selected events, oldest first, and with Follow
// goes on until ctx ends or emit fails.
func (c *Control) Events(ctx context.Context, q EventQuery, emit func(kiln.Event) error) error {
	if q.Environment != "" {
		if err := within(q.Reach, q.Environment); err != nil {
			return err
		}
	}
	var added <-chan struct{}
	if q.Follow {
		added = c.ledger.Watch(ctx)
	}
	if q.Last > 0 {
		after, err := c.ledger.AllBut(ctx, q.Environment, q.Last)
		if err != nil {
			return fmt.Errorf("read events: %w", err)
		}
		q.After = max(q.After, after)
	}
	if err := c.emitEvents(ctx, &q, emit); err != nil || !q.Follow {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-added:
			if !ok {
				return nil
			}
		}
		if err := c.emitEvents(ctx, &q, emit); err != nil {
			return err
		}
	}
}

// emitEvents emits what there is after q.After, and moves that.
func (c *Control) emitEvents(ctx context.Context, q *EventQuery, emit func(kiln.Event) error) error {
	for {
		page, err := c.ledger.Events(ctx, q.Environment, q.After, 0)
		if err != nil {
			return fmt.Errorf("read events: %w", err)
		}
		if len(page) == 0 {
			return nil
		}
		for _, e := range page {
			q.After = e.Sequence
			if !q.Reach.Covers(e.Environment) {
				continue
			}
			if err := emit(e); err != nil {
				return err
			}
		}
	}
}

// Logs writes the kept lines of an environment's instances, as the engine
// gives them.
func (c *Control) Logs(ctx context.Context, w io.Writer, q kiln.LogQuery) error {
	if _, err := c.Releases(ctx, q.Environment); err != nil {
		return err
	}
	if err := c.engine.Logs(ctx, w, q); err != nil {
		return fmt.Errorf("read the logs of %s: %w", q.Environment, err)
	}
	return nil
}

// Missing lists which blobs a client must send before it asks for an Up.
func (c *Control) Missing(digests []kiln.Digest) []kiln.Digest { return c.store.Missing(digests) }
