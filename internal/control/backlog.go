package control

import (
	"context"
	"fmt"
	"time"

	"github.com/kilnproject/kiln"
)

const (
	// maxBacklog bounds what waits for a ledger that takes nothing; what
	// exceeds it is counted, and the instances are looked at anew afterwards.
	maxBacklog = 4 * maxBatch
	// backlogAgain is how often it is tried again.
	backlogAgain = time.Second
)

// backlog is what the ledger did not take yet: its disk is full, or it is
// damaged. Only record and restore touch it, but for problem.
type backlog struct {
	record kiln.Record
	// lost counts events that had no room.
	lost int
	// missed means that what is known of the instances is not what the ledger
	// has.
	missed bool
	since  time.Time
	told   string // the error as it was logged last
}

func (b *backlog) empty() bool {
	return len(b.record.Events)+len(b.record.Instances) == 0 && !b.missed
}

// add puts a record behind what waits, or counts it.
func (b *backlog) add(r kiln.Record) {
	if len(b.record.Events)+len(r.Events) > maxBacklog || len(b.record.Instances)+len(r.Instances) > maxBacklog {
		b.lost += len(r.Events)
		b.missed = true
		return
	}
	b.record = merge(b.record, r)
}

// write records what happened. What the ledger does not take waits, within
// bounds, and is tried again by record; nothing else waits for it.
func (c *Control) write(ctx context.Context, r kiln.Record) {
	waiting := !c.backlog.since.IsZero()
	if c.backlog.add(r); !waiting {
		c.flush(ctx)
	}
}

// flush writes what waits.
func (c *Control) flush(ctx context.Context) {
	b := &c.backlog
	for !b.empty() {
		r := b.record
		if len(r.Events)+len(r.Instances) == 0 {
			var err error
			if r, err = c.relook(ctx); err != nil {
				c.held(ctx, err)
				return
			}
		}
		if err := c.ledger.Commit(ctx, r); err != nil {
			c.held(ctx, err)
			return
		}
		if len(b.record.Events)+len(b.record.Instances) == 0 {
			b.missed, b.lost = false, 0
		}
		b.record = kiln.Record{}
	}
	if !b.since.IsZero() {
		c.log.InfoContext(ctx, "the ledger takes records again", "after", c.now().Sub(b.since))
	}
	*b = backlog{}
	c.setUnrecorded("")
}

// relook compares the ledger with what there is, after changes were not
// recorded.
func (c *Control) relook(ctx context.Context) (kiln.Record, error) {
	alive, err := c.ledger.Alive(ctx)
	if err != nil {
		return kiln.Record{}, fmt.Errorf("list the instances: %w", err)
	}
	clear(c.known)
	for _, i := range alive {
		c.known[i.ID] = i
	}
	r := c.resync(ctx)
	if c.backlog.lost > 0 {
		r.Events = append(r.Events, kiln.Event{
			At: c.now().UTC(), Kind: "events.dropped", Subject: "ledger", Data: map[string]string{"count": fmt.Sprint(c.backlog.lost)},
			Message: fmt.Sprintf("%d events since %s could not be recorded", c.backlog.lost, c.backlog.since.UTC().Format(time.RFC3339)),
		})
	}
	return r, nil
}

// held notes why the ledger takes nothing, and logs that once.
func (c *Control) held(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	b := &c.backlog
	if b.since.IsZero() {
		b.since = c.now()
	}
	c.setUnrecorded(fmt.Sprintf("what happens is not recorded since %s: %v", b.since.UTC().Format(time.RFC3339), err))
	if text := err.Error(); b.told != text {
		b.told = text
		c.log.ErrorContext(ctx, "engine events are not recorded and are tried again", "error", err)
	}
}

func (c *Control) setUnrecorded(problem string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unrecorded = problem
}
