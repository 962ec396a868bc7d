package control

import (
	"context"
	"fmt"
	"time"

	"github.com/kilnproject/kiln"
	"github.com/kilnproject/kiln/internal/rollout"
)

// maxBatch bounds the changes that are recorded in one transaction, and with
// it what is held in memory.
const maxBatch = 512

// record writes what the engine saw into the ledger, many changes in one
// transaction, and wakes those who wait for it.
func (c *Control) record(ctx context.Context, changes <-chan kiln.Change) {
	tick, again := time.NewTicker(stormFlush), time.NewTicker(backlogAgain)
	defer tick.Stop()
	defer again.Stop()
	for {
		select {
		case first, ok := <-changes:
			if !ok {
				return
			}
			c.write(ctx, c.describe(ctx, c.gather(first, changes)))
			c.poke()
		case <-tick.C:
			c.write(ctx, kiln.Record{Events: c.storm.flush(c.now())})
		case <-again.C:
			c.flush(ctx)
		}
	}
}

// gather takes the changes that are there already, and wakes waiting rollouts
// before anything is written.
func (c *Control) gather(first kiln.Change, changes <-chan kiln.Change) []kiln.Change {
	batch := []kiln.Change{first}
	for len(batch) < maxBatch {
		select {
		case next, ok := <-changes:
			if !ok {
				return c.wakeAll(batch)
			}
			batch = append(batch, next)
			continue
		default:
		}
		break
	}
	return c.wakeAll(batch)
}

func (c *Control) wakeAll(batch []kiln.Change) []kiln.Change {
	woken := map[string]bool{}
	for _, one := range batch {
		switch {
		case one.Missed:
			for _, name := range c.names() {
				c.wake(name)
			}
		case one.Instance != nil && !woken[one.Instance.Environment]:
			woken[one.Instance.Environment] = true
			c.wake(one.Instance.Environment)
		}
	}
	return batch
}

// describe turns changes into events and history; what the ledger knows
// already is left out.
func (c *Control) describe(ctx context.Context, batch []kiln.Change) kiln.Record {
	var r kiln.Record
	for _, one := range batch {
		switch {
		case one.Missed:
			r = merge(r, c.resync(ctx))
		case one.Event != nil:
			r.Events = append(r.Events, c.storm.admit(*one.Event, c.now())...)
		case one.Instance != nil && (one.Instance.State != kiln.InstanceDead || c.isNews(ctx, *one.Instance)):
			r = merge(r, c.lived(*one.Instance, one.At))
		}
	}
	return r
}

// resync observes everything: changes were lost, or the control plane was away.
func (c *Control) resync(ctx context.Context) kiln.Record {
	var r kiln.Record
	present := map[string]bool{}
	for _, name := range c.names() {
		seen, err := c.engine.Observe(ctx, name)
		if err != nil {
			c.log.ErrorContext(ctx, "environment could not be observed", "environment", name, "error", err)
			return r
		}
		for _, f := range seen.Fleets {
			for _, i := range f.Deaths {
				if present[i.ID] = true; c.isNews(ctx, i) {
					r = merge(r, c.lived(i, i.DiedAt))
				}
			}
			for _, i := range f.Instances {
				present[i.ID] = true
				r = merge(r, c.lived(i, c.now()))
			}
		}
	}
	for id, i := range c.known {
		if !present[id] {
			r = merge(r, c.lived(gone(i, c.now()), c.now()))
		}
	}
	return r
}

// isNews says whether a death is not in the history yet.
func (c *Control) isNews(ctx context.Context, i kiln.Instance) bool {
	if _, known := c.known[i.ID]; known {
		return true
	}
	last, err := c.ledger.Instance(ctx, i.ID)
	return err != nil || last.State != kiln.InstanceDead
}

// gone is an instance that ended while nobody looked.
func gone(i kiln.Instance, now time.Time) kiln.Instance {
	i.State, i.DiedAt = kiln.InstanceDead, now.UTC()
	i.Cause = &kiln.Cause{Kind: kiln.CauseLost, Detail: "it ended while the control plane did not look"}
	return i
}

// remember loads what the ledger knows to be alive, and records what changed
// while the control plane was away.
func (c *Control) remember(ctx context.Context) error {
	c.backlog.missed = true
	c.flush(ctx)
	return ctx.Err()
}

// lived is what an instance's present state adds to the history.
func (c *Control) lived(i kiln.Instance, at time.Time) kiln.Record {
	before, known := c.known[i.ID]
	switch {
	case known && before.State == i.State:
		return kiln.Record{}
	case i.State == kiln.InstanceDead:
		delete(c.known, i.ID)
	default:
		c.known[i.ID] = i
	}
	verb, message := "changed", string(i.State)
	switch i.State {
	case kiln.InstanceStarting:
		verb, message = "born", "was started: "+i.Reason
	case kiln.InstanceReady:
		verb, message = "ready", fmt.Sprintf("is ready, %s after its start", i.ReadyAt.Sub(i.CreatedAt).Round(time.Millisecond))
		if before.State == kiln.InstanceUnready {
			message = "is ready again"
		}
	case kiln.InstanceUnready:
		verb, message = "unready", "is unready: "+i.Note
	case kiln.InstanceDraining:
		verb, message = "draining", "gets no more traffic"
	case kiln.InstanceQuarantined:
		verb, message = "quarantined", "was taken out of traffic and kept"
	case kiln.InstanceDead:
		verb, message = "died", "ended"
		if i.Cause != nil {
			message = rollout.Death(*i.Cause)
		}
	}
	if at.IsZero() {
		at = c.now()
	}
	e := kiln.Event{
		At: at.UTC(), Environment: i.Environment, Kind: "instance." + verb, Subject: i.ID,
		Message: i.ID + " " + message, Data: instanceData(i),
	}
	return kiln.Record{Instances: []kiln.Instance{i}, Events: []kiln.Event{e}}
}

func instanceData(i kiln.Instance) map[string]string {
	data := map[string]string{"service": i.Service, "fleet": string(i.Fleet)}
	if i.Cause == nil {
		return data
	}
	data["cause"] = string(i.Cause.Kind)
	if i.Cause.Failure() {
		for n, line := range i.Cause.LastLog[max(0, len(i.Cause.LastLog)-10):] {
			data[fmt.Sprintf("log_%02d", n+1)] = line
		}
	}
	return data
}

func merge(a, b kiln.Record) kiln.Record {
	a.Instances = append(a.Instances, b.Instances...)
	a.Events = append(a.Events, b.Events...)
	return a
}
