package control

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/rollout"
)

// restore makes every environment stand for what the ledger says and tells the
// engine. What the engine does not take now is tried again by reconcile.
func (c *Control) restore(ctx context.Context) error {
	drives, err := c.recall(ctx)
	if err != nil {
		return err
	}
	if err := c.remember(ctx); err != nil {
		return err
	}
	if err := c.route(ctx); err != nil {
		c.log.ErrorContext(ctx, "traffic table was not taken", "error", err)
	}
	for _, d := range drives {
		c.drives(d.holder, d)
	}
	_ = c.settle(ctx) // it is logged, and tried again
	return nil
}

// recall reads what every environment stands for, and returns the rollouts to
// go on with. Of a damaged ledger it takes what can be read: what is not known
// stays as the engine has it, and recallAgain comes back to it.
func (c *Control) recall(ctx context.Context) ([]*drive, error) {
	names, err := c.ledger.Environments(ctx)
	if err != nil {
		return nil, c.blinded(fmt.Errorf("list the environments: %w", err))
	}
	unfinished, err := c.ledger.Unfinished(ctx)
	if err != nil && len(c.ledger.Damage()) == 0 {
		return nil, fmt.Errorf("read the journal: %w", err)
	}
	journal := map[string]kiln.Rollout{}
	for _, r := range unfinished {
		journal[r.Environment] = r
	}
	var drives []*drive
	var unread error
	for _, name := range names {
		if c.stands(name) {
			continue
		}
		d, err := c.recallOne(ctx, name, journal)
		switch {
		case err != nil:
			unread = err
		case d != nil:
			drives = append(drives, d)
		}
	}
	return drives, c.blinded(unread)
}

// blinded notes why not all of what is desired could be read. An error of a
// ledger that is not damaged is returned.
func (c *Control) blinded(err error) error {
	if err != nil && len(c.ledger.Damage()) == 0 {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.blind = err
	return nil
}

// stands says whether it is known what an environment stands for.
func (c *Control) stands(name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.environment(name).released
}

func (c *Control) recallOne(ctx context.Context, name string, journal map[string]kiln.Rollout) (*drive, error) {
	releases, err := c.ledger.Releases(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("list the releases of %s: %w", name, err)
	}
	record, running := journal[name]
	if err := c.forsake(ctx, releases, record.To); err != nil {
		c.complain(ctx, "release that was never rolled out is still pending", name, err)
	}
	view, fleets := rest(name, releases)
	c.stand(name, view, fleets)
	if !running {
		return nil, nil
	}
	return c.resume(ctx, record, releases)
}

// recallAgain comes back to what could not be read.
func (c *Control) recallAgain(ctx context.Context) {
	if c.sees() == nil {
		return
	}
	drives, err := c.recall(ctx)
	c.complain(ctx, "not all of what is desired could be read", "", err)
	for _, d := range drives {
		c.drives(d.holder, d)
	}
	if c.sees() == nil {
		c.log.InfoContext(ctx, "all of what is desired is known again")
	}
}

// forsake fails the pending releases whose rollout was never journalled.
func (c *Control) forsake(ctx context.Context, releases []kiln.Release, rolling int) error {
	for i, r := range releases {
		if r.State != kiln.ReleasePending || r.Number == rolling {
			continue
		}
		releases[i].State = kiln.ReleaseFailed
		err := c.ledger.Commit(ctx, kiln.Record{
			Marks: []kiln.ReleaseMark{{Environment: r.Environment, Number: r.Number, State: kiln.ReleaseFailed}},
			Events: []kiln.Event{{
				At: c.now().UTC(), Environment: r.Environment, Kind: "release.failed", Subject: subject(r.Number),
				Message: fmt.Sprintf("release %d did not go live: the control plane ended before its rollout began", r.Number),
			}},
		})
		if err != nil {
			return fmt.Errorf("record that release %d of %s failed: %w", r.Number, r.Environment, err)
		}
	}
	return nil
}

// resume takes a journalled rollout up again.
func (c *Control) resume(ctx context.Context, record kiln.Rollout, releases []kiln.Release) (*drive, error) {
	var s rollout.State
	if err := json.Unmarshal(record.State, &s); err != nil {
		return nil, fmt.Errorf("read the journal of rollout %s: %w", record.ID, err)
	}
	r := rollout.Rollout{Environment: record.Environment, Kind: s.Kind}
	for i := range releases {
		one := releases[i]
		switch one.Number {
		case record.To:
			r.To = one
		case record.From:
			r.From = &one
		case s.Parked:
			r.Parked = &one
		}
	}
	now := c.now()
	h := c.newHolder(fmt.Sprintf("the rollout of release %d", record.To), record.Actor, record.StartedAt)
	d := &drive{c: c, rollout: r, record: record, holder: h, feed: newFeed(nil), states: statesOf(r), told: map[string]string{}, stuck: make(chan struct{}), refused: make(chan struct{})}
	c.mu.Lock()
	c.environment(record.Environment).holder = h
	c.mu.Unlock()
	d.begins(ctx)
	d.enter(rollout.Resume(s, now))
	return d, nil
}
