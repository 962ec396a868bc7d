package control

import (
	"context"
	"fmt"
	"time"

	"github.com/kilnproject/kiln"
)

// Rollback gives the traffic to an earlier release: by one swap when that one
// is parked and ready, else by starting it first. It never bakes. The release
// that was left is condemned, and its fleets end once the requests that they
// have in flight are answered. While a rollout runs whose outcome is open, a
// rollback that names no release calls it off instead.
func (c *Control) Rollback(ctx context.Context, r RollbackRequest, emit func(kiln.Progress)) (out RollbackResult, err error) {
	ctx, end := c.begins(ctx, workRollback, "environment", r.Environment)
	defer func() { end(err, "from", number(out.From), "release", number(out.To)) }()
	return c.rollback(ctx, r, emit)
}

func (c *Control) rollback(ctx context.Context, r RollbackRequest, emit func(kiln.Progress)) (RollbackResult, error) {
	if err := c.changeable(ctx); err != nil {
		return RollbackResult{}, err
	}
	if err := within(r.Reach, r.Environment); err != nil {
		return RollbackResult{}, err
	}
	if _, err := c.Releases(ctx, r.Environment); err != nil {
		return RollbackResult{}, err
	}
	began := c.now()
	feed := newFeed(emit)
	defer feed.close()
	if r.Release == 0 && c.mayCallOff(r) {
		if d, err := c.callOff(ctx, r.Environment, "kiln rollback", r.Actor); d != nil || err != nil {
			return c.calledOff(d, began), err
		}
	}
	h, err := c.hold(ctx, r.Environment, "kiln rollback", r.Actor, feed)
	if err != nil {
		return RollbackResult{}, err
	}
	to, err := c.target(ctx, r)
	if err == nil {
		err = c.claim(r.Environment, to.Routes)
	}
	if err != nil {
		c.release(r.Environment, h)
		return RollbackResult{}, err
	}
	d, err := c.begin(ctx, r.Environment, to, h, r.Actor, feed)
	if err != nil {
		c.release(r.Environment, h)
		return RollbackResult{}, err
	}
	out := RollbackResult{From: d.record.From, To: d.record.To, Parked: d.warm, URLs: c.urls(to)}
	err = c.watch(ctx, d)
	out.Took = c.now().Sub(began)
	return out, err
}

// mayCallOff says whether a rollout that runs is the one that the request
// means.
func (c *Control) mayCallOff(r RollbackRequest) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	running := c.environment(r.Environment).rollout
	return r.From == 0 || running != nil && running.To == r.From
}

// stands refuses a rollback from a release that is not live any more: it was
// done already, or somebody else was faster.
func stands(r RollbackRequest, live *kiln.Release) error {
	if r.From == 0 || live != nil && live.Number == r.From {
		return nil
	}
	now := "nothing is live"
	if live != nil {
		now = fmt.Sprintf("release %d is live", live.Number)
	}
	return kiln.Errorf(kiln.CodeConflict, "kiln status "+r.Environment+" shows what is live",
		"nothing was done: %s of %s, and not release %d, from which to go back", now, r.Environment, r.From)
}

// calledOff is the result of a rollback that ended a rollout before it was
// decided.
func (c *Control) calledOff(d *drive, began time.Time) RollbackResult {
	if d == nil {
		return RollbackResult{}
	}
	out := RollbackResult{From: d.record.To, To: d.record.From, CalledOff: true, Took: c.now().Sub(began)}
	if d.rollout.From != nil {
		out.URLs = c.urls(*d.rollout.From)
	}
	return out
}

// target is the release that a rollback goes to.
func (c *Control) target(ctx context.Context, r RollbackRequest) (kiln.Release, error) {
	releases, err := c.Releases(ctx, r.Environment)
	if err != nil {
		return kiln.Release{}, err
	}
	live := findState(releases, kiln.ReleaseLive)
	if err := stands(r, live); err != nil {
		return kiln.Release{}, err
	}
	if r.Release == 0 {
		return before(r.Environment, releases, live)
	}
	for _, one := range releases {
		if one.Number != r.Release {
			continue
		}
		switch one.State {
		case kiln.ReleaseLive:
			return kiln.Release{}, kiln.Errorf(kiln.CodeConflict, "kiln releases "+r.Environment+" lists the others",
				"release %d is live already", one.Number)
		case kiln.ReleaseFailed, kiln.ReleasePending:
			return kiln.Release{}, kiln.Errorf(kiln.CodeRefused, "kiln releases "+r.Environment+" lists those that were live",
				"release %d was never live", one.Number)
		case kiln.ReleaseParked, kiln.ReleaseRetired, kiln.ReleaseCondemned:
		}
		return one, nil
	}
	return kiln.Release{}, kiln.Errorf(kiln.CodeNotFound, "kiln releases "+r.Environment+" lists them",
		"environment %s has no release %d", r.Environment, r.Release)
}

// before is the release to go back to when none is named: the parked one, else
// the newest before the live one that was live and not condemned.
func before(name string, releases []kiln.Release, live *kiln.Release) (kiln.Release, error) {
	if parked := findState(releases, kiln.ReleaseParked); parked != nil {
		return *parked, nil
	}
	for i := len(releases) - 1; i >= 0; i-- {
		one := releases[i]
		if one.State == kiln.ReleaseRetired && (live == nil || one.Number < live.Number) {
			return one, nil
		}
	}
	return kiln.Release{}, kiln.Errorf(kiln.CodeConflict,
		fmt.Sprintf("kiln releases %s lists what there is; kiln rollback %s --to N names one", name, name),
		"environment %s has no earlier release to go back to", name)
}
