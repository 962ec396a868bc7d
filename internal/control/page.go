package control

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/kilnproject/kiln"
)

// ReleaseQuery selects releases: environments by name, in each the newest
// first. A release that is made meanwhile moves nothing that comes after.
type ReleaseQuery struct {
	Environment string // empty for all
	Reach       kiln.Reach
	// After is the last that was seen; the zero value is the beginning.
	After ReleaseKey
	Limit int // more than 0
}

// ReleaseKey is a release's place in the order of a ReleaseQuery.
type ReleaseKey struct {
	Environment string `json:"e"`
	Number      int    `json:"n"`
}

// ReleasePage lists releases.
func (c *Control) ReleasePage(ctx context.Context, q ReleaseQuery) ([]kiln.Release, error) {
	names, err := c.reachable(ctx, q.Environment, q.Reach)
	if err != nil {
		return nil, err
	}
	out := []kiln.Release{}
	for _, name := range names {
		below := 0
		switch cmp.Compare(name, q.After.Environment) {
		case -1:
			continue
		case 0:
			below = q.After.Number
		}
		page, err := c.ledger.ReleasesBefore(ctx, name, below, q.Limit-len(out))
		if err != nil {
			return nil, fmt.Errorf("list the releases of %s: %w", name, err)
		}
		if out = append(out, page...); len(out) == q.Limit {
			break
		}
	}
	return out, nil
}

// InstanceQuery selects instances: by environment, service and age.
type InstanceQuery struct {
	Environment string // empty for all
	Reach       kiln.Reach
	// After is the last that was seen; the zero value is the beginning.
	After InstanceKey
	Limit int // more than 0
}

// InstanceKey is an instance's place in the order of an InstanceQuery. IDs of
// one service sort by age.
type InstanceKey struct {
	Environment string `json:"e"`
	Service     string `json:"s"`
	ID          string `json:"i"`
}

// KeyOf is an instance's place.
func KeyOf(i kiln.Instance) InstanceKey { return InstanceKey{i.Environment, i.Service, i.ID} }

func (k InstanceKey) compare(other InstanceKey) int {
	return cmp.Or(cmp.Compare(k.Environment, other.Environment), cmp.Compare(k.Service, other.Service), cmp.Compare(k.ID, other.ID))
}

// InstancePage lists what the engine runs, and the deaths of late.
func (c *Control) InstancePage(ctx context.Context, q InstanceQuery) ([]kiln.Instance, error) {
	names, err := c.reachable(ctx, q.Environment, q.Reach)
	if err != nil {
		return nil, err
	}
	out := []kiln.Instance{}
	for _, name := range names {
		if name < q.After.Environment {
			continue
		}
		all, err := c.Instances(ctx, name)
		if err != nil {
			return nil, err
		}
		slices.SortFunc(all, func(a, b kiln.Instance) int { return KeyOf(a).compare(KeyOf(b)) })
		for _, i := range all {
			if KeyOf(i).compare(q.After) > 0 {
				out = append(out, i)
			}
			if len(out) == q.Limit {
				return out, nil
			}
		}
	}
	return out, nil
}

// reachable lists the environments of a question, by name: the one that is
// asked for, which must be there and within reach, or all within reach.
func (c *Control) reachable(ctx context.Context, name string, reach kiln.Reach) ([]string, error) {
	if name != "" {
		if err := within(reach, name); err != nil {
			return nil, err
		}
	}
	names, err := c.ledger.Environments(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the environments: %w", err)
	}
	if name == "" {
		return slices.DeleteFunc(names, func(n string) bool { return !reach.Covers(n) }), nil
	}
	if !slices.Contains(names, name) {
		return nil, c.unknown(ctx, name)
	}
	return []string{name}, nil
}

// within refuses an environment that a caller may not see or change.
func within(reach kiln.Reach, name string) error {
	if reach.Covers(name) {
		return nil
	}
	return kiln.Errorf(kiln.CodeRefused, "use a token whose block in kilnd.hcl names the environment",
		"environment %q is not for this token, which is for: %s", name, quoteList(reach))
}
